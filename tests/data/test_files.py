"""What `data.path` may name besides one plain file, what inside of files is decided or refused, and bad rows that are dropped."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import chat

from sparring.config import DataSection, PairsSection
from sparring.data import row_files
from sparring.data.conversations import load_conversations
from sparring.data.preferences import prepare_pairs
from sparring.data.prepare import ROW_COUNTS, data_inputs, prepare, source_fingerprint
from sparring.data.records import PromptSet
from sparring.data.shapes import parse_json
from sparring.errors import UserError

ROWS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(6)]


def lines(rows: list) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def loaded(path, **options):
    named = [str(one) for one in path] if isinstance(path, list) else str(path)
    return load_conversations(DataSection(path=named, **options), seed=0)


def replies(path, **options) -> list[str]:
    return [conversation.reply for _, conversation in loaded(path, **options).rows]


def refused(path, *words: str, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        loaded(path, **options)
    for word in words:
        assert word in str(caught.value)
    return caught.value


# --- several files, compressed files ---


def in_two(folder: Path) -> tuple[Path, Path]:
    return write(folder / "a.jsonl", lines(ROWS[:2])), write(folder / "b.jsonl", lines(ROWS[2:]))


def test_hidden_files_of_a_folder_are_no_data(tmp_path: Path) -> None:
    in_two(tmp_path)
    for name in ("._a.jsonl", ".a.jsonl.swp", ".test.csv"):
        write(tmp_path / name, b"no row")
    assert len(load_conversations(DataSection(path=str(tmp_path)), seed=0).rows) == len(ROWS)


@pytest.mark.parametrize("named", ["folder", "pattern", "deep pattern", "list", "list of patterns"])
def test_several_files_are_one_source(tmp_path: Path, named: str) -> None:
    folder = tmp_path / "rows"
    files = in_two(folder)
    path = {
        "folder": folder,
        "pattern": folder / "*.jsonl",
        "deep pattern": tmp_path / "**" / "[ab].jsonl",
        "list": list(files),
        "list of patterns": [folder / "a*", folder / "b*"],
    }[named]
    found = loaded(path)
    assert [conversation.reply for _, conversation in found.rows] == [f"answer {n}" for n in range(6)]
    assert [where for where, _ in found.rows] == [
        f"{files[0]}, line 1",
        f"{files[0]}, line 2",
        *(f"{files[1]}, line {n}" for n in range(1, 5)),
    ]
    assert found.notices[0].endswith("2 files, a.jsonl, b.jsonl")


def test_the_fingerprint_goes_by_the_content_of_files_and_not_by_how_they_are_named(tmp_path: Path) -> None:
    files = in_two(tmp_path)
    ways = [str(tmp_path), f"{tmp_path}/*.jsonl", [str(file) for file in files], [str(file) for file in files[::-1]]]
    hashes = {source_fingerprint(DataSection(path=way)) for way in ways}
    assert len(hashes) == 1
    alone = source_fingerprint(DataSection(path=str(files[0])))
    assert alone == source_fingerprint(DataSection(path=[str(files[0])])) and alone not in hashes
    write(files[1], lines(ROWS[3:]))
    assert source_fingerprint(DataSection(path=str(tmp_path))) not in hashes


def test_files_of_unlike_columns_have_the_columns_of_all(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "id": 1} for row in ROWS[:2]]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist([{"note": "x", **row} for row in ROWS[2:]]), tmp_path / "b.parquet")
    found = loaded(tmp_path)
    assert set(found.columns) == {"prompt", "completion", "id", "note"} and len(found.rows) == 6


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize(("packing", "pack"), [(".gz", gzip.compress), (".zst", zst), (".GZ", gzip.compress)])
def test_compressed_files(tmp_path: Path, kind: str, packing: str, pack) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([list(ROWS[0]), *(row.values() for row in ROWS)])
    plain = {".jsonl": lines(ROWS), ".json": json.dumps(ROWS).encode(), ".csv": text.getvalue().encode()}[kind]
    path = write(tmp_path / f"rows{kind}{packing}", pack(plain))
    assert replies(path) == [row["completion"] for row in ROWS]
    # written in several pieces, as `cat` and loggers do
    assert kind != ".jsonl" or replies(write(path, pack(lines(ROWS[:3])) + pack(lines(ROWS[3:])))) == [row["completion"] for row in ROWS]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", gzip.compress(b"x" * 999, mtime=0)[:-9], zst(bytes(range(256)) * 99)[:-9]],
    ids=["empty", "other", "gzip", "zstd"],
)
def test_a_damaged_archive_is_a_sentence(tmp_path: Path, packing: str, content: bytes) -> None:
    refused(write(tmp_path / f"rows.jsonl{packing}", content), f"rows.jsonl{packing}")


def test_a_bomb_ends_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "MAX_DECOMPRESSED", 1000)
    for packing, pack in ((".gz", gzip.compress), (".zst", zst)):
        refused(write(tmp_path / f"rows.jsonl{packing}", pack(b" " * 10**6)), "holds more than 1,000 bytes when it is decompressed")


@pytest.mark.parametrize(
    ("names", "path", "words"),
    [
        ([], "", ["the folder has no data file", ".jsonl.gz"]),
        (["a.jsonl", "b.csv"], "", ["files of more than one kind (.csv, .jsonl): a.jsonl, b.csv", "by a pattern"]),
        (["train.jsonl", "test.jsonl"], "", ["files of more than one part of a data set (test, train)", "*.jsonl"]),
        (["train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl"], "", ["(train, validation)"]),
        (["a.jsonl"], "*.csv", ["no file fits this pattern", "data.path"]),
        (["a.jsonl", "notes.txt"], "*", ["unknown kind of file '.txt'"]),
    ],
)
def test_folders_and_patterns_that_are_refused(tmp_path: Path, names: list[str], path: str, words: list[str]) -> None:
    for name in names:
        write(tmp_path / name, lines(ROWS))
    refused(tmp_path / path, *words)


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    files = in_two(tmp_path)
    refused([tmp_path / "*.jsonl", files[1]], "b.jsonl", "is named more than once")


def test_a_list_of_hub_ids_is_no_list_of_files() -> None:
    refused(["owner/one", "owner/two"], "owner/one", "no such data file")


def test_hidden_files_and_folders_are_no_rows(tmp_path: Path) -> None:
    in_two(tmp_path)
    (tmp_path / "c.jsonl").mkdir()
    assert len(replies(tmp_path)) == 6


# --- inside of files ---


@pytest.mark.parametrize(
    ("value", "notice"),
    [
        ({"data": ROWS}, "the rows are its list 'data'"),
        ({"version": "1.0", "train": ROWS, "tags": ["x"]}, "the rows are its list 'train'; not read: 'version', 'tags'"),
    ],
)
def test_json_that_wraps_its_rows(tmp_path: Path, value: dict, notice: str) -> None:
    found = loaded(write(tmp_path / "rows.json", json.dumps(value).encode()))
    assert len(found.rows) == 6 and found.notices[0].endswith(notice)


def test_one_row_is_no_wrapper(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert replies(write(tmp_path / "one.json", json.dumps({"messages": turns, "meta": [{"x": 1}]}).encode())) == ["a"]


def test_several_lists_of_rows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", json.dumps({"train": ROWS, "test": ROWS}).encode())
    refused(path, "rows.json: holds several lists of rows: 'train', 'test'")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, name: str) -> None:
    text = b'{"prompt": "a", "completion": "b", "prompt": "c"}'
    refused(write(tmp_path / name, text), "duplicate key 'prompt'")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_json_is_read_as_it_was_written(value) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=4))
def test_any_repeated_key_at_any_depth_is_refused(pairs: list[tuple[str, int]]) -> None:
    text = '[{"x": {' + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}}]"
    if len(dict(pairs)) == len(pairs):
        assert parse_json(text) == [{"x": dict(pairs)}]
    else:
        with pytest.raises(ValueError, match="duplicate key"):
            parse_json(text)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8)


@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4), st.sampled_from(",;\t|"), st.sampled_from(["prompt", " prompt ", "\tprompt"])
)
def test_csv_of_any_delimiter_and_any_text(tmp_path_factory, cells, delimiter, header) -> None:
    if delimiter == "\t" and header.startswith("\t"):
        header = "prompt"
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([(header, "completion "), *cells])
    found = loaded(write(tmp_path_factory.mktemp("csv") / "rows.csv", text.getvalue().encode()))
    assert found.columns == ("prompt", "completion")
    assert [(c.prompt[0]["content"], c.reply) for _, c in found.rows] == cells
    assert any(f"separated by {delimiter!r}" in notice for notice in found.notices) == (delimiter != ",")


def test_a_csv_row_of_another_length_names_the_delimiter(tmp_path: Path) -> None:
    refused(write(tmp_path / "rows.csv", b"prompt;completion\na;b;c\n"), "line 2", "3 cells at ';'")


# --- parquet ---


def parquet(path: Path, columns: dict, metadata: dict[bytes, bytes] | None = None) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


TEXTS = {"prompt": ["a", "b"], "completion": ["c", "d"]}
BROKEN = pa.StringArray.from_buffers(2, pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"x\xff"))
FEATURES = {"prompt": {"dtype": "string", "_type": "Value"}, "odd": {"_type": "Hologram"}}


@pytest.mark.parametrize(
    "unused",
    [
        {"odd": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string()))},
        {"odd": BROKEN},
        {"odd": pa.array([2**62, 1], pa.timestamp("us"))},
        {"odd": [b"\xff", None]},
        {"odd": pa.array([{"x": None}, {"x": 1}])},
    ],
    ids=["map", "invalid UTF-8", "a time beyond the calendar", "bytes", "struct"],
)
@pytest.mark.parametrize("metadata", [None, b"no JSON", b"[]", b'{"info": 3}', json.dumps({"info": {"features": FEATURES}}).encode()])
def test_parquet_columns_that_no_shape_reads_do_no_harm(tmp_path: Path, unused: dict, metadata: bytes | None) -> None:
    path = parquet(tmp_path / "rows.parquet", {**TEXTS, **unused}, {b"huggingface": metadata} if metadata else None)
    assert replies(path) == ["c", "d"]


def test_an_unknown_type_of_a_column_that_is_read_is_read_as_arrow_has_it(tmp_path: Path) -> None:
    features = {"info": {"features": {"prompt": {"_type": "Hologram"}}}}
    assert replies(parquet(tmp_path / "rows.parquet", TEXTS, {b"huggingface": json.dumps(features).encode()})) == ["c", "d"]


def test_invalid_text_in_a_column_that_is_read_names_column_and_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", {"prompt": ["a", "b"], "completion": BROKEN})
    refused(path, "rows.parquet, row 2: cannot decode the column 'completion'")
    found = loaded(path, on_bad_row="drop")
    assert [c.reply for _, c in found.rows] == ["x"] and found.bad.count == 1


def test_a_value_that_python_cannot_hold_names_file_and_column(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", {**TEXTS, "when": pa.array([2**62, 1], pa.timestamp("us"))})
    refused(path, "rows.parquet: cannot read the column 'when'", checker_columns=["when"])


def test_turns_that_datasets_keeps_as_json(tmp_path: Path) -> None:
    features = {"messages": {"feature": {"_type": "Json"}, "_type": "List"}, "odd": {"_type": "Hologram"}}
    turns = [json.dumps({"role": role, "content": role}) for role in ("user", "assistant")]
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    column = pa.ListArray.from_arrays([0, 2], pa.ExtensionArray.from_storage(pa.json_(), pa.array(turns)))
    assert replies(parquet(tmp_path / "rows.parquet", {"messages": column, "odd": [1]}, metadata)) == ["assistant"]


def test_two_parquet_columns_of_one_name(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "prompt"]), tmp_path / "rows.parquet")
    refused(tmp_path / "rows.parquet", "several columns named 'prompt'")


@given(st.binary(min_size=1, max_size=6), st.integers(4, 400))
def test_a_damaged_parquet_file_is_a_sentence_or_read(tmp_path_factory, patch: bytes, at: int) -> None:
    path = parquet(tmp_path_factory.mktemp("parquet") / "rows.parquet", TEXTS)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at : at + len(patch)] = patch
    path.write_bytes(bytes(data))
    try:
        loaded(path, columns={"prompt": "prompt", "completion": "completion"})
    except UserError as error:
        assert "rows.parquet" in str(error)


# --- bad rows ---

BAD = ['{"prompt": "x"', "[1]", '{"prompt": "x", "completion": 3}', '{"prompt": "x", "prompt": "y", "completion": "z"}', '{"prompt": "x"}']


@given(st.lists(st.sampled_from([*ROWS, *BAD]), min_size=1, max_size=14))
def test_bad_rows_are_dropped_and_counted_wherever_they_stand(tmp_path_factory, rows: list) -> None:
    path = write(tmp_path_factory.mktemp("bad") / "rows.jsonl", lines(rows))
    bad = [n for n, row in enumerate(rows, 1) if isinstance(row, str)]
    good = {row["prompt"] for row in rows if isinstance(row, dict)}
    if bad and good:
        assert refused(path).where in [f"{path}, line {n}" for n in bad]
    section = DataSection(path=str(path), held_out=1, on_bad_row="drop")
    if len(good) < 2:
        with pytest.raises(UserError):
            prepare(section, chat(), 0)
        return
    found = prepare(section, chat(), 0)
    assert {one.conversation.prompt[0]["content"] for one in [*found.train, *found.held_out]} == good
    assert found.counts["bad"] == len(bad) and found.counts["read"] == len(rows) == sum(found.counts[key] for key in ROW_COUNTS[1:])
    told = [notice for notice in found.notices if "on_bad_row" in notice]
    assert len(told) == bool(bad) and all(f"left out {len(bad)} of the rows; the first was {path}, line" in one for one in told)


def test_a_row_that_the_template_refuses_is_a_bad_row_too(tmp_path: Path) -> None:
    twice = {"messages": [{"role": role, "content": role} for role in ("user", "user", "assistant")]}
    fine = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(3)]
    path = write(tmp_path / "rows.jsonl", lines([*fine, twice]))
    found = prepare(DataSection(path=str(path), held_out=1, on_bad_row="drop"), chat(), 0)
    assert found.counts["bad"] == 1 and "Roles must alternate" in found.notices[-1]


def test_only_bad_rows_show_the_first(tmp_path: Path) -> None:
    refused(write(tmp_path / "rows.jsonl", b"{\n[\n"), "line 1", "none of its 2 rows can be read", on_bad_row="drop")
    path = write(tmp_path / "other.jsonl", lines([{"prompt": "x", "completion": None}] * 2))
    with pytest.raises(UserError, match=r"no row is left of 2: dropped 2 as bad rows, the first .*line 1: row without a reply"):
        prepare(DataSection(path=str(path), on_bad_row="drop"), chat(), 0)


def test_bad_prompts_and_pairs_are_dropped_by_the_same_option(tmp_path: Path) -> None:
    sft = write(tmp_path / "sft.jsonl", lines(ROWS))
    prompts = write(tmp_path / "prompts.jsonl", lines([{"prompt": "new"}, {"prompt": 3}, "{"]))
    found = prepare(DataSection(path=str(sft), held_out=1, on_bad_row="drop", prompts=str(prompts)), chat(), 0)
    assert found.prompt_counts["bad"] == 2 and found.prompt_counts["prompts"] == 1
    assert any("prompts.jsonl, line 3" in notice for notice in found.notices)
    pairs = write(
        tmp_path / "pairs.jsonl", lines([{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": 1, "rejected": 2}])
    )
    kept = prepare_pairs(PairsSection(path=str(pairs)), DataSection(path="unused", on_bad_row="drop"), chat(), 0, PromptSet([]))
    assert kept.counts["bad"] == 1 and len(kept.duels) == 1 and "pairs.jsonl, line 2" in kept.notices[0]


def test_the_option_is_no_part_of_the_fingerprint_at_its_default(tmp_path: Path) -> None:
    path = str(write(tmp_path / "rows.jsonl", lines(ROWS)))
    assert "on_bad_row" not in data_inputs(DataSection(path=path))
    assert data_inputs(DataSection(path=path, on_bad_row="drop"))["on_bad_row"] == "drop"
