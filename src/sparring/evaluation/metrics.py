"""Scores with their errors. Pure functions over plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TypedDict

import numpy as np


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
