"""Packed rows: the replies of padded batches from `generate` for every architecture that takes them, and no token computed twice."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedConfig, PreTrainedModel
from zoo import COMMON, GPT2, NEOX

from sparring.config import SamplingSection
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent import decode, hf
from sparring.opponent.decode import require_sampled
from sparring.opponent.hf import TransformersEngine, draw_by_inverse_cdf
from sparring.opponent.protocol import Prompt, Stream

STOP = 1
STOPS = range(1, 9)  # likely enough for replies of many lengths
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}

# architecture -> (config, whether it takes packed rows)
ZOO: dict[str, tuple[Callable[[], PreTrainedConfig], bool]] = {
    "llama": (lambda: transformers.LlamaConfig(**COMMON), True),
    "mistral, short window": (lambda: transformers.MistralConfig(**COMMON, sliding_window=5), True),
    "qwen3": (lambda: transformers.Qwen3Config(**COMMON, head_dim=8), True),
    "gemma-2": (lambda: transformers.Gemma2Config(**COMMON, **GEMMA, final_logit_softcapping=2.0, attn_logit_softcapping=3.0), True),
    "gemma-3": (
        lambda: transformers.Gemma3TextConfig(**COMMON, **GEMMA, layer_types=["sliding_attention", "full_attention"]),
        True,
    ),
    "gpt-2": (lambda: transformers.GPT2Config(**GPT2), True),
    "gpt-neox": (lambda: transformers.GPTNeoXConfig(**NEOX), True),
    "granite": (lambda: transformers.GraniteConfig(**COMMON, logits_scaling=3.0, attention_multiplier=0.2), True),
    "mixtral": (lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4), True),
    "bloom": (lambda: transformers.BloomConfig(**COMMON, n_head=2, n_layer=2), False),
    "mamba": (lambda: transformers.MambaConfig(**COMMON, state_size=4), False),
    "jamba": (
        lambda: transformers.JambaConfig(
            **COMMON, attn_layer_period=2, attn_layer_offset=1, num_experts=1, use_mamba_kernels=False, mamba_d_state=4
        ),
        False,
    ),
}


@pytest.fixture(autouse=True)
def _nothing_checked_before() -> None:
    decode._agreed.clear()


def make(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def prompts(count: int = 12, replicas: int = 2) -> list[Prompt]:
    source = random.Random(0)
    ids = [tuple(source.randrange(2, 48) for _ in range(1 + (row * 5) % 11)) for row in range(count)]
    return [Prompt(f"row{row:02d}", replica, ids[row]) for row in range(count) for replica in range(replicas)]


def sample(model: PreTrainedModel, asked: list[Prompt], **changes: object) -> list[Reply]:
    section = SamplingSection(**{"max_new_tokens": 10, "batch_tokens": 6 * 21, **changes})
    return TransformersEngine(model, section, STOPS).sample(asked, Stream(0, 0))


@pytest.mark.parametrize("name", ZOO)
def test_the_replies_are_those_of_padded_batches(name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "sparring")
    config, takes_packed_rows = ZOO[name]
    found = sample(make(config()), prompts())
    lines = [line for line in caplog.messages if "packed rows" in line]
    assert len(lines) == (0 if takes_packed_rows else 1)
    monkeypatch.setattr(hf, "packed_rows_agree", lambda *_: False)
    expected = sample(make(config()), prompts())
    assert found == expected
    assert len({len(reply.token_ids) for reply in found}) > 2, "replies of several lengths"


def test_every_token_is_computed_once() -> None:
    """Prompts once for all their replies, replies without their last token, no padding, nothing for a finished row."""
    model, asked = make(ZOO["llama"][0]()), prompts()
    engine = TransformersEngine(model, SamplingSection(max_new_tokens=10, batch_tokens=6 * 21), STOPS)
    engine.sample(asked, Stream(1, 0))  # the check of the model is behind us
    fed: list[int] = []
    model.base_model.register_forward_pre_hook(lambda _, __, options: fed.append(options["input_ids"].numel()), with_kwargs=True)
    replies = engine.sample(asked, Stream(0, 0))
    own_prompts = {prompt.row_id: len(prompt.token_ids) for prompt in asked}
    least = sum(own_prompts.values()) + sum(len(reply.token_ids) - 1 for reply in replies)
    # six slots: replies of one prompt that do not come in together read it again
    assert least <= sum(fed) <= least + sum(own_prompts.values())
    longest_alone = sum(max(len(reply.token_ids) for reply in replies[i : i + 6]) for i in range(0, len(replies), 6))
    assert len(fed) <= longest_alone, "no more forwards than batches of six would need, which wait for their longest"


def test_a_round_of_new_prompts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sample(make(ZOO["llama"][0]()), prompts(), batch_tokens=10_000)
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 12)
    model, fed = make(ZOO["llama"][0]()), []
    model.base_model.register_forward_pre_hook(lambda _, __, options: fed.append(options["input_ids"].numel()), with_kwargs=True)
    assert sample(model, prompts(), batch_tokens=10_000) == expected
    assert max(fed[2:]) <= 12 + 24


def test_the_check_sees_a_wrong_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """One position off: the first token is right, the second is not."""
    move = decode.DecodeStep.__init__

    def late(step: decode.DecodeStep, cache: decode.Cache, position_A: torch.Tensor, new: list[decode.NewPrompt]) -> None:
        move(step, cache, position_A + 1, new)

    assert hf.packed_rows_agree(packed_model(), [(3, 4, 5), (6,)])
    monkeypatch.setattr(decode.DecodeStep, "__init__", late)
    decode._agreed.clear()
    assert not hf.packed_rows_agree(packed_model(), [(3, 4, 5), (6,)])


def test_the_check_sees_a_nan_in_any_row(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = decode.Decoder.logits

    def spoilt(*args: object) -> torch.Tensor:
        found = logits(*args)
        found[-1] = float("nan")
        return found

    monkeypatch.setattr(decode.Decoder, "logits", spoilt)
    assert not hf.packed_rows_agree(packed_model(), [(3, 4, 5), (6,)])


def packed_model() -> PreTrainedModel:
    model = make(ZOO["llama"][0]())
    hf.use_packed_attention(model, "eager")
    return model


def test_without_memory_for_the_check_batches_are_padded_and_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def runs_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = sample(make(ZOO["llama"][0]()), prompts())
    decode._agreed.clear()
    monkeypatch.setattr(decode.Decoder, "logits", runs_out)
    assert sample(make(ZOO["llama"][0]()), prompts()) == expected
    assert any("not enough memory to check" in line for line in caplog.messages)


def test_bfloat16_weights_are_checked_in_float32_and_come_back_as_they_were() -> None:
    """bfloat16's own rounding would hide a wrong mask, or be taken for one."""
    model = make(ZOO["llama"][0]()).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hf.use_packed_attention(model, "eager")
    assert decode._gap(model, [tuple(range(3, 40)), (6, 7)]) < 1e-4
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(after[name].dtype == torch.bfloat16 and torch.equal(after[name], before[name]) for name in before)
    with torch.inference_mode():
        ids = torch.tensor([[3, 4, 5]])
        assert model(input_ids=ids).logits.dtype == torch.bfloat16


def test_what_is_known_of_a_kind_of_model_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    gap = decode._gap
    monkeypatch.setattr(decode, "_gap", lambda model, asked: (checked.append(max(map(len, asked))), gap(model, asked))[1])
    for length in (5, 4, 9, 9):
        assert decode.packed_rows_agree(packed_model(), [tuple(range(2, 2 + length)), (6,)])
    assert checked == [5, 9]


# --- the draw


@given(seed=st.integers(0, 10_000), vocabulary=st.sampled_from([1, 5, 255, 256, 257, 5000]), sharpness=st.sampled_from([0.1, 3.0, 30.0]))
def test_the_draw_is_the_inverse_of_the_cumulative_distribution(seed: int, vocabulary: int, sharpness: float) -> None:
    source = np.random.default_rng(seed)
    scores = torch.from_numpy(source.normal(size=(8, vocabulary)) * sharpness).float()
    scores[:, source.random(vocabulary) < 0.3] = -torch.inf
    scores[:, source.integers(vocabulary)] = 0.0
    uniform = torch.from_numpy(source.random((8, 1)))
    shares = scores.softmax(-1).double()
    cumulative = shares.cumsum(-1)
    for row, token in enumerate(draw_by_inverse_cdf(scores, uniform).tolist()):
        wanted = uniform[row, 0] * cumulative[row, -1]
        before = cumulative[row, token - 1] if token else 0.0
        assert shares[row, token] > 0
        assert before - 1e-12 <= wanted <= cumulative[row, token] + 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_drawn_from_what_is_no_number(value: float) -> None:
    scores = torch.zeros(3, 300)
    scores[1, 7] = value
    with pytest.raises(UserError, match=r"not finite \(NaN\)"):
        require_sampled(draw_by_inverse_cdf(scores, torch.full((3, 1), 0.5, dtype=torch.float64)).tolist())
    scores[1] = -torch.inf
    scores[1, 7] = 0.0  # tokens that cannot be are no fault
    assert draw_by_inverse_cdf(scores, torch.full((3, 1), 0.5, dtype=torch.float64))[1] == 7
