"""Files of columns: whole or not at all; shards: each committed once."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.data import tables
from sparring.data.tables import items_done, read_rows, run_shards, write_table

COLUMNS: dict[str, list[Any]] = {
    "row_id": ["a", "b", "c"],
    "text": ["line\nbreak", "ünïcödé 漢字 \x00", ""],
    "ids": [[1, 2], [], [2**31, 0]],
    "logp": [-0.1, -150.123456789012345, float("-inf")],
    "note": [None, "x", None],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", COLUMNS)
    rows = read_rows(tmp_path / "t.parquet")
    assert rows == [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    """The opponent's log-probs: a rounded digit would be a margin that is not 0."""
    values = [-1 / 3, -1e-300, -123456.789e-7, -0.0]
    write_table(tmp_path / "t.parquet", {"logps": [values]})
    (row,) = read_rows(tmp_path / "t.parquet")
    assert [value.hex() for value in row["logps"]] == [value.hex() for value in values]


def test_columns_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length"):
        write_table(tmp_path / "t.parquet", {"a": [1, 2], "b": [1]})
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("victim", ["write_table", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, {"a": [1]})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq if victim == "write_table" else os, victim, full)
    with pytest.raises(OSError):
        write_table(path, {"a": [2]})
    monkeypatch.undo()
    assert read_rows(path) == [{"a": 1}]


def work(part: Sequence[int]) -> dict[str, list[int]]:
    return {"n": list(part)}


def test_shards_hold_every_item_once_in_order(tmp_path: Path) -> None:
    run_shards(tmp_path, range(25), 4, work)
    assert [row["n"] for row in read_rows(tmp_path)] == list(range(25))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"shard-{start:08d}-{stop:08d}.parquet" for start, stop in ((0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24), (24, 25))
    ]


def test_more_than_ten_shards_are_read_in_order(tmp_path: Path) -> None:
    run_shards(tmp_path, range(120), 1, work)
    assert [row["n"] for row in read_rows(tmp_path)] == list(range(120))


def test_finished_shards_are_skipped(tmp_path: Path) -> None:
    run_shards(tmp_path, range(10), 4, work)
    (tmp_path / "shard-00000004-00000008.parquet").unlink()
    assert items_done(tmp_path) == 6
    parts: list[list[int]] = []

    def seen(part: Sequence[int]) -> dict[str, list[int]]:
        parts.append(list(part))
        return work(part)

    run_shards(tmp_path, range(10), 4, seen)
    run_shards(tmp_path, range(10), 4, seen)
    assert parts == [[4, 5, 6, 7]]
    assert [row["n"] for row in read_rows(tmp_path)] == list(range(10))


def test_a_shard_whose_work_fails_is_not_there(tmp_path: Path) -> None:
    def fails(part: Sequence[int]) -> dict[str, list[int]]:
        if 4 in part:
            raise RuntimeError("killed")
        return work(part)

    with pytest.raises(RuntimeError):
        run_shards(tmp_path, range(10), 4, fails)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000000-00000004.parquet"]
    assert items_done(tmp_path) == 4


@given(
    count=st.integers(0, 40), sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=4), lost=st.sets(st.integers(0, 9))
)
def test_any_size_goes_on_where_another_stopped(count: int, sizes: list[tuple[int, int]], lost: set[int]) -> None:
    """Attempts of any shard size, each killed in some shard, and shards lost in between: every item once, in order."""

    def killed_at(call: int) -> Callable[[Sequence[int]], dict[str, list[int]]]:
        calls = itertools.count()

        def dies(part: Sequence[int]) -> dict[str, list[int]]:
            if next(calls) == call:
                raise RuntimeError("killed")
            return work(part)

        return dies

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, call in sizes:
            with contextlib.suppress(RuntimeError):
                run_shards(folder, range(count), size, killed_at(call))
        for place, path in enumerate(sorted(folder.iterdir())):
            if place in lost:
                path.unlink()
        kept = {path: path.stat().st_ino for path in folder.iterdir()}
        assert items_done(folder) == len(read_rows(folder))
        run_shards(folder, range(count), 5, work)
        assert [row["n"] for row in read_rows(folder)] == list(range(count)) and items_done(folder) == count
        assert all(path.stat().st_ino == inode for path, inode in kept.items())


def test_another_shard_size_may_follow(tmp_path: Path) -> None:
    run_shards(tmp_path, range(8), 4, work)
    run_shards(tmp_path, range(21), 10, work)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"shard-{start:08d}-{stop:08d}.parquet" for start, stop in ((0, 4), (4, 8), (8, 18), (18, 21))
    ]
    assert [row["n"] for row in read_rows(tmp_path)] == list(range(21))


def test_shards_that_overlap_are_no_base_to_go_on_from(tmp_path: Path) -> None:
    run_shards(tmp_path, range(8), 4, work)
    write_table(tmp_path / "shard-00000002-00000006.parquet", work(range(2, 6)))
    with pytest.raises(AssertionError, match="overlap"):
        run_shards(tmp_path, range(8), 4, work)


def test_a_file_in_writing_is_not_read(tmp_path: Path) -> None:
    run_shards(tmp_path, range(4), 4, work)
    (tmp_path / "shard-00000004-00000008.parquet.tmp").write_bytes(b"half")
    assert len(read_rows(tmp_path)) == 4 == items_done(tmp_path)
    run_shards(tmp_path, range(8), 4, work)
    assert [row["n"] for row in tables.read_rows(tmp_path)] == list(range(8))
