"""Check that an engine samples from the player that we score: its log-probs compared with ours, on the first replies of every attempt.

Replies from another model, prompt or distribution are useless, and no later step would detect them. The check compares the log-probs of
the model's own distribution (temperature 1, whole vocabulary), for any temperature and top-p of the sampling; the number of sampled tokens
that are the likeliest ones then shows whether the sampling used that temperature and top-p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparring.config import SamplingSection
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent.protocol import Prompt
from sparring.policy.batches import Branches
from sparring.policy.head import logps_of
from sparring.policy.score import Scorer

ROWS, TOKENS = 8, 256  # compared per attempt: replies, and first tokens of each
# Tolerance of the mean difference of a token's log-prob between two programs; docs/engines.md has measurements.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
IMPOSSIBLE = 1e-9  # probability below which the count of likeliest tokens is not due to chance
GREEDY = 0.9  # minimum share of greedy tokens that equal ours: rounding decides near ties


@dataclass(frozen=True)
class Agreement:
    """The result in the stage record: numbers of rows and tokens, the mean and the worst difference in log-prob per token, the tolerance of
    the mean; how many sampled tokens are the likeliest at their position, how many are expected, and the p-value of that count."""

    rows: int
    tokens: int
    mean: float
    worst: float
    tolerance: float
    likeliest: int
    likeliest_expected: float
    p_value: float


def check_agreement(scorer: Scorer, sampling: SamplingSection, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> dict[str, Any]:
    """Compare the first replies' log-probs with the scorer's, whose model has the number format that the recipe samples in.

    Returns the facts of an Agreement. Raises UserError with the difference if they do not agree.
    """
    pairs = [(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True) if reply.logps is not None][:ROWS]
    assert pairs, "an engine that was asked for log-probs gave none"
    rows = zip(*_compare(scorer, sampling, pairs), strict=True)
    theirs, ours, tempered, hits, chances = (np.concatenate(column) for column in rows)
    gaps = np.abs(theirs - ours)
    found = Agreement(
        rows=len(pairs),
        tokens=len(gaps),
        mean=float(gaps.mean()),
        worst=float(gaps.max()),
        tolerance=TOLERANCE[scorer.model.dtype],
        likeliest=int(hits.sum()),
        likeliest_expected=float(chances.sum()),
        p_value=_p_value(int(hits.sum()), chances, greedy=sampling.temperature == 0),
    )
    if not found.mean <= found.tolerance:  # NaN too
        raise _other_logps(found, float(np.abs(theirs - tempered).mean()), sampling, scorer.model.dtype)
    if found.p_value < IMPOSSIBLE:
        raise _other_sampling(found, sampling)
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in vars(found).items()}


def _compare(scorer: Scorer, sampling: SamplingSection, pairs: Sequence[tuple[Prompt, Reply]]) -> Iterator[tuple[np.ndarray, ...]]:
    """Of every reply five numbers for each of its T compared tokens: the engine's log-prob and ours, ours at the sampling temperature,
    whether the sampled token is the likeliest, and the probability that it is."""
    trees = [Branches(prompt.token_ids, (reply.token_ids[:TOKENS],)) for prompt, reply in pairs]
    scorer.choose_layout(trees)
    for tree, (_, reply) in zip(trees, pairs, strict=True):
        assert reply.logps is not None, "the engine was asked for them"
        logits_TV = scorer.token_logits(tree).float()
        target_T = torch.tensor(tree.replies[0], device=logits_TV.device)
        yield (
            np.array(reply.logps[: len(target_T)]),
            logps_of(logits_TV, target_T).cpu().numpy(),
            logps_of(logits_TV / (sampling.temperature or 1.0), target_T).cpu().numpy(),
            (logits_TV.argmax(-1) == target_T).cpu().numpy(),
            _p_likeliest(logits_TV, sampling).cpu().numpy(),
        )


def _p_likeliest(logits_TV: Tensor, sampling: SamplingSection) -> Tensor:
    """[T] probability of sampling the likeliest token: its share of the nucleus."""
    if sampling.temperature == 0:
        return torch.full(logits_TV.shape[:1], GREEDY)
    shares_TV = (logits_TV / sampling.temperature).softmax(-1)
    if sampling.top_p == 1:
        return shares_TV.amax(-1)
    sorted_TV = shares_TV.sort(-1, descending=True).values
    nucleus_T = (sorted_TV * (sorted_TV.cumsum(-1) - sorted_TV < sampling.top_p)).sum(-1)
    return sorted_TV[:, 0] / nucleus_T


def _p_value(hits: int, chances_N: np.ndarray, greedy: bool) -> float:
    """Probability of a count so far from the expected one (two-sided; greedy: too few only), from the exact Poisson binomial law."""
    from scipy.stats import poisson_binom  # slow to import, and not needed by our own engines

    law = poisson_binom(chances_N)
    below, above = float(law.cdf(hits)), float(law.sf(hits - 1))
    return min(1.0, below) if greedy else min(1.0, 2 * min(below, above))


def _other_logps(found: Agreement, tempered: float, sampling: SamplingSection, dtype: torch.dtype) -> UserError:
    what = (
        f"the engine {sampling.engine_name} does not sample from the player that is scored: over {found.tokens} tokens of {found.rows} "
        f"replies its log-probs differ from the scorer's by {found.mean:.3g} on average and {found.worst:.3g} at most; rounding in "
        f"{str(dtype).removeprefix('torch.')} explains {found.tolerance:g} on average"
    )
    if tempered <= found.tolerance:
        what += f"; they agree with those at temperature {sampling.temperature:g}"
        remedy = "have the engine return log-probs from before the temperature (vLLM: --logprobs-mode raw_logprobs)"
    elif dtype == torch.float32 and found.mean <= TOLERANCE[torch.bfloat16]:
        what += "; a difference of this size is that of another number format"
        remedy = "have it compute in float32, or set model.dtype to the format that it computes in"
    else:
        what += ": other weights (an earlier player, another model), or other prompt tokens"
        remedy = "make it serve this player; `sparring docs engines` shows how a server gets each new player"
    return UserError(what, where=f"sampling.engine ({sampling.engine_name})", remedy=remedy)


def _other_sampling(found: Agreement, sampling: SamplingSection) -> UserError:
    return UserError(
        f"the engine {sampling.engine_name} has the right model but does not sample at temperature {sampling.temperature:g} and top-p "
        f"{sampling.top_p:g}: {found.likeliest} of {found.tokens} tokens are the likeliest at their position, where "
        f"{found.likeliest_expected:.1f} are expected (probability {found.p_value:.0e})",
        where=f"sampling.engine ({sampling.engine_name})",
        remedy="make sure that it applies no own top-k, penalty or temperature (vLLM: --generation-config vllm)",
    )
