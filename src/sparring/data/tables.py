"""Parquet files of plain columns, written atomically; and work cut into shards that commit one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

T = TypeVar("T")


def write_table(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write columns of equal length as parquet: whole and on disk, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        pq.write_table(pa.table(columns), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one parquet file, or of all shards of a folder in order."""
    files = sorted(path.glob("shard-*.parquet")) if path.is_dir() else [path]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def run_shards(folder: Path, items: Sequence[T], size: int, work: Callable[[Sequence[T]], dict[str, list[Any]]]) -> None:
    """Do `work` on `size` items at a time and commit each result as one file; shards found complete are skipped.

    A file is named after its place, so no row can be written twice or appended to.
    """
    for start in range(0, len(items), size):
        path = shard_path(folder, start // size)
        if not path.exists():
            write_table(path, work(items[start : start + size]))


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"
