"""What could be gained from a start, and by which method: pure functions over its scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sparring.evaluation.metrics import Score

COOL = 0.7  # the lower temperature at which every start is also sampled
TOO_WEAK = 0.05  # pass@1 below which a model was seen to learn nothing from its own replies

Headroom = Mapping[str, Score]


def advice(scores: Headroom, k: int) -> str:
    """One sentence: what a lower temperature gains, what targets can reach, and whether more SFT is the better use of compute."""
    now = scores["pass_at_1"]
    found = [f"The start answers {now['value']:.1%} of held-out prompts"]
    free = max((scores[name] for name in ("cool", "greedy")), key=lambda score: score["value"])
    if _exceeds(free, now):
        found.append(f"{free['value']:.1%} at a lower temperature, which costs nothing")
    if k > 1:
        found.append(f"its majority of {k} replies {scores['majority']['value']:.1%}" if "majority" in scores else "")
        found.append(f"one of {k} is right on {scores['any']['value']:.1%}, the most that verified targets can learn from at once")
    return f"{', '.join(filter(None, found))}: {_conclusion(scores, now, free)}."


def _conclusion(scores: Headroom, now: Score, free: Score) -> str:
    before, after = scores.get("nll"), scores.get("nll_after")
    if before is not None and after is not None and _exceeds(before, after):
        return f"more SFT still lowers its NLL, from {before['value']:.3f} to {after['value']:.3f}, and is the better use of compute"
    if now["value"] < TOO_WEAK:
        return f"that is too little to learn from its own replies; {_remedy(free, probed=after is not None)}"
    if "any" not in scores:
        return "what targets could gain is measured only with several replies to a prompt; set evaluate.samples"
    single = "its replies at a lower temperature" if _exceeds(free, now) else "a single reply"
    best = free if _exceeds(free, now) else now
    if "majority" in scores and _exceeds(scores["majority"], best):
        return "majority targets can gain something, and so can verified ones"
    if _exceeds(scores["any"], best):
        why = f"its majority is no better than {single}, so only verified targets" if "majority" in scores else "verified targets"
        return f"{why} can gain something"
    return "no game can gain much here"


def _remedy(free: Score, probed: bool) -> str:
    """The remedy for a start whose replies are too rarely right. probed: a short continued SFT was tried, and its NLL did not fall."""
    if free["value"] >= TOO_WEAK:
        return "lower sampling.temperature first"
    return "take more rows or easier prompts, since more SFT does not lower its NLL" if probed else "fine-tune it further first"


def _exceeds(score: Score, other: Score) -> bool:
    """Whether `score` is above `other` by more than the error of both."""
    return score["value"] - other["value"] > math.hypot(score["stderr"] or 0.0, other["stderr"] or 0.0)
