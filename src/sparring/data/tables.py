"""Parquet files of plain columns, written atomically; and work split into shards that are committed one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

T = TypeVar("T")


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write columns of equal length as parquet, atomically and durably."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        pq.write_table(pa.table(columns), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_rows(path: Path, row_ids: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one parquet file, or of all shards of a folder in order; only those with these row ids if any are given."""
    files = sorted(path.glob("shard-*.parquet")) if path.is_dir() else [path]
    wanted = None if row_ids is None else [("row_id", "in", sorted(row_ids))]
    return [row for file in files for row in pq.read_table(whole(file), filters=wanted).to_pylist()]


def whole(path: Path) -> str:
    """The path for pyarrow, which would read a relative path with `~` or a colon as a home folder or a URL."""
    return str(path.absolute())


def run_shards(
    folder: Path,
    items: Sequence[T],
    size: int,
    work: Callable[[Sequence[T]], dict[str, list[Any]]],
    once: Callable[[Callable[[], Any]], Any] = lambda do: do(),
) -> None:
    """Do `work` on `size` items at a time and commit each result as one file; finished files are kept.

    If several processes do the work together, `once` calls a function that reads or writes the folder on one of them, and returns its
    result on all.

    A file is named after the items that it holds, so no row can be written twice or appended to, and an interrupted job may resume with
    another size.
    """
    run_parts(folder, items, size, lambda parts: enumerate(map(work, parts)), once)


def run_parts(
    folder: Path,
    items: Sequence[T],
    size: int,
    work: Callable[[Sequence[Sequence[T]]], Iterable[tuple[int, dict[str, list[Any]]]]],
    once: Callable[[Callable[[], Any]], Any] = lambda do: do(),
) -> None:
    """As `run_shards`, for work that gets all missing parts and yields (number of the part, its columns) in any order."""
    missing = once(lambda: _missing(folder, len(items)))
    spans = [(first, min(first + size, stop)) for start, stop in missing for first in range(start, stop, size)]
    for number, columns in work([items[first:stop] for first, stop in spans]):
        first, stop = spans[number]
        once(partial(write_table, folder / f"shard-{first:08d}-{stop:08d}.parquet", columns))


def items_done(folder: Path) -> int:
    """How many items the shards in `folder` hold."""
    return sum(stop - start for start, stop in _spans(folder))


def _missing(folder: Path, count: int) -> list[tuple[int, int]]:
    """The gaps without a shard, not only at the end: a power cut may keep a rename and lose the one before it."""
    edges = [0, *(edge for span in _spans(folder) for edge in span), count]
    assert edges == sorted(edges), f"shards in {folder} overlap, or hold more than {count} items"
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def _spans(folder: Path) -> list[tuple[int, int]]:
    """The first item and the one after the last of every shard, in order."""
    names = sorted(path.stem for path in folder.glob("shard-*.parquet"))
    return [(int(start), int(stop)) for _, start, stop in (name.split("-") for name in names)]
