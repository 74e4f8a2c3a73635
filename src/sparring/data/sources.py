"""The sources of rows: files, the Hub or the built-in tasks."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sparring.config import PairsSection
from sparring.data.row_files import UNPACKERS, read_csv, read_hub, read_json, read_jsonl, read_parquet
from sparring.data.shapes import BadRows, Source, Table, joined, table_of
from sparring.errors import UserError, nearest, suggestion
from sparring.files import require_regular

TEXT_READERS: dict[str, Callable[[Path, BadRows], Table]] = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv}
READERS = {**TEXT_READERS, ".parquet": read_parquet}
DATA_FILES = (*READERS, *(f"{kind}{packing}" for kind in TEXT_READERS for packing in UNPACKERS))
NOT_ON_HUB = (".txt", ".tsv", ".gz", ".zst", ".zip", ".arrow", ".xlsx", ".yaml", ".yml")
# Words in file names that mark the parts of a data set
PARTS = {"train": "train", "test": "test", **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation")}


def open_table(section: Source, seed: int, bad: BadRows) -> Table:
    """The source that `section.path` names. A local file is preferred to a Hub id. Raises UserError if it cannot be read."""
    table = _open(section, seed, bad)
    option = section.option
    if not table.count and bad.first is not None:
        what = f"none of its {bad.count} rows can be read; the first: {bad.first.what}"
        raise UserError(what, where=bad.first.where, remedy=bad.first.remedy)
    if not table.count:
        raise UserError("the data is empty: it has no rows", where=table.source, remedy=f"check {option}.path (and {option}.split)")
    answer = None if isinstance(section, PairsSection) else section.answer
    if answer is not None and answer not in table.columns:
        what = f"there is no column {answer!r} ({option}.answer); the columns are: {', '.join(table.columns)}"
        raise UserError(what, where=table.source, remedy=suggestion(answer, table.columns, otherwise=f"correct {option}.answer"))
    return table


def _open(section: Source, seed: int, bad: BadRows) -> Table:
    if section.named.startswith("builtin:"):
        _refuse_hub_options(section, "built-in data")
        return _with_unused_split(_builtin(section.named, seed, bad), section)
    files = local_files(section)
    if files is None:
        return read_hub(section)
    _refuse_hub_options(section, "a local file")
    return _with_unused_split(_of_files(files, section, bad), section)


def _of_files(files: list[Path], section: Source, bad: BadRows) -> Table:
    tables = [READERS[_kind(file)](file, bad) for file in files]
    if len(tables) == 1:
        return tables[0]
    notice = f"{section.named}: {len(files)} files, {', '.join(file.name for file in files[:8])}{', ...' if len(files) > 8 else ''}"
    return joined(section.named, tables, notice)


def local_files(section: Source) -> list[Path] | None:
    """The files that the section's `path` names: one, those of a folder or of a pattern in the order of their names, or those of a list.

    None for a Hub id or built-in data. Raises UserError if one is missing or is not a data file.
    """
    path = section.named
    may_be_hub_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path) and not path.lower().endswith(
        (*DATA_FILES, *NOT_ON_HUB)
    )
    if len(section.paths) == 1 and (path.startswith("builtin:") or (may_be_hub_id and not _exists(Path(path).expanduser()))):
        return None
    files = [file for path in section.paths for file in _files_of(path, section)]
    twice = next((file for place, file in enumerate(files) if file in files[:place]), None)
    if twice is not None:
        raise UserError("is named more than once", where=f"{section.option}.path: {twice}", remedy="name every file once")
    return files


def _files_of(text: str, section: Source) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        return _files_in(path)
    if _exists(path) or not glob.has_magic(text):
        return [_data_file(path, section)]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [file for file in found if file.is_file()]
    if not files:
        raise UserError("no file fits this pattern", where=f"{section.option}.path: {text}", remedy="check the folder and the pattern")
    return [_data_file(file, section) for file in files]


def _files_in(folder: Path) -> list[Path]:
    """The data files of a folder, without hidden ones, as with a pattern: systems add such files to folders.

    Raises UserError if they are not clearly the parts of one data set.
    """
    try:
        shown = (file for file in folder.iterdir() if not file.name.startswith("."))
        files = sorted(file for file in shown if file.name.lower().endswith(DATA_FILES) and file.is_file())
    except OSError as error:
        raise UserError(f"cannot read the folder: {error.strerror}", where=str(folder), remedy="check its permissions") from None
    if not files:
        raise UserError("the folder has no data file", where=str(folder), remedy=f"known kinds: {', '.join(DATA_FILES)}")
    kinds = sorted({_kind(file) for file in files})
    parts = sorted({part for file in files if (part := _part(file))})
    for found, of in ((kinds, "kind"), (parts, "part of a data set")):
        if len(found) > 1:
            names = ", ".join(file.name for file in files[:8])
            what = f"the folder has files of more than one {of} ({', '.join(found)}): {names}"
            pattern = f"{folder / '*'}{_kind(files[0])}"
            raise UserError(what, where=str(folder), remedy=f"name the files to read, for example by a pattern: {pattern}")
    return files


def _part(file: Path) -> str | None:
    """The part of a data set that a file's name indicates, `train-00000-of-00002.parquet` for example."""
    return next((PARTS[word] for word in re.split(r"[^a-z]+", file.name.lower()) if word in PARTS), None)


def _data_file(path: Path, section: Source) -> Path:
    if not _exists(path):
        raise UserError("no such data file", where=str(path), remedy=_other_files(path) or f"check {section.option}.path")
    require_regular(path, str(path))
    if not path.name.lower().endswith(DATA_FILES):
        known = ", ".join(DATA_FILES)
        raise UserError(f"unknown kind of file {path.suffix or '(no extension)'!r}; known: {known}", where=str(path), remedy="convert it")
    return path


def _kind(file: Path) -> str:
    """The suffix that says how a data file is read."""
    packed = file.suffix.lower() in UNPACKERS
    return (Path(file.stem) if packed else file).suffix.lower()


def _builtin(path: str, seed: int, bad: BadRows) -> Table:
    from sparring.data.tasks import digit_rows, task_rows

    make = {"builtin:tasks": task_rows, "builtin:digits": digit_rows}.get(path)
    if make is None:
        raise UserError(f"{path!r} is not built in", where="data.path", remedy="the built-in data are builtin:digits and builtin:tasks")
    return table_of(path, ((f"row {n}", row) for n, row in enumerate(make(seed), 1)), bad)


def _refuse_hub_options(section: Source, what: str) -> None:
    for key in ("name", "revision"):
        if (value := getattr(section, key)) is not None:
            why = f"{value!r} is for Hub data sets, but {section.named} is {what}"
            raise UserError(why, where=f"{section.option}.{key}", remedy="leave it out")


def _with_unused_split(table: Table, section: Source) -> Table:
    """The table with a notice of a split that was asked for. It is not refused: a recipe for a Hub data set may be played on a file."""
    if section.split == type(section).model_fields["split"].default:
        return table
    notice = f"{section.option}.split {section.split} has no effect: {section.named} is read as a whole"
    return replace(table, notices=(notice, *table.notices))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a parent folder without permission, or a name that is too long: reading it will report that
        return True


def _other_files(path: Path) -> str | None:
    """A hint with the data files in the folder of a missing one, the closest name first."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.name.lower().endswith(DATA_FILES))
    except OSError:
        return f"the folder {path.parent} does not exist either, or cannot be read"
    guess = nearest(path.name, names)
    if guess:
        return f"did you mean {path.parent / guess}?"
    return f"data files in that folder: {', '.join(names[:8])}" if names else None
