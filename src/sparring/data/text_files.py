"""Rows of .jsonl, .json and .csv files.

They are parsed here rather than by `datasets`: its JSON reader turns text that looks like a date into a timestamp,
its CSV reader turns empty cells into nulls, neither says in which line a fault stands, and both copy the file into a cache.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparring.data.rows import LocatedRow, Rows, located_rows
from sparring.errors import UserError


def read_jsonl(path: Path) -> Rows:
    return located_rows(str(path), _json_lines(_text_of(path), path))


def _json_lines(text: str, path: Path) -> Iterator[LocatedRow]:
    # Only "\n" ends a line: str.splitlines would also break at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parse_json(line, f"{path}, line {number}", "a .jsonl file holds one JSON object per line")


def read_json(path: Path) -> Rows:
    """A list of rows, one row, or JSON Lines under the wrong extension, which is common."""
    text = _text_of(path)
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        first_line = text.lstrip().split("\n", 1)[0]
        if _is_json_object(first_line):
            return located_rows(str(path), _json_lines(text, path))
        what = f"broken JSON: {error.msg} (column {error.colno})"
        raise UserError(what, where=f"{path}, line {error.lineno}", remedy="a .json file holds a list of rows") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"broken JSON: {error}", where=str(path)) from None
    rows = value if isinstance(value, list) else [value]
    return located_rows(str(path), ((f"row {n}", row) for n, row in enumerate(rows, 1)))


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_json(line: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        near = line[max(0, error.pos - 20) : error.pos + 20].strip()
        raise UserError(f"broken JSON: {error.msg} (column {error.colno}, near {near!r})", where=where, remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"broken JSON: {error}", where=where, remedy=remedy) from None


def read_csv(path: Path) -> Rows:
    """Every cell is text; an empty cell is ""."""
    csv.field_size_limit(2**31 - 1)  # the standard limit of 128 KiB is less than a long conversation
    lines = _csv_lines(csv.reader(io.StringIO(_text_of(path), newline=""), strict=True), path)
    _, header = next(lines, (1, []))
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"the header names {', '.join(map(repr, repeated))} more than once", where=f"{path}, line 1")
    rows = located_rows(str(path), _csv_rows(lines, header, path))
    return Rows(rows.source, tuple(header), rows.items)


def _csv_lines(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records that hold a cell, with the line in which each starts."""
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "close every quote, and write a quote inside a quoted cell twice"
            raise UserError(f"broken CSV: {error}", where=f"{path}, line {start}", remedy=remedy) from None
        if cells:
            yield start, cells
        start = reader.line_num + 1  # type: ignore[attr-defined]


def _csv_rows(lines: Iterable[tuple[int, list[str]]], header: list[str], path: Path) -> Iterator[LocatedRow]:
    for line, cells in lines:
        if len(cells) != len(header):
            what = f"broken CSV: {len(cells)} cells, but the header names {len(header)} columns"
            raise UserError(what, where=f"{path}, line {line}", remedy="put cells that hold commas or line breaks in quotes")
        yield f"line {line}", dict(zip(header, cells, strict=True))


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(path), remedy="check its permissions") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8: byte 0x{data[error.start]:02x}"
        raise UserError(what, where=f"{path}, line {line}", remedy="save the file in UTF-8") from None
