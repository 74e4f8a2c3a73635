"""The comparison for programs."""

from __future__ import annotations

from typing import Any

from sparring.comparison.compare import ComparisonCell, ComparisonRow, Metric, RunComparison
from sparring.comparison.statistics import RESAMPLES


def as_json(found: RunComparison) -> dict[str, Any]:
    """The comparison as an object for JSON: what was paired over what, and every cell with its difference, interval and p values."""
    return {
        "against": found.against,
        "paired_over": found.unit,
        "n": found.count,
        "confidence": found.confidence,
        "seed": found.seed,
        "resamples": RESAMPLES,
        "holm_family": found.tests,
        "metrics": {metric.name: _metric(metric) for metric in found.metrics},
        "players": [_player(row) for row in found.rows],
        "notes": list(found.notes),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "higher_is_better": metric.higher_is_better,
        "paired_over": metric.unit,
        "n": metric.count,
        "benchmark": None if metric.asked is None else dict(metric.asked),
    }


def _player(row: ComparisonRow) -> dict[str, Any]:
    return {
        "run": row.run,
        "player": row.player,
        "title": row.title,
        "is_best": row.is_best,
        "still_going": row.is_unfinished,
        "compute": {"tokens": row.cost.tokens, "flops": row.flops, "wall_seconds": round(row.cost.wall_seconds, 3)},
        "scores": {name: _cell(cell) for name, cell in row.cells.items()},
    }


def _cell(cell: ComparisonCell) -> dict[str, Any] | None:
    if cell.score is None:
        return None
    paired = None if cell.paired is None else {**vars(cell.paired), "p_holm": cell.p_holm}
    return {"value": cell.score["value"], "stderr": cell.score["stderr"], "n": cell.score["n"], "difference": paired}
