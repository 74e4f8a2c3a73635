"""Paired differences between two players: errors, intervals and tests. Pure functions over plain numbers; the tests are SciPy's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparring.evaluation.metrics import ratio_score

RESAMPLES = 9_999
# spread of differences, relative to the values, that is only rounding
ROUNDING = 1e-12
# numbers in memory at once during resampling: 128 MiB of float64
BATCH_NUMBERS = 2**24


@dataclass(frozen=True)
class Values:
    """The values of a metric per row, [N]: it is the sum of `top_N` over the sum of `bottom_N`, which is all ones for a plain mean."""

    top_N: np.ndarray
    bottom_N: np.ndarray

    @classmethod
    def of_mean(cls, values: Sequence[float] | np.ndarray) -> Values:
        """Values whose metric is their plain mean."""
        return cls(np.asarray(values, dtype=float), np.ones(len(values)))

    @property
    def mean(self) -> float:
        """The value of the metric."""
        return float(self.top_N.sum() / self.bottom_N.sum())

    @property
    def is_binary(self) -> bool:
        """Whether the metric is a plain mean of zeros and ones."""
        return bool((self.bottom_N == 1).all() and np.isin(self.top_N, (0.0, 1.0)).all())


@dataclass(frozen=True)
class Paired:
    """One player minus another on the same units (`n` rows, or seeds). `p` is two-sided; None if a single unit gives no estimate."""

    difference: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None
    test: str
    n: int


def over_rows(first: Values, second: Values, confidence: float, seed: int) -> Paired:
    """`first` minus `second`, row by row.

    Standard error of the paired differences (of a ratio estimator where the metric is a ratio); percentile bootstrap over rows; exact
    McNemar test (1947, binomial) for values of 0 and 1, else the sign-flip permutation test. Both players have the same `bottom_N`.
    """
    assert np.array_equal(first.bottom_N, second.bottom_N), "a ratio is paired over equal denominators only"
    gaps_N = first.top_N - second.top_N
    score = ratio_score(gaps_N, first.bottom_N)
    test = "McNemar" if first.is_binary and second.is_binary else "sign-flip"
    if not np.isfinite(gaps_N).all():  # such as a likelihood of 0: the resampled statistics would not be finite either
        return Paired(score["value"], None, None, None, None, test, score["n"])
    low, high = bootstrap(gaps_N, first.bottom_N, confidence, seed)
    p = mcnemar(gaps_N) if test == "McNemar" else sign_flip(gaps_N, seed)
    return Paired(score["value"], score["stderr"], low, high, p, test, score["n"])


def over_seeds(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, confidence: float) -> Paired:
    """`first` minus `second`, seed by seed: Student's paired t-test and its interval, which assume normal differences between seeds.

    If the difference is the same in all seeds, as happens with shares of few rows, the spread is 0: t would be infinite, and p 0 with two
    seeds. Then the sign-flip test gives p, and there is no interval.
    """
    from scipy import stats

    gaps = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean, n = float(gaps.mean()), len(gaps)
    if n == 1 or not np.isfinite(gaps).all():
        return Paired(mean, None, None, None, None, "paired t", n)
    if np.ptp(gaps) <= ROUNDING * np.abs([*first, *second]).max():
        return Paired(mean, 0.0, None, None, sign_flip(np.full(n, mean), 0), "sign-flip", n)
    found = stats.ttest_1samp(gaps, 0.0)
    interval = found.confidence_interval(confidence)
    stderr = float(gaps.std(ddof=1) / math.sqrt(n))
    return Paired(mean, stderr, float(interval.low), float(interval.high), float(found.pvalue), "paired t", n)


def bootstrap(tops_N: np.ndarray, bottoms_N: np.ndarray, confidence: float, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval of sum(tops) / sum(bottoms) over rows resampled with replacement; None for fewer than two rows."""
    from scipy import stats

    if len(tops_N) < 2:
        return None, None
    found = stats.bootstrap(
        (tops_N, bottoms_N),
        lambda top, bottom, axis=-1: top.sum(axis) / bottom.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(tops_N)),
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mcnemar(gaps_N: np.ndarray) -> float:
    """p of the exact McNemar test: of a split at least as uneven of the rows that differ (gaps of 1 and -1), if both signs are likely."""
    from scipy import stats

    gained, lost = int((gaps_N > 0).sum()), int((gaps_N < 0).sum())
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip(gaps_N: np.ndarray, seed: int) -> float:
    """p of the sign-flip permutation test of the mean gap: exact for few rows (1 for a single row), else by random flips."""
    from scipy import stats

    if len(gaps_N) < 2:  # SciPy refuses a single row
        return 1.0

    found = stats.permutation_test(
        (gaps_N,),
        lambda gaps, axis=-1: gaps.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_NUMBERS // len(gaps_N)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm 1979): each may be compared with the level of the whole family."""
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = worst
    return adjusted
