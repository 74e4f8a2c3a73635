"""`sparring compare`: from the command line's words to the tables and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sparring.comparison.as_json import as_json
from sparring.comparison.compare import compare
from sparring.comparison.tables import markdown, print_comparison
from sparring.errors import UserError
from sparring.rundir import write_json, write_text


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
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError("the folder does not exist", where=f"--{option} ({file})", remedy=f"make {file.absolute().parent} first")
    found = compare(folders, against, metrics, unfinished, seed)
    if files.json is not None:
        write_json(files.json, as_json(found))
    if files.markdown is not None:
        write_text(files.markdown, markdown(found))
    if files.html is not None:
        from sparring.comparison.page import html

        write_text(files.html, html(found))
    print_comparison(found, console)
