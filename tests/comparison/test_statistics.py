"""Paired differences against numbers worked by hand, and the resampling against what it must converge to."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from sparring.comparison.statistics import Values, bootstrap, holm, mcnemar, over_rows, over_seeds, sign_flip


def means(*values: float) -> Values:
    return Values.of_mean(values)


def test_mcnemar_by_hand() -> None:
    """Of 13 rows in which the two differ, 3 were lost and 10 gained: 2 * sum of C(13, k) for k to 3, over 2**13."""
    gaps = np.array([1.0] * 10 + [-1.0] * 3 + [0.0] * 30)
    expected = 2 * sum(math.comb(13, k) for k in range(4)) / 2**13
    assert mcnemar(gaps) == pytest.approx(expected, rel=1e-12) and expected == pytest.approx(0.0923, abs=1e-4)
    assert mcnemar(-gaps) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(np.zeros(9)) == 1.0 and mcnemar(np.array([1.0])) == 1.0


def test_sign_flips_by_hand() -> None:
    """Every one of the 2**4 signs of four gaps, counted here one by one."""
    gaps = np.array([1.0, 2.0, 3.0, -0.5])
    sums = [sum(sign * gap for sign, gap in zip(signs, gaps, strict=True)) for signs in product((1, -1), repeat=4)]
    expected = sum(abs(total) >= gaps.sum() - 1e-12 for total in sums) / 16
    assert sign_flip(gaps, 0) == pytest.approx(expected) == 4 / 16
    assert sign_flip(np.zeros(5), 0) == 1.0


def test_random_sign_flips_agree_with_the_normal_limit() -> None:
    """Of many rows the mean is nearly normal under the flips: z of 2 has p 0.0455."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=300)
    gaps += 2 / math.sqrt(300) * math.sqrt((gaps**2).mean()) - gaps.mean()
    z = gaps.sum() / math.sqrt((gaps**2).sum())
    first, again, other = (sign_flip(gaps, seed) for seed in (1, 1, 2))
    assert first == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert first == again != other, "seeded"


def test_the_bootstrap_finds_the_normal_interval() -> None:
    gaps = np.random.default_rng(3).normal(0.2, 1.0, size=400)
    low, high = bootstrap(gaps, np.ones(400), 0.95, 0)
    half = 1.96 * gaps.std(ddof=1) / 20
    assert (low, high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=0.012)
    assert bootstrap(gaps, np.ones(400), 0.95, 0) == (low, high) != bootstrap(gaps, np.ones(400), 0.95, 1), "seeded"
    narrow = bootstrap(gaps, np.ones(400), 0.5, 0)
    assert low < narrow[0] < narrow[1] < high  # type: ignore[operator]
    assert bootstrap(gaps[:1], np.ones(1), 0.95, 0) == (None, None)


def test_a_ratio_is_resampled_with_its_denominators() -> None:
    """Gaps of half a nat per token in every row: the ratio is -0.5 whatever rows are drawn."""
    tokens = np.array([1.0, 5.0, 20.0])
    found = over_rows(Values(tokens * 1.5, tokens), Values(tokens * 2.0, tokens), 0.95, 0)
    assert (found.difference, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))
    assert found.stderr == pytest.approx(0.0, abs=1e-12) and found.test == "sign-flip" and found.n == 3
    with pytest.raises(AssertionError):
        over_rows(Values(tokens, tokens), Values(tokens, tokens + 1), 0.95, 0)


def test_the_paired_error_by_hand() -> None:
    """Gaps 1, 0, 0, -1, 1: mean 0.2, variance 0.7, error sqrt(0.7 / 5). The unpaired errors would be larger."""
    found = over_rows(means(1, 1, 0, 0, 1), means(0, 1, 0, 1, 0), 0.95, 0)
    assert found.difference == pytest.approx(0.2) and found.stderr == pytest.approx(math.sqrt(0.7 / 5))
    assert found.test == "McNemar" and found.p == pytest.approx(1.0)
    assert over_rows(means(0.5, 1), means(0, 1), 0.95, 0).test == "sign-flip", "no 0/1 values"


def test_over_seeds_by_hand() -> None:
    """Gaps 1, 2, 3: t = 2 / (1 / sqrt 3) with two degrees of freedom, whose p is 1 - t / sqrt(t^2 + 2)."""
    found = over_seeds([2, 4, 6], [1, 2, 3], 0.95)
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2), rel=1e-9)
    assert (found.difference, found.stderr) == pytest.approx((2.0, 1 / math.sqrt(3)))
    half = 4.302653 / math.sqrt(3)  # the 0.975 quantile of t with two degrees of freedom
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    same = over_seeds([1, 2], [1, 2], 0.95)
    assert (same.difference, same.stderr, same.p) == (0.0, 0.0, 1.0)
    alone = over_seeds([1], [0], 0.95)
    assert (alone.difference, alone.stderr, alone.p, alone.low) == (1.0, None, None, None)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04 of four tests: 0.04, 0.06, 0.06 (2 * 0.03, not below the one before), 0.06."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_holm_keeps_its_promise() -> None:
    """Of true hypotheses alone, one or more fall below 5% in no more than 5% of the families."""
    rng = np.random.default_rng(7)
    families = 4000
    wrong = sum(min(holm(list(rng.uniform(size=6)))) < 0.05 for _ in range(families)) / families
    assert wrong == pytest.approx(0.05, abs=0.012)


def test_seeds_that_all_differ_alike_prove_little() -> None:
    """Shares of few rows: t would be infinite, and p 0 from two seeds. Two signs of two alike: p is 2 of 4."""
    two = over_seeds([0.5, 0.75], [0.25, 0.5], 0.95)
    assert (two.difference, two.stderr, two.low, two.high, two.p) == (0.25, 0.0, None, None, 0.5) and two.test == "sign-flip"
    rounded = over_seeds([0.3, 0.8, 0.4], [0.2, 0.7, 0.3], 0.95)  # 0.1, to what subtraction leaves
    assert rounded.p == pytest.approx(2 / 2**3) and rounded.test == "sign-flip"
    five = over_seeds([1.0] * 5, [0.0] * 5, 0.95)
    assert five.p == pytest.approx(2 / 2**5)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_proves_nothing(odd: float) -> None:
    """A comparison with NaN is false, which would make the smallest p that there is."""
    gone = over_rows(means(odd, 1.5, 2.0), means(1.0, 1.0, 1.0), 0.95, 0)
    assert (gone.p, gone.low, gone.high, gone.stderr) == (None, None, None, None) and gone.n == 3
    assert over_seeds([odd, 1.0], [1.0, 2.0], 0.95).p is None


def test_one_row_proves_nothing() -> None:
    found = over_rows(means(1.5), means(1.0), 0.95, 0)
    assert (found.difference, found.stderr, found.low, found.p) == (0.5, None, None, 1.0)
