"""Where rows come from: a file, the Hub or the built-in tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sparring.config import PairsSection
from sparring.data.arrow import read_hub, read_parquet
from sparring.data.rows import Rows, Source, located_rows
from sparring.data.text_files import read_csv, read_json, read_jsonl
from sparring.errors import UserError, nearest
from sparring.files import require_regular

TEXT_READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv}
PARQUET = ".parquet"
DATA_FILES = (*TEXT_READERS, PARQUET)
NOT_ON_HUB = (".txt", ".tsv", ".gz", ".zst", ".zip", ".arrow", ".xlsx", ".yaml", ".yml")


def read_rows(section: Source, seed: int, further: Sequence[str] = ()) -> Rows:
    """All rows of `section.path`, each with its place ("FILE, line 3"; rows count from 1). A local file wins over a Hub id.

    further: columns that are read, where there are any, beside those of the known shapes and that of the answer.
    """
    answer = None if isinstance(section, PairsSection) else section.answer
    rows = _read(section, seed, [*further, *([answer] if answer else [])])
    if not rows.items:
        option = section.option
        raise UserError("the data is empty: it holds no row", where=rows.source, remedy=f"check {option}.path (and {option}.split)")
    if answer is not None and answer not in rows.columns:
        guess = nearest(answer, rows.columns)
        what = f"there is no column {answer!r} ({section.option}.answer); the columns are: {', '.join(rows.columns)}"
        raise UserError(what, where=rows.source, remedy=f"did you mean {guess}?" if guess else f"correct {section.option}.answer")
    return rows


def _read(section: Source, seed: int, further: Sequence[str]) -> Rows:
    if section.path.startswith("builtin:"):
        _refuse_hub_options(section, "the built-in tasks")
        return _read_builtin(section.path, seed)
    path = local_file(section)
    if path is None:
        return read_hub(section, further)
    _refuse_hub_options(section, "a local file")
    suffix = path.suffix.lower()
    return read_parquet(path, section, further) if suffix == PARQUET else TEXT_READERS[suffix](path)


def local_file(section: Source) -> Path | None:
    """The file that the section's `path` names, None for a Hub id or built-in data. Raises UserError when it is missing or no data file."""
    path = Path(section.path).expanduser()
    if section.path.startswith("builtin:") or (not _exists(path) and _may_be_hub_id(section.path)):
        return None
    if not _exists(path):
        raise UserError("no such data file", where=str(path), remedy=_other_files(path) or f"check {section.option}.path")
    require_regular(path, str(path))
    if path.is_dir():
        raise UserError("is a folder, not a data file", where=str(path), remedy=_other_files(path / "x") or "name one file")
    if path.suffix.lower() not in DATA_FILES:
        known = ", ".join(DATA_FILES)
        raise UserError(f"unknown kind of file {path.suffix or '(no extension)'!r}; known: {known}", where=str(path), remedy="convert it")
    return path


def _read_builtin(path: str, seed: int) -> Rows:
    if path != "builtin:tasks":
        raise UserError(f"{path!r} is not built in", where="data.path", remedy="the built-in data is builtin:tasks")
    from sparring.data.tasks import task_rows

    return located_rows(path, ((f"row {n}", row) for n, row in enumerate(task_rows(seed), 1)))


def _refuse_hub_options(section: Source, what: str) -> None:
    for key in ("name", "revision"):
        if (value := getattr(section, key)) is not None:
            raise UserError(
                f"{value!r} is for Hub data sets, but {section.path} is {what}", where=f"{section.option}.{key}", remedy="leave it out"
            )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a parent folder that may not be searched, a name that is too long: reading it will say so
        return True


def _may_be_hub_id(path: str) -> bool:
    has_form = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path)
    return bool(has_form) and not path.lower().endswith((*DATA_FILES, *NOT_ON_HUB))


def _other_files(path: Path) -> str | None:
    """A hint that names the data files beside a missing one, the closest name first."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in DATA_FILES)
    except OSError:
        return f"the folder {path.parent} does not exist either, or cannot be read"
    guess = nearest(path.name, names)
    if guess:
        return f"did you mean {path.parent / guess}?"
    return f"data files in that folder: {', '.join(names[:8])}" if names else None
