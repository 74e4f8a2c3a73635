"""The headroom of a start as a table: what was measured, each with its error, and its sentence, in the terminal and on the page."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from sparring.report.tables import headroom_markup, headroom_table, print_headroom

FOUND: dict[str, Any] = {
    "k": 8,
    "scores": {
        "pass_at_1": {"value": 0.5, "n": 40, "stderr": 0.05},
        "greedy": {"value": 0.6, "n": 40, "stderr": 0.06},
        "cool": {"value": 0.55, "n": 40, "stderr": 0.05},
        "any": {"value": 0.9, "n": 40, "stderr": 0.03},
        "nll": {"value": 0.25, "n": 40, "stderr": None},
    },
    "sentence": "The start answers 50.0% <b>.",
}


def test_only_what_was_measured_is_shown_and_k_is_named() -> None:
    found = headroom_table(FOUND)
    [row] = found.rows
    assert dict(zip(found.headers, row, strict=True)) == {
        "model": "start",
        "pass@1": "0.500 ± 0.050",
        "greedy": "0.600 ± 0.060",
        "at temperature 0.7": "0.550 ± 0.050",
        "pass@8": "0.900 ± 0.030",
        "NLL / token": "0.250",
    }


def test_terminal_and_page_say_the_same() -> None:
    text = io.StringIO()
    print_headroom(FOUND, Console(file=text, width=160))
    page = str(headroom_markup(FOUND))
    assert "The start answers 50.0% <b>." in text.getvalue() and "The start answers 50.0% &lt;b&gt;." in page
    for value in ("0.900 ± 0.030", "pass@8"):
        assert value in text.getvalue() and value in page
