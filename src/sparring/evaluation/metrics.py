"""Scores with their errors, and the table of metrics with a value for every held-out row. Pure functions over plain numbers.

A score is the mean of such values. Those of a checker's grades are computed in answers.py, from all replies to a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypedDict

import numpy as np

from sparring.data.records import Example, Reply, is_empty

SAMPLED = PASS_AT, MAJ_AT = "pass_at_", "maj_at_"  # beginnings of metrics that name their number of replies, such as pass_at_8


class Score(TypedDict, total=False):
    """One measured number with n and standard error (None for one sample). `higher_is_better` is None if neither direction is better."""

    value: float
    n: int
    stderr: float | None
    higher_is_better: bool | None
    low: float
    high: float


def mean_score(values: Sequence[float], higher_is_better: bool | None = None) -> Score:
    """Mean with the standard error of the mean (sample standard deviation over the root of n)."""
    array = np.asarray(values, dtype=float)
    stderr = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return Score(value=float(array.mean()), n=len(array), stderr=stderr, higher_is_better=higher_is_better)


def ratio_score(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, higher_is_better: bool | None = None
) -> Score:
    """Sum over sum (as NLL per token) with the standard error of a ratio estimator over rows."""
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    value = top.sum() / bottom.sum()
    residual = top - value * bottom
    n = len(top)
    stderr = float(math.sqrt(residual.var(ddof=1) / n) / bottom.mean()) if n > 1 else None
    return Score(value=float(value), n=n, stderr=stderr, higher_is_better=higher_is_better)


def accuracy_score(margins: Sequence[float], confidence: float) -> Score:
    """Share of duels with a positive margin, ties counting half, with its Wilson interval at `confidence`."""
    won = wins(margins)
    score = mean_score(won, True)
    score["low"], score["high"] = wilson_interval(score["value"], len(won), confidence)
    return score


def wins(margins: Sequence[float]) -> list[float]:
    """1 for every positive margin, one half for 0."""
    return [0.5 + 0.5 * float(np.sign(margin)) for margin in margins]


def wilson_interval(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Two-sided Wilson score interval of a proportion (Wilson 1927); holds near 0 and 1, where mean +- z * se does not."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def auc_score(human: Sequence[float], generated: Sequence[float]) -> Score:
    """How well a number (reply length) alone separates the two sides: area under the ROC curve, 0.5 = not at all, 1 = perfectly.

    The direction is chosen afterwards (never below 0.5), since a shortcut may go either way. Standard error: Hanley and McNeil 1982.
    """
    first, second = np.asarray(human), np.sort(np.asarray(generated))
    below = np.searchsorted(second, first, side="left")
    ties = np.searchsorted(second, first, side="right") - below
    area = float((below + 0.5 * ties).sum() / (len(first) * len(second)))
    larger, smaller = len(first), len(second)  # how many are on the side with the larger numbers
    if area < 0.5:
        area, larger, smaller = 1 - area, smaller, larger
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    spread = area * (1 - area) + (larger - 1) * (q1 - area * area) + (smaller - 1) * (q2 - area * area)
    return Score(value=area, n=len(second), stderr=math.sqrt(max(0.0, spread) / (larger * smaller)), higher_is_better=False)


@dataclass(frozen=True)
class MeasuredRow:
    """A held-out row with what was measured of a player: its first sampled reply, as tokens and as text, and the log-probs that
    `Measured.logps` describes. `stop_ids`: the tokens that end a turn."""

    example: Example
    reply: Reply
    text: str
    logps: Mapping[str, float]
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class RowMetric:
    """of: the value of a row; None for all rows of a player where it is not defined. higher_is_better: None if neither is."""

    of: Callable[[MeasuredRow], float | None]
    higher_is_better: bool | None


def duel_margin(row: MeasuredRow) -> float | None:
    """r(y) - r(y') in nats of the player against a fresh reply of its opponent; None for the start, which has no opponent."""
    logps = row.logps
    if "player_real" not in logps:
        return None
    return (logps["player_real"] - logps["opponent_real"]) - (logps["player_generated"] - logps["opponent_generated"])


def duel_accuracy(row: MeasuredRow) -> float | None:
    """Whether the margin is positive, a tie counting half."""
    margin = duel_margin(row)
    return None if margin is None else wins([margin])[0]


ROW_METRICS = {
    "nll_per_reply": RowMetric(lambda row: -row.logps["real"], higher_is_better=False),
    "duel_margin": RowMetric(duel_margin, higher_is_better=True),
    "duel_accuracy": RowMetric(duel_accuracy, higher_is_better=True),
    "real_logp": RowMetric(lambda row: row.logps["real"], higher_is_better=True),
    "generated_logp": RowMetric(lambda row: row.logps["own"], higher_is_better=None),
    "reply_tokens": RowMetric(lambda row: len(row.reply.token_ids), higher_is_better=None),
    "human_reply_tokens": RowMetric(lambda row: len(row.example.reply_ids), higher_is_better=None),
    "truncated": RowMetric(lambda row: row.reply.finish_reason == "length", higher_is_better=False),
    "identical": RowMetric(lambda row: row.reply.token_ids == row.example.reply_ids, higher_is_better=None),
    "empty": RowMetric(lambda row: is_empty(row.reply.token_ids, row.stop_ids), higher_is_better=False),
}


def all_metrics() -> dict[str, bool | None]:
    """Which direction is better of every metric with a value per held-out row, those of grades included; None if neither is."""
    own = {name: metric.higher_is_better for name, metric in ROW_METRICS.items()}
    return {"exact_match": True, "exact_match_greedy": True, **own, "vote_share": None, "distinct_answers": None}


def higher_is_better(metric: str) -> bool | None:
    """For one of `all_metrics`, or one of SAMPLED."""
    return True if metric.startswith(SAMPLED) else all_metrics()[metric]
