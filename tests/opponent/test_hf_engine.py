"""The transformers engine draws from the model's exact distribution, and a reply depends on its own row alone. Both its ways do."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from exact import LONG, SHAPE, SHORT, STOP, VOCABULARY, next_token, p_value, same_prompt, sequences, tiny
from scipy.stats import chisquare

from sparring.config import SamplingSection
from sparring.data.records import Reply
from sparring.opponent import hf
from sparring.opponent.decode import DecodedRow, Decoder
from sparring.opponent.hf import InverseCdf, TransformersEngine
from sparring.opponent.protocol import Prompt, Stream
from sparring.policy.load import load_model

pytestmark = pytest.mark.long


@pytest.fixture(params=["packed rows", "padded batches"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the engine samples: by itself it takes packed rows for all models here."""
    if request.param == "padded batches":
        monkeypatch.setattr(hf, "packed_rows_agree", lambda *_: False)
    return request.param


@pytest.fixture
def sizes(way: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows at once, longest prompt) of every batch of `generate`, or of every round of packed rows."""
    found: list[tuple[int, int]] = []

    def run(decoder: Decoder, rows: list[DecodedRow], slots: int) -> Iterator[DecodedRow]:
        found.append((slots, len(rows[-1].prompt_ids)))
        return plain_run(decoder, rows, slots)

    def sample_batch(engine: TransformersEngine, prompts: list[Prompt], stream: Stream, logps: bool) -> list[Reply]:
        found.append((len(prompts), len(prompts[-1].token_ids)))
        return plain_batch(engine, prompts, stream, logps)

    plain_run, plain_batch = Decoder.run, TransformersEngine._sample_batch
    monkeypatch.setattr(Decoder, "run", run)
    monkeypatch.setattr(TransformersEngine, "_sample_batch", sample_batch)
    return found


def gpt2() -> transformers.PreTrainedModel:
    """Absolute positions: they must start at the first token, not at the padding."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=STOP, **SHAPE)
    return transformers.GPT2LMHeadModel(config).eval()


def sampling(**changes: object) -> SamplingSection:
    return SamplingSection(**{"max_new_tokens": 2, "batch_tokens": 100_000, **changes})


def draw(model: transformers.PreTrainedModel, prompts: list[Prompt], stream: Stream = Stream(0, 0), **changes: object) -> list[Reply]:  # noqa: B008
    return TransformersEngine(model, sampling(**changes), [STOP]).sample(prompts, stream)


N = 6000


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (0.7, 0.8)], ids=["T=1", "T=0.7", "top_p=0.8", "T=0.7, top_p=0.8"]
)
def test_frequencies_are_the_models_own(temperature: float, top_p: float) -> None:
    """Next tokens and two-token replies of two prompts of different length in one padded batch."""
    model = tiny()
    shape = {"temperature": temperature, "top_p": top_p}
    replies = draw(model, [*same_prompt(LONG, N), *same_prompt(SHORT, N)], **shape)
    for ids, own in ((LONG, replies[:N]), (SHORT, replies[N:])):
        two = sequences(model, ids, **shape)
        one = {(token,): p for token, p in enumerate(next_token(model, ids, **shape)) if p > 0}
        assert max(one.values()) > 2 / VOCABULARY and len([p for p in two.values() if p * N >= 10]) > 5, "a test worth its name"
        sampled = [reply.token_ids for reply in own]
        assert p_value([ids[:1] for ids in sampled], one) > 1e-3
        assert p_value(sampled, two) > 1e-3
        assert {ids[:1] for ids in sampled} == set(one), "the support, no token more and none less"


def test_the_chi_square_would_see_another_distribution() -> None:
    """The control: a temperature of 0.8 or a nucleus of 0.9 in place of 1 is rejected."""
    model = tiny()
    expected = sequences(model, LONG)
    for changes in ({"temperature": 0.8}, {"top_p": 0.9}):
        sampled = [reply.token_ids for reply in draw(model, same_prompt(LONG, N), **changes)]
        assert p_value(sampled, expected) < 1e-6


def test_the_nucleus_of_a_sure_model_is_one_token() -> None:
    model = tiny(sharpness=50)
    assert next_token(model, LONG).max() > 0.8
    tokens = {reply.token_ids[0] for reply in draw(model, same_prompt(LONG, 200), top_p=0.5, max_new_tokens=1)}
    assert tokens == {int(next_token(model, LONG).argmax())}


def test_no_hidden_top_k_cuts_the_vocabulary() -> None:
    """transformers' own default keeps the 50 likeliest tokens."""
    model = tiny(vocabulary=200, sharpness=0.01)
    assert len({reply.token_ids[0] for reply in draw(model, same_prompt(LONG, 3000), max_new_tokens=1)}) > 190


def test_the_models_own_generation_settings_are_not_applied(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    own = {
        "do_sample": True,
        "top_k": 2,
        "top_p": 0.3,
        "temperature": 0.1,
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 2,
        "suppress_tokens": [1, 2, 3, 4],
        "forced_eos_token_id": STOP,
        "eos_token_id": 5,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    model = load_model(tmp_path)
    assert model.generation_config.top_k == 2
    prompts = [*same_prompt(LONG, 500), *same_prompt(SHORT, 500)]
    assert draw(model, prompts, max_new_tokens=6) == draw(tiny(), prompts, max_new_tokens=6)


# --- inverse CDF


@pytest.mark.parametrize(
    ("uniform", "token"),
    [(0.0, 1), (0.2499, 1), (0.25, 2), (0.7499, 2), (0.75, 4), (1 - 2**-53, 4)],
)
def test_the_uniform_picks_its_token_and_never_an_impossible_one(uniform: float, token: int) -> None:
    """Probabilities 0, 1/4, 1/2, 0, 1/4: tokens 0 and 3 cannot come out, not even at the ends of the interval."""
    scores = torch.tensor([[0.0, 0.25, 0.5, 0.0, 0.25]]).log()
    processor = InverseCdf(torch.tensor([[0.5, uniform]], dtype=torch.float64), prompt_length=3)
    found = processor(torch.zeros(1, 4, dtype=torch.long), scores)
    assert found.isfinite().nonzero().tolist() == [[0, token]], "step 1 takes the second uniform"


# --- a row's reply is its own


def mixed_prompts(count: int = 24) -> list[Prompt]:
    source = random.Random(0)
    return [
        Prompt(f"row{index // 2}", index % 2, tuple(source.randrange(11) for _ in range(1 + (index // 2 * 5) % 9)))
        for index in range(count)
    ]


@pytest.mark.parametrize("make", [tiny, gpt2])
@pytest.mark.parametrize("shape", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
def test_replies_do_not_depend_on_the_batch(make, shape: dict[str, float], sizes: list[tuple[int, int]]) -> None:
    model, prompts = make(), mixed_prompts()
    found = {}
    for batch, budget in ((1, 1), (3, 3 * 21), (16, 16 * 21)):
        sizes.clear()
        found[batch] = draw(model, prompts, max_new_tokens=12, batch_tokens=budget, **shape)
        at_once = {rows for rows, _ in sizes}
        assert at_once == {1} if batch == 1 else batch <= max(at_once) < len(prompts)
    assert found[1] == found[3] == found[16]
    assert [(reply.row_id, reply.replica) for reply in found[1]] == [(prompt.row_id, prompt.replica) for prompt in prompts]
    if shape == {}:
        assert len({len(reply.token_ids) for reply in found[1]}) > 2, "replies of several lengths"


def test_replies_do_not_depend_on_the_order_or_the_company() -> None:
    model, prompts = tiny(), mixed_prompts()
    expected = dict(zip(prompts, draw(model, prompts, max_new_tokens=12), strict=True))
    shuffled = random.Random(1).sample(prompts, len(prompts))
    assert dict(zip(shuffled, draw(model, shuffled, max_new_tokens=12), strict=True)) == expected
    some = prompts[5:9]
    assert draw(model, some, max_new_tokens=12) == [expected[prompt] for prompt in some]


def test_a_longer_limit_only_continues_the_replies() -> None:
    """The random stream belongs to the token's place in the reply, not to the limit."""
    model, prompts = tiny(), mixed_prompts()
    for short, long in zip(draw(model, prompts, max_new_tokens=4), draw(model, prompts, max_new_tokens=12), strict=True):
        assert long.token_ids[:4] == short.token_ids


def test_seed_iteration_row_and_replica_each_change_the_reply() -> None:
    model = tiny()

    def replies(stream: Stream, prefix: str = "", replica: int = 0) -> list[tuple[int, ...]]:
        prompts = [Prompt(f"{prefix}row{index}", replica, LONG) for index in range(30)]
        return [reply.token_ids for reply in draw(model, prompts, stream, max_new_tokens=8)]

    base = replies(Stream(0, 0))
    assert base == replies(Stream(0, 0)), "and nothing else does"
    others = [replies(Stream(1, 0)), replies(Stream(0, 1)), replies(Stream(0, 0), "x"), replies(Stream(0, 0), replica=1)]
    for one, two in itertools.combinations([base, *others], 2):
        assert sum(map(tuple.__eq__, one, two)) < 15
    assert len(set(base)) > 15


def test_uniforms_are_uniform_and_of_one_stream_per_row() -> None:
    stream = Stream(3, 1)
    drawn = np.stack([stream.uniforms(Prompt(f"row{index}", 0, ()), 50) for index in range(2000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    assert chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.1 and abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.5
    assert (stream.uniforms(Prompt("row0", 0, ()), 10) == drawn[0, :10]).all()


# --- greedy, ends, limits


def test_greedy_is_the_argmax() -> None:
    model, prompts = tiny(), mixed_prompts()
    for prompt, reply in zip(prompts, draw(model, prompts, temperature=0.0, max_new_tokens=8), strict=True):
        expected: list[int] = []
        while len(expected) < 8 and STOP not in expected:
            expected.append(int(next_token(model, (*prompt.token_ids, *expected)).argmax()))
        assert reply.token_ids == tuple(expected)


def test_a_cut_reply_has_no_end_of_turn_and_an_ended_one_has_one() -> None:
    """spin.md 4.2, with two tokens that may end a turn."""
    stops = {STOP, 3}
    engine = TransformersEngine(tiny(), sampling(max_new_tokens=4), stops)
    replies = engine.sample(same_prompt((1, 2), 300), Stream(0, 0))
    by_reason = {reason: [reply for reply in replies if reply.finish_reason == reason] for reason in ("stop", "length")}
    assert all(by_reason.values())
    for reply in by_reason["length"]:
        assert len(reply.token_ids) == 4 and not stops & set(reply.token_ids)
    for reply in by_reason["stop"]:
        assert reply.token_ids[-1] in stops and not stops & set(reply.token_ids[:-1])
    lengths = Counter(len(reply.token_ids) for reply in by_reason["stop"])
    assert set(lengths) == {1, 2, 3, 4}, "an end of turn may be the first token, and the last that the limit allows"
    assert {reply.token_ids[-1] for reply in by_reason["stop"]} == stops, "which one it was is kept"


def test_a_batch_fits_its_budget(way: str, sizes: list[tuple[int, int]]) -> None:
    draw(tiny(), mixed_prompts(), max_new_tokens=12, batch_tokens=90)
    assert all(rows * (length + 12) <= 90 for rows, length in sizes)
    assert [length for _, length in sizes] == sorted(length for _, length in sizes)
    assert way == "packed rows" or sum(rows for rows, _ in sizes) == 24
    sizes.clear()
    assert len(draw(tiny(), mixed_prompts(4), max_new_tokens=12, batch_tokens=1)) == 4, "a row over the budget stands alone"
    assert {rows for rows, _ in sizes} == {1}


def test_no_prompts_no_replies() -> None:
    assert draw(tiny(), []) == []
