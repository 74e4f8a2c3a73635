"""Every row shape and file kind, and every way in which they are wrong."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.config import DataSection
from sparring.data.conversations import is_empty, load_conversations, to_conversation
from sparring.data.shapes import SHAPES, BadRows, choose_shape
from sparring.data.sources import open_table
from sparring.data.turns import Reading
from sparring.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def section(path, **options) -> DataSection:
    return DataSection(path=str(path), **options)


def jsonl(tmp_path, *rows) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path, names=None, **options):
    """(the columns of a source, its rows with their places)"""
    found = open_table(section(path, **options), 0, BadRows())
    return found.columns, list(found.read(found.columns if names is None else names))


def load(path, **options):
    return [conversation for _, conversation in load_conversations(section(path, **options), seed=0).rows]


def convert(row, shape, columns=None, counts=None):
    return to_conversation(row, shape, Reading(columns or {}, counts=Counter() if counts is None else counts), "here, row 1")


# --- shapes ---

TURNS = [user("1"), assistant("2"), user("3"), assistant("4")]
SHARE = {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
OFFICIAL = {"real": [user("Q"), assistant("A")], "generated": [user("Q"), assistant("other")]}


@pytest.mark.parametrize(
    ("shape", "row", "prompt", "reply"),
    [
        ("messages", {"messages": [user("Q"), assistant("A")]}, [user("Q")], "A"),
        ("messages", {"messages": TURNS}, TURNS[:3], "4"),
        ("messages", {"messages": [{"role": "system", "content": "S"}, user("Q"), assistant("A")]},
         [{"role": "system", "content": "S"}, user("Q")], "A"),
        ("messages", {"messages": [{"from": "Human", "value": "Q", "weight": 1}, {"from": "gpt", "value": "A"}]}, [user("Q")], "A"),
        ("messages", {"messages": [user([{"type": "text", "text": "Q"}, {"type": "text", "text": "!"}]), assistant("A")]},
         [user("Q!")], "A"),
        ("real_generated", OFFICIAL, [user("Q")], "A"),
        ("sharegpt", SHARE, [{"role": "system", "content": "S"}, user("Q")], "A"),
        ("sharegpt", {"conversations": [user("Q"), assistant("A")]}, [user("Q")], "A"),
        ("prompt_completion", {"prompt": "Q", "completion": " A "}, [user("Q")], " A "),
        ("prompt_completion", {"prompt": [user("Q")], "completion": [assistant("A")]}, [user("Q")], "A"),
        ("prompt_completion", {"prompt": TURNS[:3], "completion": "4"}, TURNS[:3], "4"),
        ("prompt_completion", {"prompt": "1", "completion": TURNS[1:]}, TURNS[:3], "4"),
        ("alpaca", {"instruction": "Q", "input": "X", "output": "A"}, [user("Q\n\nX")], "A"),
        ("alpaca", {"instruction": "Q", "input": " ", "output": "A"}, [user("Q")], "A"),
        ("alpaca", {"instruction": "Q", "input": None, "output": "A"}, [user("Q")], "A"),
        ("alpaca", {"instruction": "Q", "output": "A"}, [user("Q")], "A"),
    ],
)  # fmt: skip
def test_shape(tmp_path, shape, row, prompt, reply):
    conversation = convert(row, shape)
    assert (list(conversation.prompt), conversation.reply) == (prompt, reply)
    loaded = load_conversations(section(jsonl(tmp_path, row)), seed=0)
    assert [found for _, found in loaded.rows] == [conversation]
    assert loaded.notices == [f"data.shape: {shape}, by the columns {', '.join(row)}"]


@pytest.mark.parametrize(
    ("row", "columns", "prompt", "reply"),
    [
        ({"question": "Q", "answer": "A"}, {"prompt": "question", "completion": "answer"}, "Q", "A"),
        ({"prompt": "Q", "response": "A"}, {"completion": "response"}, "Q", "A"),
        ({"instruction": "Q", "context": "X", "response": "A"}, {"input": "context", "output": "response"}, "Q\n\nX", "A"),
        ({"prompt": "no", "completion": "no", "chat": [user("Q"), assistant("A")]}, {"messages": "chat"}, "Q", "A"),
        ({"messages": [], "question": "Q", "answer": "A"}, {"prompt": "question", "completion": "answer"}, "Q", "A"),
    ],
)
def test_named_columns(tmp_path, row, columns, prompt, reply):
    assert [(c.prompt, c.reply) for c in load(jsonl(tmp_path, row), columns=columns)] == [((user(prompt),), reply)]


def test_whole_conversations_win_over_flattened_columns():
    assert choose_shape("auto", {}, ["prompt", "completion", "messages"], "f") == "messages"
    assert choose_shape("prompt_completion", {}, ["prompt", "completion", "messages"], "f") == "prompt_completion"
    assert choose_shape("auto", {}, ["real", "prompt", "completion"], "f") == "prompt_completion"
    assert choose_shape("real_generated", {}, ["real"], "f") == "real_generated"


def test_turns_after_the_reply_are_dropped_and_counted(tmp_path):
    path = jsonl(tmp_path, {"messages": [user("Q"), assistant("A"), user("thanks")]}, {"messages": [user("Q"), assistant("B")]})
    loaded = load_conversations(section(path), seed=0)
    assert [c.reply for _, c in loaded.rows] == ["A", "B"]
    assert loaded.counts == {"read": 2, "trailing_turns_dropped": 1, "surrogates_replaced": 0}


def test_lone_surrogates_are_replaced_and_halves_joined(tmp_path):
    path = jsonl(tmp_path, {"prompt": "a\ud800b", "completion": "A"}, {"prompt": "\U0001f44d", "completion": "B"})
    loaded = load_conversations(section(path), seed=0)
    assert [c.prompt[0]["content"] for _, c in loaded.rows] == ["a\ufffdb", "\U0001f44d"]
    assert loaded.counts["surrogates_replaced"] == 1
    assert convert({"prompt": "\ud83d" + "\udc4d", "completion": "A"}, "prompt_completion").prompt[0]["content"] == "\U0001f44d"


@given(st.text(alphabet=st.characters(codec=None, categories=None), max_size=30))
def test_any_text_comes_out_encodable_and_sound_text_unchanged(text):
    counts = Counter()
    reply = convert({"prompt": "Q", "completion": text}, "prompt_completion", counts=counts).reply
    reply.encode("utf-8")
    assert (reply == text) == (counts["surrogates_replaced"] == 0)


@pytest.mark.parametrize(
    ("row", "shape", "message"),
    [
        ({"messages": [user("Q")]}, "messages", r"row without a reply: it has no assistant turn \(roles of its turns: user\)"),
        ({"messages": []}, "messages", r"row without a reply: .*\(roles of its turns: none\)"),
        ({"messages": None}, "messages", "messages is missing or null, not a list of turns"),
        ({}, "messages", "messages is missing or null"),
        ({"messages": "[]"}, "messages", r"row without a reply: .*\(roles of its turns: none\)"),
        ({"messages": "hello"}, "messages", r"messages is text \('hello'\), not a list of turns"),
        ({"messages": ["Q"]}, "messages", r"messages\[0\] is text \('Q'\), not a turn"),
        ({"messages": [{"role": "robot", "content": "Q"}]}, "messages", r"messages\[0\] has the role 'robot'; known roles: system, user"),
        ({"messages": [{"content": "Q"}]}, "messages", r"has the role None"),
        ({"messages": [user(None), assistant("A")]}, "messages", r"messages\[0\].content is missing or null, not text"),
        ({"messages": [user(7), assistant("A")]}, "messages", r"messages\[0\].content is a number \(7\), not text"),
        ({"messages": [user("Q"), {**assistant(None), "tool_calls": [1]}]}, "messages", r"messages\[1\] calls a tool"),
        ({"messages": [user([{"type": "image", "url": "x"}]), assistant("A")]}, "messages", r"content is a list .*not text"),
        ({"messages": [user([]), assistant("A")]}, "messages", r"content is a list \(\[\]\), not text"),
        ({"conversations": [{"from": "gpt", "value": True}]}, "sharegpt", r"conversations\[0\].value is a truth value \(True\)"),
        ({"prompt": "Q"}, "prompt_completion", "row without a reply: completion is missing or null"),
        ({"prompt": "Q", "completion": None}, "prompt_completion", "row without a reply: completion is missing or null"),
        ({"prompt": None, "completion": "A"}, "prompt_completion", "prompt is missing or null, not text"),
        ({"prompt": "Q", "completion": 4.5}, "prompt_completion", r"completion is a number \(4.5\), not text\n  -> write numbers as texts"),
        ({"prompt": [user("1"), assistant("2")], "completion": [user("3")]}, "prompt_completion",
         r"row without a reply: .*\(roles of its turns: user, assistant, user\)"),
        ({"instruction": "Q", "input": "", "output": None}, "alpaca", "row without a reply: output is missing or null"),
        ({"instruction": "Q", "input": 3, "output": "A"}, "alpaca", r"input is a number \(3\)"),
        ({"instruction": None, "output": "A"}, "alpaca", "instruction is missing or null"),
        ({"real": None, "generated": []}, "real_generated", "real is missing or null"),
    ],
)  # fmt: skip
def test_bad_row_is_named(row, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(row, shape)
    assert caught.value.where == "here, row 1" and caught.value.remedy


def test_error_names_the_rows_own_column(tmp_path):
    path = jsonl(tmp_path, {"q": "Q", "a": "A"}, {"q": "Q"})
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: row without a reply: a is missing or null"):
        load(path, columns={"prompt": "q", "completion": "a"})


@pytest.mark.parametrize(
    ("prompt", "reply", "empty"),
    [
        ([user("Q")], "A", False),
        ([user("Q")], " \n\t", True),
        ([user("  ")], "A", True),
        ([], "A", True),
        ([{"role": "system", "content": "S"}], "A", True),
        ([user("Q"), assistant("B"), user("")], "A", False),
    ],
)
def test_is_empty(prompt, reply, empty):
    assert is_empty(convert({"prompt": prompt or "", "completion": reply}, "prompt_completion")) == empty


# --- wrong columns ---


def test_unknown_columns_list_what_exists_and_what_is_known(tmp_path):
    with pytest.raises(UserError, match=r"no known shape fits the columns: question, answer, id") as caught:
        load(jsonl(tmp_path, {"question": "Q", "answer": "A"}, {"id": 3}))
    assert all(name in str(caught.value) for name in SHAPES)
    assert "data.columns: {prompt: question, completion: answer}" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "alpaca"}, "data.shape alpaca needs instruction, output and does not fit the columns: prompt, completion"),
        ({"shape": "messages", "columns": {"prompt": "prompt"}}, "data.shape messages needs messages .* with data.columns prompt: prompt"),
        ({"columns": {"completion": "complettion"}}, r"there is no column 'complettion' \(data.columns.completion\); "
         r"the columns are: prompt, completion\n  -> did you mean completion\?"),
        ({"columns": {"messages": "prompt", "output": "prompt"}}, "no known shape fits"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        load(jsonl(tmp_path, {"prompt": "Q", "completion": "A"}), **options)


# --- files ---

ROWS = [
    {"prompt": "2020-01-01", "completion": "007"},
    {"prompt": "naïve 漢字\u2028'\"", "completion": "NA"},
    {"prompt": "", "completion": "null"},
]


def write_rows(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([list(ROWS[0]), *(row.values() for row in ROWS)])
    elif path.name == "list.json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    else:
        path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n", encoding="utf-8-sig", newline="")


@pytest.mark.parametrize("name", ["rows.jsonl", "lines.json", "list.json", "rows.csv", "rows.parquet", "ROWS.JSONL", "a=1/[x] *.parquet"])
def test_every_kind_of_file_gives_the_same_text(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write_rows(path)
    columns, rows = table(path)
    assert columns == ("prompt", "completion")
    assert [dict(row) for _, row in rows] == ROWS
    assert [c.reply for c in load(path)] == ["007", "NA", "null"]


def test_places_are_lines_in_text_and_rows_elsewhere(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"two\nlines",A\n\nQ,B\n')
    assert [where for where, _ in table(path)[1]] == [f"{path}, line 2", f"{path}, line 5"]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "1"}\n\n{"a": "2"}')
    assert [where for where, _ in table(path)[1]] == [f"{path}, line 1", f"{path}, line 3"]
    path = tmp_path / "rows.parquet"
    write_rows(path)
    assert table(path)[1][0][0] == f"{path}, row 1"


def test_a_single_json_object_is_one_row(tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{"prompt": "Q",\n "completion": "A"}')
    assert [c.reply for c in load(path)] == ["A"]


def test_long_csv_cells_are_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nQ," + "x" * 200_000)
    assert len(load(path)[0].reply) == 200_000


def test_parquet_with_turns_and_unused_columns(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"messages": [[user("Q"), assistant("A")]], "score": [0.5], "raw": [b"\xff"]}), path)
    columns, rows = table(path, ["messages"])
    assert columns == ("messages", "score", "raw") and set(rows[0][1]) == {"messages"}
    assert load(path)[0].reply == "A"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"a": "1"}\n\n{"a": \n', r"rows.jsonl, line 3: broken JSON: Expecting value \(column \d+, near "),
        ("rows.jsonl", b'{"a": "1"}\n{"a": "2"', "rows.jsonl, line 2: broken JSON: Expecting ',' delimiter"),
        ("rows.jsonl", b"{}\n[1, 2]\n", r"rows.jsonl, line 2: a row is an object with named columns, not a list \(\[1, 2\]\)"),
        ("rows.jsonl", b"[" * 100_000, "rows.jsonl, line 1: broken JSON: .*recursion"),
        ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "rows.jsonl, line 1: broken JSON: .*digits"),
        ("rows.jsonl", b'{"a": "1"}\n{"a": "\xff"}\n', "rows.jsonl, line 2: not UTF-8: byte 0xff"),
        ("rows.jsonl", '{"a": "1"}'.encode("utf-16"), "rows.jsonl, line 1: not UTF-8: byte 0xff"),
        ("rows.json", b'[{"a": "1"},\n {"a" "2"}]', "rows.json, line 2: broken JSON: Expecting ':' delimiter"),
        ("rows.json", b'{"a": "1"}\n{"a": "2"}\n{"a"', "rows.json, line 3: broken JSON"),
        ("rows.json", b"[" * 100_000, "rows.json: broken JSON"),
        ("rows.json", b'[{}, "x"]', r"rows.json, row 2: a row is an object with named columns, not text \('x'\)"),
        ("rows.csv", b"prompt,completion\nQ,A\nQ,A,B\n", "rows.csv, line 3: broken CSV: 3 cells, but the header names 2 columns"),
        ("rows.csv", b'prompt,completion\n"a\nb",A\nQ,"unclosed\nand on\n', "rows.csv, line 4: broken CSV: unexpected end of data"),
        ("rows.csv", b'prompt,completion\n"a"b,A\n', "rows.csv, line 2: broken CSV: ',' expected"),
        ("rows.csv", b"prompt,prompt\nQ,A\n", "rows.csv, line 1: the header names 'prompt' more than once"),
        ("rows.parquet", b"not parquet at all", "rows.parquet: cannot read the parquet file: .*magic bytes"),
        ("rows.xlsx", b"x", "unknown kind of file '.xlsx'; known: .jsonl, .json, .csv, .parquet"),
        ("rows", b"x", r"unknown kind of file '\(no extension\)'"),
        ("rows.jsonl", b"", "rows.jsonl: the data is empty"),
        ("rows.jsonl", b" \n\n", "rows.jsonl: the data is empty"),
        ("rows.json", b"", "rows.json: the data is empty"),
        ("rows.json", b"[]", "rows.json: the data is empty"),
        ("rows.csv", b"", "rows.csv: the data is empty"),
        ("rows.csv", b"prompt,completion\n", "rows.csv: the data is empty"),
    ],
)  # fmt: skip
def test_bad_file(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(path)


def test_empty_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(UserError, match=r"the data is empty"):
        load(path)


def test_missing_file_suggests_its_neighbours(tmp_path):
    jsonl(tmp_path, {})
    with pytest.raises(UserError, match=r"no such data file\n  -> did you mean .*rows.jsonl\?"):
        load(tmp_path / "row.jsonl")
    with pytest.raises(UserError, match=r"data files in that folder: rows.jsonl"):
        load(tmp_path / "entirely-different.parquet")
    with pytest.raises(UserError, match=r"the folder .* does not exist either"):
        load(tmp_path / "no" / "rows.jsonl")
    with pytest.raises(UserError, match=r"data.jsonl: no such data file"):
        load("some/data.jsonl")


def test_file_without_permission(tmp_path, monkeypatch):
    path = jsonl(tmp_path, {})
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"cannot read the file: Permission denied"):
        load(path)


@pytest.mark.parametrize("option", ["name", "revision"])
def test_hub_options_are_refused_for_files(tmp_path, option):
    with pytest.raises(UserError, match=f"data.{option}: 'main' is for Hub data sets, but .* is a local file"):
        load(jsonl(tmp_path, {"prompt": "Q", "completion": "A"}), **{option: "main"})


@pytest.mark.parametrize("files", [1, 2])
def test_a_split_of_local_files_is_reported_to_have_no_effect(tmp_path, files):
    """A recipe for a Hub data set has one, and may be played on a file; the whole file is read then."""
    paths = [tmp_path / f"{number}.jsonl" for number in range(files)]
    for number, path in enumerate(paths):
        path.write_text(json.dumps({"prompt": f"Q{number}", "completion": "A"}) + "\n", encoding="utf-8")
    source = DataSection(path=tuple(map(str, paths)), split="test")
    loaded = load_conversations(source, seed=0)
    assert len(loaded.rows) == files
    assert [line for line in loaded.notices if "no effect" in line] == [f"data.split test has no effect: {source.named} is read as a whole"]
    assert not [line for line in load_conversations(section(paths[0]), seed=0).notices if "no effect" in line]


def test_a_split_of_built_in_rows_is_reported_to_have_no_effect():
    notices = load_conversations(section("builtin:digits", split="test"), seed=0).notices
    assert "data.split test has no effect: builtin:digits is read as a whole" in notices


# --- the Hub and the built-in tasks ---


def test_hub_id_goes_to_datasets(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([{**OFFICIAL, "source": "x"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_conversations(section("owner/set", name="config", split="test[:5]", revision="abc"), seed=0)
    assert asked == [(("owner/set", "config"), {"split": "test[:5]", "revision": "abc"})]
    assert [(where, c.reply) for where, c in loaded.rows] == [("owner/set (name config, split test[:5], revision abc), row 1", "A")]


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach it"), ValueError('Unknown split "train". Should be one of ["test"].'), FileNotFoundError("gone")],
)
def test_hub_failure_says_what_was_tried(monkeypatch, error):
    import datasets

    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"data.path: owner/set \(split train\): cannot load the data set") as caught:
        load("owner/set")
    assert f"{type(error).__name__}: {error}" in caught.value.what
    assert "owner/set (does not exist), then the Hugging Face Hub" in caught.value.remedy and "the network" in caught.value.remedy


def test_builtin_tasks_get_the_seed(monkeypatch):
    def task_rows(seed):
        return [{"messages": [user(f"Q{seed}"), assistant("A")]}]

    monkeypatch.setitem(sys.modules, "sparring.data.tasks", SimpleNamespace(task_rows=task_rows, digit_rows=list))
    loaded = load_conversations(section("builtin:tasks"), seed=7)
    assert [(where, c.prompt[0]["content"]) for where, c in loaded.rows] == [("builtin:tasks, row 1", "Q7")]
    with pytest.raises(UserError, match=r"'builtin:task' is not built in"):
        load("builtin:task")


# --- real data ---


@pytest.mark.parametrize(
    ("name", "columns", "rows"),
    [
        ("gsm8k_test.jsonl", {"prompt": "question", "completion": "answer"}, 1319),
        ("dolly_1k.jsonl", {"completion": "response"}, 1000),
        ("svamp_test.csv", {"prompt": "Question", "completion": "Answer"}, 1000),
        ("mawps_asdiv_train.csv", {"prompt": "Question", "completion": "Answer"}, 3138),
    ],
)
def test_real_files(name, columns, rows):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    conversations = load(path, columns=columns)
    assert len(conversations) == rows
    assert not any(is_empty(conversation) for conversation in conversations)


def test_real_file_with_other_columns_is_explained():
    path = SHARED / "mt_bench_questions.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with pytest.raises(UserError, match=r"no known shape fits the columns: question_id, category, turns"):
        load(path)
    with pytest.raises(UserError, match=r"mt_bench_questions.jsonl, line 1: turns\[0\] is text .*, not a turn"):
        load(path, columns={"messages": "turns"})


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_pipe_is_not_waited_for(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file but a pipe"):
        open_table(DataSection(path=str(path)), 0, BadRows())


def test_a_device_has_no_end() -> None:
    with pytest.raises(UserError, match="not a regular file but a pipe, a device"):
        open_table(DataSection(path="/dev/zero"), 0, BadRows())
