"""Scores and their errors against scipy, against the bootstrap and by hand."""

from __future__ import annotations

import math
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparring.checkers.grades import find_answer
from sparring.evaluation.metrics import (
    accuracy_score,
    auc_score,
    mean_score,
    ratio_score,
    wilson_interval,
)

# --- means and ratios


def test_mean_by_hand() -> None:
    score = mean_score([1.0, 2.0, 6.0], True)
    assert score["value"] == 3.0 and score["n"] == 3 and score["higher_is_better"] is True
    assert score["stderr"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert mean_score([1.0])["higher_is_better"] is None and mean_score([1.0])["stderr"] is None


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_standard_error_of_the_mean_is_scipys(values: list[float]) -> None:
    assert mean_score(values)["stderr"] == pytest.approx(stats.sem(values), rel=1e-9, abs=1e-12)


def test_ratio_by_hand() -> None:
    assert ratio_score([6.0, 3.0], [2.0, 1.0])["value"] == 3.0
    assert ratio_score([6.0, 3.0], [2.0, 1.0])["stderr"] == 0.0, "every row has the ratio: no error"
    score = ratio_score([8.0, 1.0], [3.0, 1.0], False)
    assert score["value"] == 9 / 4 and score["n"] == 2 and score["higher_is_better"] is False
    assert score["stderr"] == pytest.approx(math.sqrt(2 * 1.25**2 / 2) / 2), "residuals 8 - 6.75 and 1 - 2.25, mean length 2"


def test_ratio_error_is_that_of_the_bootstrap() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(2, 80, size=300)
    nats = tokens * draw.gamma(4, 0.3, size=300) + draw.normal(0, 2, size=300)
    rows = draw.integers(0, 300, size=(4000, 300))
    bootstrap = (nats[rows].sum(1) / tokens[rows].sum(1)).std()
    assert ratio_score(nats, tokens)["stderr"] == pytest.approx(bootstrap, rel=0.04)


def test_a_constant_length_makes_the_ratio_a_mean() -> None:
    nats = [3.0, 5.0, 1.0, 8.0]
    ratio, mean = ratio_score(nats, [4] * 4), mean_score([value / 4 for value in nats])
    assert ratio["value"] == pytest.approx(mean["value"]) and ratio["stderr"] == pytest.approx(mean["stderr"])


# --- Wilson, accuracy, length


@given(n=st.integers(1, 500), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_scipys(n: int, share: float, confidence: float) -> None:
    wins = round(share * n)
    expected = stats.binomtest(wins, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(wins / n, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_accuracy_by_hand_with_a_tie() -> None:
    score = accuracy_score([2.0, -1.0, 0.0, 0.5], 0.95)
    assert score["value"] == (1 + 0 + 0.5 + 1) / 4 and score["n"] == 4 and score["higher_is_better"] is True
    assert score["stderr"] == pytest.approx(stats.sem([1, 0, 0.5, 1]))
    assert (score["low"], score["high"]) == wilson_interval(0.625, 4, 0.95)
    assert score["low"] < 0.5 < score["high"]


def test_equal_models_score_one_half() -> None:
    assert accuracy_score([0.0] * 50, 0.95)["value"] == 0.5


lengths = st.lists(st.integers(1, 12), min_size=1, max_size=25)


@given(human=lengths, generated=lengths)
def test_auc_is_mann_whitneys(human: list[int], generated: list[int]) -> None:
    area = stats.mannwhitneyu(human, generated).statistic / (len(human) * len(generated))
    score = auc_score(human, generated)
    assert score["value"] == pytest.approx(max(area, 1 - area)) == pytest.approx(auc_score(generated, human)["value"])
    assert score["n"] == len(generated) and score["higher_is_better"] is False


def test_auc_by_hand() -> None:
    assert auc_score([1, 2, 3], [4, 5])["value"] == 1.0
    assert auc_score([4, 4], [4, 4, 4])["value"] == 0.5
    assert auc_score([1, 3], [2, 3])["value"] == pytest.approx(1 - (0 + 0 + 1 + 0.5) / 4)


def test_the_error_of_the_auc_by_hand() -> None:
    """Hanley and McNeil 1982: A (1 - A) + (m - 1)(Q1 - A^2) + (n - 1)(Q2 - A^2) over m n, Q1 = A / (2 - A), Q2 = 2 A^2 / (1 + A);
    m counts the side with the larger numbers.
    """
    area = 5.5 / 8  # all four are above the 1; of the 3, one is above and one ties
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    expected = math.sqrt((area * (1 - area) + (4 - 1) * (q1 - area**2) + (2 - 1) * (q2 - area**2)) / (4 * 2))
    score, turned = auc_score([1, 3], [2, 3, 2, 4]), auc_score([2, 3, 2, 4], [1, 3])
    assert score["value"] == pytest.approx(area) and score["stderr"] == pytest.approx(expected)
    assert (turned["value"], turned["stderr"]) == pytest.approx((area, expected))
    assert auc_score([1, 2], [3, 4, 5])["stderr"] == 0.0, "all separated: the formula has no spread left"
    assert auc_score([1], [1])["stderr"] == pytest.approx(0.5)


@pytest.mark.parametrize(("scale", "counts"), [(2.5, (80, 60)), (0.4, (80, 60)), (2.5, (30, 200)), (1.8, (100, 100))])
def test_the_error_of_the_auc_is_that_of_many_draws(scale: float, counts: tuple[int, int]) -> None:
    """Of exponentials, which the formula is derived for, far enough apart that the side never turns."""
    draw = np.random.default_rng(0)
    found = [
        auc_score((1e6 * draw.exponential(1.0, counts[0])).astype(int), (1e6 * draw.exponential(scale, counts[1])).astype(int))
        for _ in range(3000)
    ]
    spread = float(np.std([score["value"] for score in found]))
    assert float(np.mean([score["stderr"] for score in found])) == pytest.approx(spread, rel=0.06)


# --- answers

AFTER_EQUALS = re.compile("[^=]+$")


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"[^=]+$", "35 - 17 = 18", "18"),
        (r"[^=]+$", "35 - 17 = 18\n", "18"),
        (r"[^=]+$", "apple, bread", "apple, bread"),
        (r"[^=]+$", "", None),
        (r"[^=]+$", "1 + 1 =", None),
        (r"#### (-?\d+)", "so #### 3, no: #### -4 in all", "-4"),
        (r"#### (-?\d+)", "four", None),
        (r"\d+", "2 and 30", "30"),
        (r"(?:(yes)|no)", "yes, no", "yes"),  # group 1 did not take part in the last match
        (r".*", "text", "text"),  # an empty match follows at the end of every text
        (r"\d*", "12 apples", "12"),
        (r"\d*", "apples", None),
        (r"answer:(.*)", "answer: 5\nanswer:  ", "5"),
    ],
)
def test_answers_by_hand(pattern: str, text: str, answer: str | None) -> None:
    assert find_answer(re.compile(pattern), text) == answer


def test_scores_are_plain_numbers() -> None:
    """They go into JSON."""
    draw = random.Random(0)
    margins = [draw.gauss(0, 1) for _ in range(20)]
    for score in (mean_score(margins), ratio_score(margins, [2] * 20), accuracy_score(margins, 0.95), auc_score([1, 2], [2, 3])):
        assert all(type(value) in (float, int, bool, type(None)) for value in score.values())
