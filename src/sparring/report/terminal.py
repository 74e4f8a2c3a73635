"""A run's results in the terminal: tables, warnings, the verdict, and suggested next commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import recipe_of_run
from sparring.console import printable
from sparring.report.health import signs, warnings
from sparring.report.outcome import SAMPLES, next_steps, read_samples, verdict_lines
from sparring.report.run_files import SHOWCASE, shown_of
from sparring.report.tables import (
    DUEL_COLUMNS,
    OUTCOMES_TITLE,
    RATES_TITLE,
    REPLY_COLUMNS,
    TableRow,
    outcome_columns,
    outcome_rows,
    print_benchmarks,
    print_headroom,
    print_table,
    quality_columns,
    rate_columns,
    rows_of,
)
from sparring.rundir import read_json
from sparring.stage_names import START, benchmark_stage


def print_summary(summary: Mapping[str, Any], root: Path, console: Console) -> None:
    """Print the tables of quality, duels and replies, the showcase replies of every model, the warnings, the verdict and next steps."""
    rows = list(rows_of(summary))
    held_out = next(iter(rows[0].scores.values()))["n"]
    print_table(f"Quality on {held_out} held-out prompts (± standard error)", quality_columns(rows[0].scores), rows, console)
    duels = [row for row in rows if row.opponent is not None]
    if duels:
        print_table("Duels: human replies against the opponent's, on the same prompts", DUEL_COLUMNS, duels, console)
    print_table("Replies to the same prompts", REPLY_COLUMNS, rows, console)
    _print_target(summary, console)
    _print_benchmarks(rows, root, console)
    _print_showcase(rows, root, console)
    for line in warnings(signs(summary, recipe_of_run(root))):
        console.print(Text(f"Warning: {printable(line)}", style="yellow"))
    for line in verdict_lines(summary, str(root)):
        console.print(Text(printable(line)))
    steps = Table.grid(padding=(0, 2))
    for name, value in next_steps(root, summary):
        steps.add_row(Text(name), Text(printable(value), overflow="fold"))
    console.print(steps)


def _print_target(summary: Mapping[str, Any], console: Console) -> None:
    """Tables of a verified or majority target: the headroom of the start, the winners, and the rates of the opponents' replies."""
    if "headroom" in summary:
        print_headroom(summary["headroom"], console)
    outcomes = list(outcome_rows(summary))
    if outcomes:
        print_table(OUTCOMES_TITLE, outcome_columns(outcomes), outcomes, console)
        if columns := rate_columns(outcomes):
            print_table(f"{RATES_TITLE} (± standard error)", columns, outcomes, console)


def _print_benchmarks(rows: list[TableRow], root: Path, console: Console) -> None:
    named = {row.model: {name: score for name, score in row.scores.items() if "/" in name} for row in rows}
    if any(named.values()):
        facts = read_json(root / benchmark_stage(START) / "done.json")["facts"]
        print_benchmarks(named, facts, console)


def _print_showcase(rows: list[TableRow], root: Path, console: Console) -> None:
    shown = {row.model: entries for row in rows if (entries := _shown(root / row.stage))}
    for index, first in enumerate(next(iter(shown.values()), [])):
        table = Table(title=Text(f"Prompt: {printable(first['prompt'])}"), title_justify="left", show_header=False)
        for name, entries in shown.items():
            table.add_row(name, Text(printable(entries[index]["reply"])))
        console.print(table)


def _shown(stage: Path) -> list[Mapping[str, str]]:
    file = stage / SHOWCASE
    return shown_of(read_json(file) if file.exists() else [], read_samples(stage / SAMPLES))
