"""The files of a run directory that its report needs, and the results of a run in the terminal: tables, warnings, the verdict, and next
commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import Recipe, recipe_of_run
from sparring.console import printable
from sparring.data.tables import read_rows
from sparring.errors import UserError, first_line
from sparring.report.health import signs, warnings
from sparring.report.outcome import Samples, next_steps, ranking, verdict_lines
from sparring.report.summary import OF_SUMMARY, SUMMARY, facts_of
from sparring.report.tables import (
    TableRow,
    print_benchmarks,
    print_headroom,
    print_replies,
    print_table,
    rows_of,
    score_tables,
    target_tables,
)
from sparring.rundir import DONE, MANIFEST, read_json, read_object
from sparring.stage_names import METRICS, SAMPLES, SHOWCASE, START, iteration_of, recipe_of_game

T = TypeVar("T")
HELD_OUT = 2  # prompts that are shown if the recipe has no showcase


@dataclass(frozen=True)
class ReportPlayer:
    """A model of the run with its samples; `apart`: not a player of the game, such as a control."""

    row: TableRow
    samples: Samples
    showcase: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The player's name in tables."""
        return self.row.model

    @property
    def apart(self) -> bool:
        """Whether it is neither the start nor an iteration's player."""
        return iteration_of(self.row.stage) is None and self.row.stage != f"{START}/evaluate"


@dataclass(frozen=True)
class RunFiles:
    """A run up to its last summary. Players: start, iterations, controls if there are any."""

    root: Path
    recipe: Recipe
    summary: Mapping[str, Any]
    players: list[ReportPlayer]
    steps: list[dict[str, Any]]
    attempts: list[dict[str, Any]]

    @property
    def is_over(self) -> bool:
        """Whether the game has ended."""
        return self.summary["stop_reason"] is not None

    @property
    def played(self) -> list[ReportPlayer]:
        """The players of the game itself."""
        return [player for player in self.players if not player.apart]

    def facts(self, stage: str) -> dict[str, Any]:
        """The facts of a finished stage; empty if there is no such stage."""
        return _read(self.root / stage / DONE, lambda _: facts_of(self.root, stage))


def read_run(root: Path) -> RunFiles:
    """Read a run. Raises UserError if there is no run, no finished iteration, or a file that cannot be read."""
    recipe = _require_run(root)
    summary = _read(root / SUMMARY, lambda file: read_object(file, *OF_SUMMARY))
    try:
        rows = list(rows_of(summary))
        if summary["best"] is not None and "ranking" not in summary:  # as earlier versions wrote it
            summary["ranking"] = ranking(root, rows, summary["best"]["metric"], recipe.stop.confidence)
    except (KeyError, TypeError):
        raise UserError("this is not a file that a run wrote: it was changed by hand", where=str(root / SUMMARY)) from None
    manifest = root / MANIFEST
    return RunFiles(
        root,
        recipe,
        summary,
        [read_player(root, row) for row in rows],
        _read(root / METRICS, _json_lines),
        _read(manifest, lambda file: read_object(file, "attempts"))["attempts"] if manifest.exists() else [],
    )


def _require_run(root: Path) -> Recipe:
    if not root.is_dir():
        raise UserError("no such run directory", where=str(root), remedy="give the run_dir of a recipe that has been run")
    recipe = recipe_of_game(root)
    if not (root / SUMMARY).is_file():
        raise UserError(
            "no iteration of this run is finished yet, so there is nothing to report",
            where=str(root),
            remedy=f"`sparring run {root / 'recipe.yaml'}` resumes it",
        )
    return recipe


def read_player(root: Path, row: TableRow) -> ReportPlayer:
    """The model of a row with its samples and its replies to the showcase."""
    folder = root / row.stage
    samples = {sample["row_id"]: sample for sample in _read(folder / SAMPLES, read_rows)}
    showcase = _read(folder / SHOWCASE, read_json) if (folder / SHOWCASE).exists() else []
    return ReportPlayer(row, samples, showcase)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _read(path: Path, reader: Callable[[Path], T]) -> T:
    try:
        return reader(path)
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:  # text that is not UTF-8 or JSON is a ValueError
        known = "there is none" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None)  # pyarrow's have none
        remedy = "restore it, or redo its stage with --restart-from"
        raise UserError(f"cannot read this file: {known or first_line(error)}", where=str(path), remedy=remedy) from None


def showcase_of(players: Sequence[ReportPlayer]) -> list[tuple[str, dict[str, str]]]:
    """(prompt, model -> its reply) for the prompts of the recipe's showcase, or for those of the first held-out rows."""
    shown: dict[str, Sequence[Mapping[str, Any]]] = {
        player.name: player.showcase or [player.samples[row] for row in sorted(player.samples)[:HELD_OUT]] for player in players
    }
    replies: dict[str, dict[str, str]] = {}
    for name, entries in shown.items():  # by prompt: while a game resumes, not all players have the recipe's present showcase
        for entry in entries:
            replies.setdefault(entry["prompt"], {})[name] = entry["reply"]
    return list(replies.items())


def print_summary(summary: Mapping[str, Any], root: Path, console: Console) -> None:
    """Print the tables of quality, duels and replies, the showcase replies of every model, the warnings, the verdict and next steps."""
    rows = list(rows_of(summary))
    shown = showcase_of([read_player(root, row) for row in rows])  # a missing file is reported before anything is printed
    for found in score_tables(summary):
        print_table(found, console)
    if "headroom" in summary:
        print_headroom(summary["headroom"], console)
    for found in target_tables(summary):
        print_table(found, console)
    print_benchmarks(rows, facts_of(root, f"{START}/benchmarks"), console)
    for prompt, replies in shown:
        print_replies(prompt, replies, console)
    for line in warnings(signs(summary, recipe_of_run(root))):
        console.print(Text(f"Warning: {printable(line)}", style="yellow"))
    for line in verdict_lines(summary, str(root)):
        console.print(Text(printable(line)))
    steps = Table.grid(padding=(0, 2))
    for name, value in next_steps(root, summary):
        steps.add_row(Text(name), Text(printable(value), overflow="fold"))
    console.print(steps)
