"""What both commands print alike: replies to read, with their grades."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.checkers.grades import Grade
from sparring.console import printable

SHOWN = 600  # characters of a text


def print_records(title: str, records: Iterable[Mapping[str, str]], console: Console) -> None:
    """One table with a block of named lines for each record; nothing where there is none."""
    table = Table(title=Text(printable(title)), title_justify="left", show_header=False)
    for record in records:
        for name, text in record.items():
            table.add_row(name, Text(printable(text)))
        table.add_section()
    if table.row_count:
        console.print(table)


def grade_text(grade: Grade) -> str:
    """The answer and the reason of a grade on one line, both shortened."""
    answer = "no answer" if grade.answer is None else f"answer {excerpt(grade.answer, 100)}"
    return f"{answer}; {excerpt(grade.reason, 200)}"


def excerpt(text: str, length: int = SHOWN) -> str:
    """A text, or its beginning and its end, where answers usually are."""
    return text if len(text) <= length else f"{text[: length // 2]} [...] {text[-(length // 2) :]}"
