"""The check of an engine's log-probs against the scorer's: what it measures, what it lets pass, what it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from exact import LONG, SHORT, STOP, VOCABULARY, tiny
from scipy.stats import binom

from sparring.config import SamplingSection
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent import hf
from sparring.opponent.agreement import ROWS, TOLERANCE, _p_value, check_agreement
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Prompt, Stream
from sparring.policy.batches import Branches
from sparring.policy.score import Scorer, plain_logps

PROMPTS = [Prompt(f"row{n}", 0, (LONG if n % 2 else SHORT)[: 1 + n % 3]) for n in range(12)]


def sampling(**changes: Any) -> SamplingSection:
    return SamplingSection(**{"max_new_tokens": 12, **changes})


def draw(model: transformers.PreTrainedModel, settings: SamplingSection) -> list[Reply]:
    return TransformersEngine(model, settings, [STOP]).sample(PROMPTS, Stream(0, 0), logps=True)


@pytest.mark.parametrize("shape", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("packed", [True, False], ids=["packed rows", "padded batches"])
def test_the_transformers_engine_gives_raw_log_probs(packed: bool, shape: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the plain distribution, whatever the temperature, one per token; asking for them does not change the replies."""
    monkeypatch.setattr(hf, "packed_rows_agree", lambda *_: packed)
    settings = sampling(batch_tokens=60, **shape)
    replies = draw(tiny(), settings)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert len(reply.logps) == len(reply.token_ids)
        assert sum(reply.logps) == pytest.approx(plain_logps(tiny(), Branches(prompt.token_ids, (reply.token_ids,))).item(), abs=1e-4)
    without = TransformersEngine(tiny(), settings, [STOP]).sample(PROMPTS, Stream(0, 0))
    assert without == replies and all(reply.logps is None for reply in without)


@pytest.mark.parametrize("shape", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}, {"temperature": 3.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_transformers_engine_agrees(dtype: torch.dtype, shape: dict[str, float]) -> None:
    settings = sampling(**shape)
    replies = draw(tiny().to(dtype), settings)
    found = check_agreement(Scorer(tiny().to(dtype)), settings, PROMPTS, replies)
    assert found["rows"] == ROWS and found["tokens"] == sum(len(reply.token_ids) for reply in replies[:ROWS])
    assert found["mean"] <= found["worst"] and found["mean"] < found["tolerance"] / 2 and found["tolerance"] == TOLERANCE[dtype]
    assert found["p_value"] > 1e-4 and 0 < found["likeliest"] <= found["tokens"]


def test_it_works_where_only_the_models_own_logits_are_known() -> None:
    """Mamba takes rows of its own; its tokens are the same."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, eos_token_id=STOP, pad_token_id=0)
    model = transformers.MambaForCausalLM(config).eval()
    replies = draw(model, sampling())
    assert check_agreement(Scorer(model), sampling(), PROMPTS, replies)["worst"] < 1e-4


def test_another_model_another_prompt_and_no_number_are_stopped() -> None:
    replies = draw(tiny(), sampling())
    with pytest.raises(UserError, match="other weights"):
        check_agreement(Scorer(tiny(seed=1)), sampling(), PROMPTS, replies)
    other = [replace(prompt, token_ids=(0, *prompt.token_ids)) for prompt in PROMPTS]
    with pytest.raises(UserError, match="other prompt tokens"):
        check_agreement(Scorer(tiny()), sampling(), other, replies)
    broken = [replace(reply, logps=tuple(math.nan for _ in reply.logps)) for reply in replies]
    with pytest.raises(UserError, match="does not sample from the player"):
        check_agreement(Scorer(tiny()), sampling(), PROMPTS, broken)


def test_another_number_format_is_named() -> None:
    replies = draw(tiny().to(torch.bfloat16), sampling())
    with pytest.raises(UserError, match=r"that of another number format(.|\n)*model.dtype"):
        check_agreement(Scorer(tiny()), sampling(), PROMPTS, replies)


@pytest.mark.parametrize("changes", [{"temperature": 0.1}, {"temperature": 0.0}, {"top_p": 0.05}], ids=str)
def test_another_draw_is_stopped_though_the_log_probs_agree(changes: dict[str, float]) -> None:
    replies = draw(tiny(), sampling(max_new_tokens=40, **changes))
    with pytest.raises(UserError, match="does not sample at temperature 1 and top-p 1"):
        check_agreement(Scorer(tiny()), sampling(), PROMPTS, replies)


@pytest.mark.parametrize("hits", [0, 3, 12, 30, 40])
def test_the_law_of_the_count(hits: int) -> None:
    """Of equal chances it is the binomial one."""
    chances = np.full(40, 0.3)
    below, above = binom.cdf(hits, 40, 0.3), binom.sf(hits - 1, 40, 0.3)
    assert _p_value(hits, chances, greedy=False) == pytest.approx(min(1, 2 * min(below, above)), rel=1e-9)
    assert _p_value(hits, chances, greedy=True) == pytest.approx(below, rel=1e-9)


def test_false_alarms_are_rarer_than_the_limit_says() -> None:
    """2,000 honest counts over peaked and flat places: no p-value is far below 1 / 2,000."""
    random = np.random.default_rng(0)
    lowest = 1.0
    for _ in range(2000):
        chances = random.choice([0.999, 0.5, 0.1], size=60)
        lowest = min(lowest, _p_value(int((random.random(60) < chances).sum()), chances, greedy=False))
    assert lowest > 1e-6
