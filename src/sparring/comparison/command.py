"""`sparring compare`: from the options of the command to the tables and files, and the comparison as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from sparring.comparison.compare import ComparisonCell, ComparisonRow, Metric, RunComparison, compare
from sparring.comparison.statistics import RESAMPLES
from sparring.comparison.tables import markdown, print_comparison
from sparring.files import require_folder_of
from sparring.rundir import write_json, write_text


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


@dataclass(frozen=True)
class Files:
    """The files that the comparison is written to, in addition to the terminal."""

    json: Path | None = None
    markdown: Path | None = None
    html: Path | None = None


def show_comparison(
    folders: Sequence[Path],
    against: str | None,
    metrics: Sequence[str],
    unfinished: bool,
    seed: int,
    files: Files,
    console: Console,
) -> None:
    """Compare the runs in `folders`, write the requested files and print the tables. Raises UserError if a file's folder does not exist."""
    for option, file in vars(files).items():
        require_folder_of(file, f"--{option}")
    found = compare(folders, against, metrics, unfinished, seed)
    if files.json is not None:
        write_json(files.json, as_json(found))
    if files.markdown is not None:
        write_text(files.markdown, markdown(found))
    if files.html is not None:
        from sparring.comparison.page import html

        write_text(files.html, html(found))
    print_comparison(found, console)
