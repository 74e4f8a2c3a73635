"""The sentence that a comparison opens with."""

from __future__ import annotations

from typing import Any

import pytest

from sparring.comparison.compare import ComparisonCell, ComparisonRow, Metric, RunComparison, verdict
from sparring.comparison.statistics import Paired
from sparring.cost import Cost


def compared(values: dict[str, float], p: float | None, higher: bool | None = True) -> RunComparison:
    """Players of one run against its start, the last of them with a p-value."""
    metric = Metric("exact_match", higher, "held-out rows", 60)
    rows = []
    for player, value in values.items():
        paired = None if player == "start" else Paired(value - values["start"], 0.01, None, None, p, "McNemar", 60)
        score: Any = {"value": value, "n": 60, "stderr": 0.1, "higher_is_better": higher}
        cell = ComparisonCell(score, paired, None if player == "start" else p)
        rows.append(ComparisonRow("a", player, player, False, False, False, Cost(), None, {"exact_match": cell}))
    return RunComparison("a:start", "rows", 60, (metric,), tuple(rows), (), 0.95, 0)


@pytest.mark.parametrize(("p", "told"), [(0.01, "significant (p 0.01 after Holm)"), (0.2, "not significant (p 0.2 after Holm)")])
def test_who_stands_first_and_whether_by_more_than_chance(p: float, told: str) -> None:
    (line,) = verdict(compared({"start": 0.2, "0": 0.5, "1": 0.4}, p))
    assert line == f"By exact match a: 0 is first with 0.5000, +0.3000 from a: start, {told}; then a: 1 0.4000, a: start 0.2000."


def test_of_a_loss_the_smallest_stands_first() -> None:
    (line,) = verdict(compared({"start": 0.2, "0": 0.5}, 0.01, higher=False))
    assert line == "By exact match a: start is first with 0.2000; then a: 0 0.5000."


def test_equals_and_what_has_no_better() -> None:
    assert list(verdict(compared({"start": 0.0, "0": 0.0}, 1.0))) == ["By exact match all are equal, at 0.0000."]
    assert list(verdict(compared({"start": 0.0, "0": 1.0}, 1.0, higher=None))) == []
