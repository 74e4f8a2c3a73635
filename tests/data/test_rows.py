"""What a row says is used, announced or refused: systems, histories, reasoning, turns that are not to be learned, tools, unused columns."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_rows
from hypothesis import given
from hypothesis import strategies as st
from test_prepare import chat

from sparring.config import DataSection, PairsSection
from sparring.data.conversations import load_conversations, load_prompts
from sparring.data.preferences import load_pairs, prepare_pairs
from sparring.data.prepare import ROW_COUNTS, data_inputs, prepare, read_examples, write_examples
from sparring.data.records import Conversation, Example, PromptSet
from sparring.errors import UserError


def turn(role: str, text: Any, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **keys}


SYSTEM, ASK, SAY = turn("system", "S"), turn("user", "Q"), turn("assistant", "A")
PAST = [turn("user", "q1"), turn("assistant", "a1")]


def loaded(folder: Path, *rows: Any, **options: Any):
    return load_conversations(DataSection(path=str(write_rows(folder / "rows.jsonl", list(rows))), **options), seed=0)


def only(folder: Path, row: Any, **options: Any) -> Conversation:
    (found,) = loaded(folder, row, **options).rows
    return found[1]


def prompts_of(folder: Path, *rows: Any, data: dict | None = None, **options: Any):
    path = str(write_rows(folder / "prompts.jsonl", list(rows)))
    section = DataSection(path="unused", prompts={"path": path, **options}, **(data or {}))
    return load_prompts(section.prompts, section)


def pairs_of(folder: Path, *rows: Any, data: dict | None = None, **options: Any):
    path = str(write_rows(folder / "pairs.jsonl", list(rows)))
    return load_pairs(PairsSection(path=path, **options), DataSection(path="unused", **(data or {})))


# --- system, history ---

WITH_SYSTEM: dict[str, dict[str, Any]] = {
    "messages": {"messages": [ASK, SAY]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "prompt_completion": {"prompt": "Q", "completion": "A"},
    "alpaca": {"instruction": "Q", "output": "A"},
    "real_generated": {"real": [ASK, SAY], "generated": [ASK, SAY]},
}


@pytest.mark.parametrize("shape", WITH_SYSTEM)
@pytest.mark.parametrize("name", ["system", "persona"])
def test_a_system_column_is_the_system_turn_in_every_shape(tmp_path: Path, shape: str, name: str) -> None:
    columns = {} if name == "system" else {"columns": {"system": name}}
    found = only(tmp_path, {**WITH_SYSTEM[shape], name: "S"}, **columns)
    assert list(found.prompt) == [SYSTEM, ASK] and found.reply == "A"
    for blank in ("", "  ", None):
        assert list(only(tmp_path, {**WITH_SYSTEM[shape], name: blank}, **columns).prompt) == [ASK]


@pytest.mark.parametrize("row", [{"messages": [ASK]}, {"conversations": [ASK]}, {"prompt": "Q"}, {"instruction": "Q"}, {"prompt": [ASK]}])
def test_and_of_prompts_without_a_reply(tmp_path: Path, row: dict) -> None:
    (found,) = prompts_of(tmp_path, {**row, "system": "S"}).rows
    assert list(found[1].prompt) == [SYSTEM, ASK]
    (found,) = prompts_of(tmp_path, {**row, "persona": "S"}, columns={"system": "persona"}).rows
    assert list(found[1].prompt) == [SYSTEM, ASK]


@pytest.mark.parametrize("side", ["{}", [turn("assistant", "{}")], [ASK, turn("assistant", "{}")]], ids=["text", "turns", "whole"])
def test_and_of_labelled_pairs(tmp_path: Path, side: Any) -> None:
    sides = {name: json.loads(json.dumps(side).replace("{}", name)) for name in ("chosen", "rejected")}
    (pair,) = pairs_of(tmp_path, {"prompt": "Q", **sides, "system": "S", "history": [] if "whole" in str(side) else None}).rows
    assert list(pair.chosen.prompt) == list(pair.rejected.prompt) == [SYSTEM, ASK]
    assert (pair.chosen.reply, pair.rejected.reply) == ("chosen", "rejected")


def test_the_same_system_text_twice_is_one_and_two_texts_are_refused(tmp_path: Path) -> None:
    assert list(only(tmp_path, {"messages": [SYSTEM, ASK, SAY], "system": " S "}).prompt) == [SYSTEM, ASK]
    with pytest.raises(UserError, match="two system texts"):
        only(tmp_path, {"messages": [SYSTEM, ASK, SAY], "system": "other"})


@pytest.mark.parametrize(
    "history",
    [[["q1", "a1"]], PAST, json.dumps([["q1", "a1"]]), [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}]],
    ids=["pairs", "turns", "JSON text", "sharegpt"],
)
def test_history_stands_before_the_question(tmp_path: Path, history: Any) -> None:
    for row in ({"instruction": "Q", "output": "A"}, {"prompt": "Q", "completion": "A"}, {"prompt": [SYSTEM, ASK], "completion": "A"}):
        found = only(tmp_path, {**row, "history": history, "system": "S"})
        assert list(found.prompt) == [SYSTEM, *PAST, ASK] and found.reply == "A"
    (found,) = prompts_of(tmp_path, {"prompt": "Q", "history": history}).rows
    assert list(found[1].prompt) == [*PAST, ASK]
    (pair,) = pairs_of(tmp_path, {"prompt": "Q", "chosen": "A", "rejected": "B", "history": history}).rows
    assert list(pair.chosen.prompt) == [*PAST, ASK]


@pytest.mark.parametrize("history", [None, [], "", "[]", " "])
def test_no_history(tmp_path: Path, history: Any) -> None:
    assert list(only(tmp_path, {"instruction": "Q", "output": "A", "history": history}).prompt) == [ASK]


@pytest.mark.parametrize("history", [["q1"], [["q1"]], [["q1", None]], {"q": "a"}, "[[", 3, [[1, 2]]])
def test_a_history_that_is_none_is_refused(tmp_path: Path, history: Any) -> None:
    with pytest.raises(UserError, match="history"):
        only(tmp_path, {"instruction": "Q", "output": "A", "history": history})


def test_ids_of_rows_that_were_read_before_do_not_change(tmp_path: Path) -> None:
    plain = only(tmp_path, {"instruction": "Q", "output": "A"})
    assert plain.row_id == only(tmp_path, {"instruction": "Q", "output": "A", "system": "", "history": [], "tools": "[]", "id": 7}).row_id
    # written down from the version before there was any reasoning
    assert (plain.row_id, plain.prompt_key[:16]) == ("b0fa28d838413fe0", "09765970e66b010a")


# --- keys of turns ---


@pytest.mark.parametrize("name", ["tools", "functions"])
def test_tools_are_refused(tmp_path: Path, name: str) -> None:
    for tools in ([{"name": "add"}], '[{"name": "add"}]', {"add": 1}):
        with pytest.raises(UserError, match=f"the column '{name}' has tools"):
            only(tmp_path, {"messages": [ASK, SAY], name: tools})
        with pytest.raises(UserError, match="has tools"):
            prompts_of(tmp_path, {"prompt": "Q", name: tools})
        with pytest.raises(UserError, match="has tools"):
            pairs_of(tmp_path, {"prompt": "Q", "chosen": "A", "rejected": "B", name: tools})
    for none in (None, [], "", "[]", {}, "null"):
        assert only(tmp_path, {"messages": [ASK, SAY], name: none}).reply == "A"
    assert only(tmp_path, {name: "Q", "out": "A"}, columns={"prompt": name, "completion": "out"}).reply == "A"


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
@pytest.mark.parametrize("content", [None, "", "text"])
def test_calls_of_tools_are_refused_whatever_the_text(tmp_path: Path, key: str, content: str | None) -> None:
    with pytest.raises(UserError, match=rf"messages\[1\] calls a tool \({key}\)"):
        only(tmp_path, {"messages": [ASK, turn("assistant", content, **{key: {"name": "add"}}), turn("tool", "2"), SAY]})
    assert only(tmp_path, {"messages": [ASK, turn("assistant", "A", **{key: None})]}).reply == "A"


@pytest.mark.parametrize("role", ["developer", "Developer ", "system", "SYSTEM"])
def test_a_developer_is_the_system(tmp_path: Path, role: str) -> None:
    assert list(only(tmp_path, {"messages": [turn(role, "S"), ASK, SAY]}).prompt) == [SYSTEM, ASK]


NOT_TRAINED = [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_mask": 0}, {"trainable": "false"}, {"loss": False}, {"mask": 1}]
NOT_TRAINED += [{"loss_scale": 0.0}, {"loss_weight": "0"}, {"trained": "off"}, {"is_trainable": False}]
TRAINED = [{}, {"weight": 1}, {"train": True}, {"loss_mask": 1.0}, {"weight": None}, {"masked": False}, {"training": "yes"}]
TRAINED += [{"loss_scale": 1}, {"loss_weight": 1.0}, {"trained": "on"}, {"is_trainable": True}]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(range(len(TRAINED)))), min_size=1, max_size=5))
def test_the_reply_is_the_last_turn_that_is_to_be_trained_on(tmp_path_factory, marks: list[tuple[bool, int]]) -> None:
    turns: list[dict] = []
    for n, (trained, which) in enumerate(marks):
        turns += [turn("user", f"q{n}", weight=0), turn("assistant", f"a{n}", **(TRAINED if trained else NOT_TRAINED)[which])]
    found = loaded(tmp_path_factory.mktemp("rows"), {"messages": turns}, {"messages": [ASK, SAY]})
    last = max((n for n, (trained, _) in enumerate(marks) if trained), default=None)
    if last is None:
        assert [c.reply for _, c in found.rows] == ["A"] and found.counts["untrained"] == 1
        return
    kept = found.rows[0][1]
    assert kept.reply == f"a{last}" and len(kept.prompt) == 2 * last + 1
    assert found.counts["trailing_turns_dropped"] == (last + 1 < len(marks))


def test_rows_without_a_reply_to_train_on_are_counted_to_the_end(tmp_path: Path) -> None:
    rows = [{"messages": [turn("user", f"q{n}"), turn("assistant", "a", weight=n % 2)]} for n in range(8)]
    found = prepare(DataSection(path=str(write_rows(tmp_path / "r.jsonl", rows)), held_out=1), chat(), 0)
    assert found.counts["untrained"] == 4 and found.counts["read"] == 8 == sum(found.counts[name] for name in ROW_COUNTS[1:])
    with pytest.raises(UserError, match="dropped 1 because no reply is to be trained on"):
        prepare(DataSection(path=str(write_rows(tmp_path / "r.jsonl", rows[:1]))), chat(), 0)
    pair = {"prompt": "Q", "chosen": [turn("assistant", "A", weight=0)], "rejected": [turn("assistant", "B")]}
    good = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    path = str(write_rows(tmp_path / "pairs.jsonl", [pair, good]))
    counts = prepare_pairs(PairsSection(path=path), DataSection(path="unused"), chat(), 0, PromptSet([])).counts
    assert (counts["read"], counts["untrained"], counts["pairs"]) == (2, 1, 1)


@pytest.mark.parametrize("value", [0.5, 2, "half", [0, 1], -1])
def test_weights_between_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UserError, match=r"messages\[1\].weight is .*: a turn is trained on \(1, true\) or not"):
        only(tmp_path, {"messages": [ASK, turn("assistant", "A", weight=value)]})


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_apart_or_dropped_and_counted(tmp_path: Path, key: str) -> None:
    row = {"messages": [PAST[0], {**PAST[1], key: "T0"}, ASK, {**SAY, key: "T1"}]}
    found = only(tmp_path, row)
    assert found.reasoning == "T1" and found.prompt[1]["reasoning_content"] == "T0" and found.text == "T1\n\nA"
    dropped = loaded(tmp_path, row, reasoning="drop")
    plain = only(tmp_path, {"messages": [*PAST, ASK, SAY]})
    assert dropped.rows[0][1] == plain and dropped.counts["reasoning_dropped"] == 2
    assert len({found.row_id, plain.row_id}) == 2 and found.prompt_key != plain.prompt_key
    for blank in ("", "  ", None):
        assert only(tmp_path, {"messages": [ASK, {**SAY, key: blank}]}).row_id == only(tmp_path, {"messages": [ASK, SAY]}).row_id


def test_two_texts_of_reasoning_are_refused(tmp_path: Path) -> None:
    assert only(tmp_path, {"messages": [ASK, turn("assistant", "A", thinking="T", reasoning="T")]}).reasoning == "T"
    with pytest.raises(UserError, match="different reasoning in its keys thinking, reasoning"):
        only(tmp_path, {"messages": [ASK, turn("assistant", "A", thinking="T", reasoning="U")]})


def test_reasoning_survives_the_file(tmp_path: Path) -> None:
    rows = [{"messages": [PAST[0], {**PAST[1], "thinking": "T0"}, ASK, {**SAY, "thinking": "T1"}]}, {"messages": [ASK, SAY]}]
    examples = [Example(c.row_id, c, (1,), (2,)) for _, c in loaded(tmp_path, *rows).rows]
    write_examples(tmp_path / "x.parquet", examples)
    assert read_examples(tmp_path / "x.parquet") == examples
    write_examples(tmp_path / "plain.parquet", examples[1:])
    assert "reasoning" not in str(pq.read_schema(tmp_path / "plain.parquet"))


# --- turns as text, repeated turns ---


def test_turns_as_json_text_in_every_place(tmp_path: Path) -> None:
    turns = [SYSTEM, ASK, SAY]
    found = loaded(tmp_path, {"messages": json.dumps(turns)}, {"messages": turns})
    assert found.rows[0][1] == found.rows[1][1] and found.counts["turns_as_json"] == 1
    assert only(tmp_path, {"prompt": json.dumps([SYSTEM, ASK]), "completion": "A"}) == found.rows[0][1]
    (asked,) = prompts_of(tmp_path, {"messages": json.dumps([SYSTEM, ASK])}).rows
    assert list(asked[1].prompt) == [SYSTEM, ASK]
    sides = {"chosen": json.dumps(turns), "rejected": json.dumps([SYSTEM, ASK, turn("assistant", "B")])}
    for prompt in ({}, {"prompt": "Q"}, {"prompt": json.dumps([SYSTEM, ASK])}):
        (pair,) = pairs_of(tmp_path, {**prompt, **sides}).rows
        assert list(pair.chosen.prompt) == [SYSTEM, ASK] and pair.rejected.reply == "B"


def test_turns_in_a_table_without_lists(tmp_path: Path) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["messages", "system"], [json.dumps([ASK, SAY]), "S"]])
    (tmp_path / "rows.csv").write_text(text.getvalue())
    (found,) = load_conversations(DataSection(path=str(tmp_path / "rows.csv")), 0).rows
    assert list(found[1].prompt) == [SYSTEM, ASK]


@pytest.mark.parametrize("text", ["[1, 2]", "[]", '["role"]', '[{"name": "role"}]', "[not json", '{"role": "user"}'])
def test_other_json_is_text(tmp_path: Path, text: str) -> None:
    found = only(tmp_path, {"prompt": text, "completion": text})
    assert found.prompt[0]["content"] == found.reply == text


def test_broken_json_of_turns_names_column_and_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1, column messages: broken JSON: .*\n  -> write the column as a list of turns"):
        only(tmp_path, {"messages": "[{'role': 'user'}]"})
    with pytest.raises(UserError, match="duplicate key"):
        only(tmp_path, {"messages": '[{"role": "user", "role": "assistant", "content": "x"}]'})


TURNS = st.lists(st.sampled_from([*PAST, ASK, SAY]), max_size=4)


@given(TURNS, st.integers(0, 4), st.sampled_from([[], [SYSTEM]]), st.sampled_from([[], [SYSTEM]]))
def test_a_prompt_that_the_reply_repeats_stands_once(tmp_path_factory, before, again, system, own_system) -> None:
    prompt = [*before, ASK]
    repeated = prompt[max(0, len(prompt) - again) :] if again else []
    if repeated and repeated[0]["role"] == "assistant":
        return  # an answer that opens with an assistant's turn goes on from the prompt
    if own_system and len(repeated) < len(prompt):
        return  # a system turn in the middle is a turn of its own
    reply = [*(own_system if repeated else []), *repeated, SAY]
    row = {"prompt": [*([] if own_system else system), *prompt], "chosen": reply}
    found = loaded(tmp_path_factory.mktemp("rows"), row, columns={"completion": "chosen"})
    expected = [*(own_system if repeated else []), *row["prompt"]]
    assert list(found.rows[0][1].prompt) == expected and found.rows[0][1].reply == "A"
    assert found.counts["prompt_repeated"] == bool(repeated)


def test_the_whole_conversation_beside_the_text_of_its_prompt(tmp_path: Path) -> None:
    for asked in ([], [SYSTEM]):
        found = only(tmp_path, {"prompt": "Q", "chosen": [*asked, ASK, SAY]}, columns={"completion": "chosen"})
        assert list(found.prompt) == [*asked, ASK] and found.reply == "A"


# --- nothing is lost in silence ---

TEXT = st.sampled_from([None, "", "x1", "x2", "x3"])


@given(
    st.sampled_from(["messages", "prompt_completion", "alpaca", "sharegpt"]),
    st.dictionaries(st.sampled_from(["system", "history", "input", "id", "source", "note", "generated", "prompt_id", "tools"]), TEXT),
    st.dictionaries(st.sampled_from(["name", "refusal", "thinking", "annotations", "value", "tool_call_id", "function_call"]), TEXT),
    st.booleans(),
)
def test_every_text_of_a_row_is_used_announced_or_refused(tmp_path_factory, shape, columns, keys, as_parquet) -> None:
    row = {**columns, **WITH_SYSTEM[shape]}
    if shape == "messages":
        row["messages"] = [ASK, {**SAY, **keys}]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, [row])
    if as_parquet:
        path = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist([row]), path)
    try:
        found = load_conversations(DataSection(path=str(path)), seed=0)
    except UserError as error:
        assert any(word in error.what for word in ("tool", "history", "JSON"))
        return
    conversation = found.rows[0][1]
    used = " ".join([conversation.text, *(text for message in conversation.prompt for text in message.values())])
    announced = {name.removeprefix("messages[].") for name in found.unused}
    extra = {**columns, **(keys if shape == "messages" else {})}
    for name, value in extra.items():
        if value and name not in WITH_SYSTEM[shape]:
            assert value in used or name in announced, (name, found)
    assert all(f"{name}" in found.notices[-1] for name in announced)


def test_unused_columns_are_listed_once_and_reach_the_prepared_rows(tmp_path: Path) -> None:
    rows = [{"messages": [turn("user", f"q{n}", name="Bo"), SAY], "id": n, "system_prompt": "S"} for n in range(4)]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "new", "level": 3}])
    section = DataSection(path=str(write_rows(tmp_path / "rows.jsonl", rows)), held_out=1, prompts=str(prompts))
    found = prepare(section, chat(), 0)
    assert found.unused == ("id", "system_prompt", "messages[].name", "prompts: level")
    told = [notice.removeprefix("nothing reads these columns of ") for notice in found.notices if "nothing reads" in notice]
    hint = "(data.columns: {system: system_prompt} makes system_prompt the system turn)"
    assert told == [f"{section.path}: id, system_prompt, messages[].name {hint}", f"{prompts}: level"]


def test_columns_that_are_used_are_not_listed(tmp_path: Path) -> None:
    row = {"q": "Q", "a": "A", "gold": "7", "level": 1}
    options = {"columns": {"prompt": "q", "completion": "a"}, "answer": "gold", "checker_columns": ["level"]}
    assert loaded(tmp_path, row, **options).unused == ()
    assert loaded(tmp_path, WITH_SYSTEM["real_generated"]).unused == ()


def test_names_of_columns_cannot_break_the_log(tmp_path: Path) -> None:
    found = loaded(tmp_path, {"prompt": "Q", "completion": "A", "\ud800" * 200: 1, **{f"c{n}": 1 for n in range(300)}})
    assert len(found.unused) == 100 and all(len(name) <= 80 for name in found.unused)
    json.dumps(found.unused, ensure_ascii=False).encode()


def test_new_options_are_no_part_of_the_fingerprint_at_their_default(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": "Q", "completion": "A"}]))
    assert "reasoning" not in data_inputs(DataSection(path=path))
    assert data_inputs(DataSection(path=path, reasoning="drop"))["reasoning"] == "drop"
