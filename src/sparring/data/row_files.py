"""Rows of files: .jsonl, .json and .csv, which may be compressed, and parquet; and rows of the Hub's data sets.

Text files are parsed here rather than by `datasets`: its JSON reader turns text that looks like a date into a timestamp,
its CSV reader turns empty cells into nulls, neither reports the line of an error, and both copy the file into a cache.
Of Arrow only the requested columns are read or decoded."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.data.shapes import KNOWN_COLUMNS, BadRows, LocatedRow, Source, Table, parse_json, parsed, table_of
from sparring.errors import UserError, first_line

if TYPE_CHECKING:
    from _csv import Reader

    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset

# Limit after decompression: more than the largest public SFT sets, and still small enough to hold as rows in memory.
MAX_DECOMPRESSED = 16 * 2**30
_PIECE = 2**24


def _zstd(data: bytes) -> io.BufferedIOBase:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.BufferReader(data), "zstd")


UNPACKERS: dict[str, Callable[[bytes], io.BufferedIOBase]] = {".gz": lambda data: gzip.GzipFile(fileobj=io.BytesIO(data)), ".zst": _zstd}


def bytes_of(path: Path) -> bytes:
    """The content of the file, decompressed according to its name, without a byte order mark. Raises UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(path), remedy="check its permissions") from None
    if unpacker := UNPACKERS.get(path.suffix.lower()):
        try:
            data = _bounded(unpacker(data), path)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"cannot decompress the file: {first_line(error)}", where=str(path), remedy="write it again") from None
    return data.removeprefix(b"\xef\xbb\xbf")


def _bounded(stream: io.BufferedIOBase, path: Path) -> bytes:
    text = bytearray()
    while piece := stream.read(_PIECE):
        text += piece
        if len(text) > MAX_DECOMPRESSED:
            what = f"holds more than {MAX_DECOMPRESSED:,} bytes when it is decompressed"
            raise UserError(what, where=str(path), remedy="split it into several files")
    return bytes(text)


LINES = "a .jsonl file holds one JSON object per line"
OTHER_DELIMITERS = (";", "\t", "|")


def read_jsonl(path: Path, bad: BadRows) -> Table:
    """The table of a file with one JSON object per line."""
    return table_of(str(path), _json_lines(bytes_of(path), path, bad), bad)


def _json_lines(data: bytes, path: Path, bad: BadRows) -> Iterator[tuple[str, Any]]:
    # Only "\n" ends a line: str.splitlines would also break at U+2028, which may occur inside a JSON string.
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = parsed(_decoded(line, path, number), f"{path}, line {number}", LINES)
        except UserError as error:
            bad.raise_or_count(error)
        else:
            yield f"line {number}", value


def read_json(path: Path, bad: BadRows) -> Table:
    """A list of rows, an object that holds one, one row, or JSON Lines under the wrong extension, which is common."""
    data = bytes_of(path)
    text = _decoded(data, path)
    try:
        value = parse_json(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if _is_json_object(text.lstrip().split("\n", 1)[0]):
            return table_of(str(path), _json_lines(data, path, bad), bad)
        what = f"broken JSON: {error.msg} (column {error.colno})"
        raise UserError(what, where=f"{path}, line {error.lineno}", remedy="a .json file holds a list of rows") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"broken JSON: {error}", where=str(path)) from None
    rows, notices = _rows_inside(value, path)
    return table_of(str(path), ((f"row {n}", row) for n, row in enumerate(rows, 1)), bad, notices)


def _rows_inside(value: Any, path: Path) -> tuple[list[Any], tuple[str, ...]]:
    """(the rows of a parsed file, notices about it)"""
    if isinstance(value, list):
        return value, ()
    if not isinstance(value, dict) or KNOWN_COLUMNS & value.keys():
        return [value], ()
    lists = [key for key, inner in value.items() if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner)]
    if not lists:
        return [value], ()
    if len(lists) > 1:
        what = f"holds several lists of rows: {', '.join(map(repr, lists))}"
        raise UserError(what, where=str(path), remedy="keep one of them in the file, or write each to a file of its own")
    others = [repr(key) for key in value if key != lists[0]]
    unread = f"; not read: {', '.join(others)}" if others else ""
    return value[lists[0]], (f"{path}: the rows are its list {lists[0]!r}{unread}",)


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def read_csv(path: Path, bad: BadRows) -> Table:
    """The table of a CSV file: every cell is text, an empty one is "". Blanks around the names in the header are removed."""
    csv.field_size_limit(2**31 - 1)  # the standard limit of 128 KiB is less than a long conversation
    text = _decoded(bytes_of(path), path)
    delimiter = _delimiter(text)
    lines = _csv_lines(_reader(text, delimiter), path)
    _, header = next(lines, (1, []))
    header = [name.strip() for name in header]
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"the header names {', '.join(map(repr, repeated))} more than once", where=f"{path}, line 1")
    notices = () if delimiter == "," else (f"{path}: its cells are separated by {delimiter!r}, by the header",)
    rows = table_of(str(path), _csv_rows(lines, header, delimiter, path, bad), bad, notices)
    return replace(rows, columns=tuple(header))


def _reader(text: str, delimiter: str) -> Reader:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)


def _delimiter(text: str) -> str:
    """A comma, unless the header has none and another delimiter would split it into several names."""

    def names(delimiter: str) -> int:
        try:
            return sum(bool(name.strip()) for name in next((record for record in _reader(text, delimiter) if record), []))
        except csv.Error:
            return 0

    best = max(OTHER_DELIMITERS, key=names)
    return best if names(",") == 1 < names(best) else ","


def _csv_lines(reader: Reader, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records that are not empty, with the line in which each starts."""
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
        start = reader.line_num + 1


def _csv_rows(
    lines: Iterable[tuple[int, list[str]]], header: list[str], delimiter: str, path: Path, bad: BadRows
) -> Iterator[tuple[str, Any]]:
    for line, cells in lines:
        if len(cells) == len(header):
            yield f"line {line}", dict(zip(header, cells, strict=True))
            continue
        signs, cut = ("commas", "") if delimiter == "," else (repr(delimiter), f" at {delimiter!r}")
        what = f"broken CSV: {len(cells)} cells{cut}, but the header names {len(header)} columns"
        remedy = f"put cells that hold {signs} or line breaks in quotes"
        bad.raise_or_count(UserError(what, where=f"{path}, line {line}", remedy=remedy))


def _decoded(data: bytes, path: Path, line: int | None = None) -> str:
    """The text of a file, or of one of its lines."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = line or data.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8: byte 0x{data[error.start]:02x}"
        raise UserError(what, where=f"{path}, line {number}", remedy="save the file in UTF-8") from None


def read_parquet(path: Path, bad: BadRows) -> Table:
    """The table of a parquet file. Raises UserError for an unreadable file, or several columns of one name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sparring.data.tables import whole

    try:
        file = pq.ParquetFile(whole(path))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"cannot read the parquet file: {first_line(error)}", where=str(path)) from None
    columns = tuple(file.schema_arrow.names)
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"has several columns named {', '.join(map(repr, repeated))}", where=str(path), remedy="rename them")
    return Table(str(path), columns, file.metadata.num_rows, lambda names: _rows(file, path, names, bad))


def _rows(file: pq.ParquetFile, path: Path, names: Collection[str], bad: BadRows) -> Iterator[LocatedRow]:
    import pyarrow as pa

    columns = {name: _cells(file, path, name) for name in names}
    for n in range(file.metadata.num_rows):
        row: dict[str, Any] = {}
        where, name = f"{path}, row {n + 1}", ""
        try:
            for name, cells in columns.items():
                row[name] = cells[n].as_py() if isinstance(cells[n], pa.Scalar) else cells[n]
        except UnicodeDecodeError as error:
            what = f"cannot decode the column {name!r}: {first_line(error)}"
            bad.raise_or_count(UserError(what, where=where, remedy="fix the row or remove it from the file"))
        else:
            yield where, row


def _cells(file: pq.ParquetFile, path: Path, name: str) -> list[Any]:
    """One column as Python values, or as Arrow's if a cell cannot be decoded. Raises UserError if the column cannot be read."""
    import pyarrow as pa

    try:
        table = file.read(columns=[name]).select([name])
        feature = _json_feature(table, name)
        cells = _decoded_by_datasets(table, name, feature) if feature else _plain(table.column(0))
    # A damaged page, a value that Python has no type for, a codec that is not built in: Arrow raises all of these.
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, NotImplementedError, KeyError) as error:
        what = f"cannot read the column {name!r} of the parquet file: {first_line(error)}"
        raise UserError(what, where=str(path), remedy="write the column again as text or as a list of turns") from None
    if len(cells) != (declared := file.metadata.num_rows):
        what = f"the file is damaged: its column {name!r} has {len(cells)} cells, but its metadata declares {declared} rows"
        raise UserError(what, where=str(path), remedy="write the file again")
    return cells


def _plain(column: pa.ChunkedArray) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return list(column)


def _json_feature(table: pa.Table, name: str) -> dict[str, Any] | None:
    """The feature of a column in which `datasets` stores JSON as text, which Arrow itself does not decode; None for other columns."""
    try:
        written = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = written["info"]["features"][name]
    except (ValueError, LookupError, TypeError):  # not metadata that `datasets` writes
        return None
    return feature if '"_type": "Json"' in json.dumps(feature) else None


def _decoded_by_datasets(table: pa.Table, name: str, feature: dict[str, Any]) -> list[Any]:
    from datasets import Dataset
    from datasets.table import InMemoryTable

    # The other columns' features are left out: some may be of a type that this version does not know.
    written = {b"huggingface": json.dumps({"info": {"features": {name: feature}}}).encode()}
    return Dataset(InMemoryTable(table.replace_schema_metadata(written)))[name][:]


def read_hub(section: Source) -> Table:
    """The table of a Hub data set."""
    dataset, source = hub_dataset(section)
    return Table(source, tuple(dataset.column_names), len(dataset), lambda names: _hub_rows(dataset, source, names))


def _hub_rows(dataset: Dataset, source: str, names: Collection[str]) -> Iterator[LocatedRow]:
    import pyarrow as pa

    place = 0
    # Columns that are not requested (images, embeddings) are never decoded.
    rows = iter(dataset.select_columns(list(names))) if names else iter({} for _ in range(len(dataset)))
    try:
        for place, row in enumerate(rows, 1):
            yield f"{source}, row {place}", row
    except (pa.ArrowException, UnicodeDecodeError, ImportError) as error:
        what = f"cannot decode one of the columns {', '.join(map(repr, names))}: {first_line(error)}"
        raise UserError(what, where=f"{source}, after row {place}", remedy="write the data set again, with these columns as text") from None


def hub_dataset(section: Source) -> tuple[Dataset, str]:
    """A data set of the Hub, or of its cache, and its name with split and revision. Raises UserError if it cannot be loaded."""
    import datasets
    from huggingface_hub.errors import HTTPError

    options = ", ".join(f"{key} {value}" for key in ("name", "split", "revision") if (value := getattr(section, key)))
    source = f"{section.named} ({options})"
    try:
        dataset = datasets.load_dataset(section.named, section.name, split=section.split, revision=section.revision)
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, ValueError, RuntimeError) as error:
        what = f"cannot load the data set: {type(error).__name__}: {first_line(error)}"
        tried = f"tried: the local path {Path(section.named).absolute()} (does not exist), then the Hugging Face Hub and its cache"
        remedy = f"{tried}; check the path, name, split and revision of {section.option}, and the network"
        raise UserError(what, where=f"{section.option}.path: {source}", remedy=remedy) from error
    return dataset, source
