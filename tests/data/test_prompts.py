"""Prompts without a reply: what is read, what is left out and counted, and what is kept apart from the held-out rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import chat, jsonl

from sparring.config import DataSection
from sparring.data.prepare import PROMPT_COUNTS, Prepared, data_inputs, prepare, read_examples, write_examples
from sparring.errors import UserError

SFT = [(f"question {n}", f"answer {n}") for n in range(20)]


def prompts_file(folder: Path, rows: list[dict]) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(folder: Path, rows: list[dict], data: dict | None = None, **options) -> Prepared:
    sft = jsonl(folder / "sft.jsonl", SFT)
    prompts = {"path": str(prompts_file(folder, rows)), **options}
    return prepare(DataSection(path=str(sft), prompts=prompts, **{"held_out": 5, **(data or {})}), chat(), 0)


def test_every_shape_of_a_prompt_renders_like_the_same_sft_prompt(tmp_path: Path) -> None:
    shapes = [
        {"prompt": "Who?"},
        {"messages": [{"role": "user", "content": "Who?"}]},
        {"conversations": [{"from": "human", "value": "Who?"}]},
        {"instruction": "Who?", "input": ""},
    ]
    found = [run(tmp_path, [row]).prompts[0] for row in shapes]
    assert {one.prompt_ids for one in found} == {chat().prompt_ids([{"role": "user", "content": "Who?"}])}
    assert not any(one.has_reply or one.conversation.reply for one in found)
    assert len({one.row_id for one in found}) == 1


def test_nothing_held_out_and_no_prompt_of_the_sft_rows_is_played_on(tmp_path: Path) -> None:
    rows = [{"prompt": prompt} for prompt, _ in SFT] + [{"prompt": "new"}, {"prompt": "new"}, {"prompt": " "}]
    rows += [{"prompt": f" {prompt}\n"} for prompt, _ in SFT]  # the same prompts but for white space
    found = run(tmp_path, rows)
    assert [one.conversation.prompt[-1]["content"] for one in found.prompts] == ["new"]
    counts = found.prompt_counts
    assert (counts["held_out"], counts["in_sft_rows"], counts["duplicates"], counts["empty"]) == (10, 30, 1, 1)
    assert counts["read"] == sum(counts[name] for name in PROMPT_COUNTS[1:])


def test_a_fraction_holds_prompts_out_by_the_same_hash_as_rows(tmp_path: Path) -> None:
    unseen = [(f"another {n}", "yes") for n in range(200)]
    as_rows = prepare(DataSection(path=str(jsonl(tmp_path / "all.jsonl", unseen)), held_out=0.3), chat(), 0)
    found = run(tmp_path, [{"prompt": prompt} for prompt, _ in unseen], {"held_out": 0.3})
    played = {one.conversation.prompt_key for one in found.prompts}
    assert played == {one.conversation.prompt_key for one in as_rows.train}
    assert found.prompt_counts["held_out"] == len(as_rows.held_out) > 30


def test_answers_and_columns_of_a_checker_survive_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "gold": 18, "level": {"n": 1}}, {"prompt": "b", "gold": None, "level": None}, {"prompt": "c", "gold": " "}]
    rows.append({"prompt": "d", "gold": float("nan")})  # which pandas writes for null
    found = run(tmp_path, rows, {"checker_columns": ["level"]}, answer="gold")
    path = tmp_path / "prompts.parquet"
    write_examples(path, found.prompts)
    again = {one.conversation.prompt[0]["content"]: one.conversation for one in read_examples(path)}
    assert {name: one.answer for name, one in again.items()} == {"a": "18", "b": None, "c": None, "d": None}
    assert again["a"].columns == {"level": {"n": 1}}
    assert found.prompt_counts["without_answer"] == 3


def test_integers_that_a_missing_value_has_made_floats(tmp_path: Path) -> None:
    """As pandas writes them; \\d+$ would find the 0 of 18.0. What an integer cannot say stays as it is."""
    golds = [18.0, -3.0, None, 0.5, 1e300, "18.0"]
    found = run(tmp_path, [{"prompt": f"p {n}", "gold": gold} for n, gold in enumerate(golds)], answer="gold")
    answers = {one.conversation.prompt[0]["content"]: one.conversation.answer for one in found.prompts}
    assert [answers[f"p {n}"] for n in range(6)] == ["18", "-3", None, "0.5", "1e+300", "18.0"]


@pytest.mark.parametrize(
    ("golds", "kept", "conflicts"),
    [([None, "7"], "7", 0), (["7", "7"], "7", 0), (["9", "7"], "7", 1), ([None, "9", "7", "7"], "7", 1), ([None, None], None, 0)],
)
def test_of_duplicates_one_with_an_answer_is_kept_in_any_order(
    golds: list[str | None], kept: str | None, conflicts: int, tmp_path: Path
) -> None:
    of_prompts = [{"prompt": "a", "gold": gold, "level": gold} for gold in golds]
    of_rows = [{"prompt": f"p{n}", "completion": "so", "gold": "1"} for n in range(4)]
    of_rows += [{"prompt": "p9", "completion": "so", "gold": gold} for gold in golds]
    for order in (1, -1):
        found = run(tmp_path, of_prompts[::order], {"checker_columns": ["level"]}, answer="gold")
        (one,) = found.prompts
        assert (one.conversation.answer, one.conversation.columns) == (kept, {"level": kept})
        assert found.prompt_counts.get("prompts_with_several_answers", 0) == conflicts
        assert found.prompt_counts["duplicates"] == len(golds) - 1
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in of_rows[::order]))
        rows = prepare(DataSection(path=str(path), held_out=2, answer="gold"), chat(), 0)
        (one,) = (row for row in [*rows.train, *rows.held_out] if row.conversation.prompt[0]["content"] == "p9")
        assert one.conversation.answer == kept and rows.counts.get("prompts_with_several_answers", 0) == conflicts


def test_answers_of_sft_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": f"so {n}", "gold": f"{n}"}) + "\n" for n in range(6)))
    found = prepare(DataSection(path=str(path), held_out=2, answer="gold"), chat(), 0)
    assert all(one.conversation.reply == f"so {one.conversation.answer}" for one in [*found.train, *found.held_out])
    assert found.counts["without_answer"] == 0


def test_sft_rows_without_an_answer_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    golds = ["0", None, "", "3", " ", "5"]
    path.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": f"so {n}", "gold": gold}) + "\n" for n, gold in enumerate(golds)))
    assert prepare(DataSection(path=str(path), held_out=2, answer="gold"), chat(), 0).counts["without_answer"] == 3
    assert "without_answer" not in prepare(DataSection(path=str(path), held_out=2), chat(), 0).counts


def test_a_subset_of_the_prompts_depends_on_their_set_and_not_on_their_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"more {n}"} for n in range(30)]
    first, second = (run(tmp_path, order, max_examples=7) for order in (rows, rows[::-1]))
    assert first.prompts == second.prompts and len(first.prompts) == 7
    assert first.prompt_counts["not_in_subset"] == 23


@settings(max_examples=30)
@given(st.lists(st.sampled_from([*[prompt for prompt, _ in SFT], "x", "y", "z", "", "  "]), min_size=1, max_size=30))
def test_every_prompt_is_counted_once(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("prompts")
    try:
        counts = run(folder, [{"prompt": text} for text in texts]).prompt_counts
    except UserError as error:
        assert "no prompt is left" in error.what
        assert not {"x", "y", "z"} & set(texts)
    else:
        assert counts["read"] == len(texts) == sum(counts[name] for name in PROMPT_COUNTS[1:])


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"prompt": "a", "completion": "b"}], {}, ["the prompts have replies", "'completion'", "data.prompts.replies: drop"]),
        ([{"instruction": "a", "output": "b"}], {}, ["the prompts have replies", "'output'"]),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}], {}, ["line 1", "has a reply"]),
        ([{"question": "a"}], {}, ["no column holds a prompt", "question", "data.prompts.columns"]),
        ([{"prompt": "a"}], {"answer": "gold"}, ["no column 'gold' (data.prompts.answer)", "prompt"]),
        ([{"prompt": "a", "gold": [1]}], {"answer": "gold"}, ["line 1", "gold is a list"]),
        ([{"prompt": "question 1"}], {}, ["no prompt is left to play on"]),
        ([{"prompt": ""}], {}, ["no prompt is left to play on", "1 empty"]),
        ([{"prompt": "", "completion": "b"}], {"replies": "drop"}, ["no prompt is left to play on: 1 read, 1 empty\n"]),
        ([], {}, ["the data is empty", "data.prompts"]),
        ([{"prompt": "x" * 600}], {}, ["1 prompt too long"]),
    ],
)
def test_mistakes(tmp_path: Path, rows: list[dict], options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        run(tmp_path, rows, **options)
    for word in words:
        assert word in str(caught.value)


def test_a_column_that_neither_rows_nor_prompts_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="levl") as caught:
        run(tmp_path, [{"prompt": "a", "level": 1}], {"checker_columns": ["levl"]})
    assert "did you mean level?" in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}]},
    ],
)
def test_replies_may_be_dropped_and_are_counted(tmp_path: Path, row: dict) -> None:
    found = run(tmp_path, [row], replies="drop")
    assert found.prompt_counts["replies_dropped"] == 1
    assert found.prompts[0].prompt_ids == chat().prompt_ids([{"role": "user", "content": "a"}])


def test_options_that_are_not_used_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "sft.jsonl", SFT)
    plain = data_inputs(DataSection(path=str(path)))
    assert not {"prompts", "answer", "checker_columns"} & plain.keys()
    prompts = prompts_file(tmp_path, [{"prompt": "a"}])
    with_prompts = data_inputs(DataSection(path=str(path), prompts=str(prompts)))
    prompts.write_text('{"prompt": "b"}\n')
    assert data_inputs(DataSection(path=str(path), prompts=str(prompts))) != with_prompts != plain
