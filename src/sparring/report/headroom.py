"""What the start of a game left to gain: a small table and a sentence, in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.console import fitting
from sparring.report.page import paragraph, table
from sparring.rundir import read_json
from sparring.stage_names import HEADROOM, headroom_stage

TITLE = "Headroom of the start"
# score -> its name; k is the number of replies
NAMES = {
    "pass_at_1": "pass@1",
    "greedy": "greedy",
    "cool": "at temperature 0.7",
    "majority": "maj@{k}",
    "any": "pass@{k}",
    "nll": "NLL / token",
    "nll_after": "NLL after more SFT",
}


def headroom_of(root: Path) -> dict[str, Any] | None:
    """What the run in `root` has measured of its start; None where there is none yet."""
    file = root / headroom_stage() / HEADROOM
    return read_json(file) if file.exists() else None


def headroom_cells(found: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value with its standard error, of what was measured."""
    return {
        name.format(k=found["k"]): f"{score['value']:.3f} ± {score['stderr'] or 0:.3f}"
        for key, name in NAMES.items()
        if (score := found["scores"].get(key)) is not None
    }


def print_headroom(found: Mapping[str, Any], console: Console) -> None:
    """The table in one row, and its sentence."""
    cells = headroom_cells(found)
    shown = Table(title=TITLE, title_justify="left")
    for name in cells:
        shown.add_column(name, justify="right")
    shown.add_row(*(fitting(cell, console) for cell in cells.values()))
    console.print(shown)
    console.print(Text(found["sentence"]))


def headroom_markup(found: Mapping[str, Any]) -> Markup:
    """The same for the page."""
    cells = headroom_cells(found)
    return paragraph(found["sentence"]) + table(f"{TITLE} (± standard error over prompts)", ["", *cells], [["start", *cells.values()]])
