"""Rows from Arrow: parquet files, and data sets of the Hub. Only the requested columns are read or decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.data.shapes import BadRows, LocatedRow, Source, Table
from sparring.errors import UserError, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset


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
