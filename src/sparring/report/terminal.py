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
from sparring.report.outcome import next_steps, verdict_lines
from sparring.report.run_files import read_player, showcase_of
from sparring.report.summary import facts_of
from sparring.report.tables import (
    OUTCOMES_TITLE,
    RATES_TITLE,
    TableRow,
    outcome_columns,
    outcome_rows,
    print_benchmarks,
    print_headroom,
    print_replies,
    print_table,
    rate_columns,
    rows_of,
    score_tables,
)
from sparring.stage_names import START


def print_summary(summary: Mapping[str, Any], root: Path, console: Console) -> None:
    """Print the tables of quality, duels and replies, the showcase replies of every model, the warnings, the verdict and next steps."""
    rows = list(rows_of(summary))
    shown = showcase_of([read_player(root, row) for row in rows])  # a missing file is reported before anything is printed
    for title, columns, of_models in score_tables(summary):
        print_table(title, columns, of_models, console)
    _print_target(summary, console)
    _print_benchmarks(rows, root, console)
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
        print_benchmarks(named, facts_of(root, f"{START}/benchmarks"), console)
