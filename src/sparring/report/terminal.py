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
from sparring.report.tables import print_benchmarks, print_headroom, print_replies, print_table, rows_of, score_tables, target_tables
from sparring.stage_names import START


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
