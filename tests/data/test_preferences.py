"""Preference pairs in the shapes that TRL takes, and everything about them that is refused or left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from sparring.config import DataSection, PairsSection
from sparring.data.chat import Chat
from sparring.data.preferences import PAIR_COUNTS, PreparedPairs, load_pairs, prepare_pairs, read_pairs, write_pairs
from sparring.data.records import Conversation, Example, PromptSet
from sparring.errors import UserError
from sparring.policy.tiny import byte_tokenizer

USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", "say a"), ("assistant", "a"), ("assistant", "b")))
SYSTEM = {"role": "system", "content": "be brief"}
SHAPES: dict[str, dict[str, Any]] = {
    "plain texts": {"prompt": "say a", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations without a prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "whole conversations beside the prompt's text": {"prompt": "say a", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "whole conversations beside the prompt's turns": {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "a prompt's text and turns of replies": {"prompt": "say a", "chosen": [GOOD], "rejected": [BAD]},
    "sharegpt's words": {"chosen": [{"from": "human", "value": "say a"}, {"from": "gpt", "value": "a"}], "rejected": [USER, BAD]},
}


def section(path: Path, found: list[Any], **more: Any) -> PairsSection:
    return PairsSection(path=str(write_rows(path / "pairs.jsonl", found)), **more)


def chat() -> Chat:
    return Chat(byte_tokenizer())


def limits(**more: Any) -> DataSection:
    return DataSection(path="unused", **more)


def prepared(path: Path, found: list[Any], held_out: Sequence[Example] = (), **more: Any) -> PreparedPairs:
    own = {key: more.pop(key) for key in ("max_examples", "columns") if key in more}
    return prepare_pairs(section(path, found, **own), limits(**more), chat(), 0, PromptSet(held_out))


def pair(n: int, **more: Any) -> dict[str, str]:
    return {"prompt": f"say {n}", "chosen": "good", "rejected": "bad", **more}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_the_same_pair(tmp_path: Path, shape: str) -> None:
    (found,) = load_pairs(section(tmp_path, [SHAPES[shape]]), limits()).rows
    assert [dict(turn) for turn in found.chosen.prompt] == [USER] and found.rejected.prompt == found.chosen.prompt
    assert (found.chosen.reply, found.rejected.reply) == ("a", "b")
    (duel,) = prepare_pairs(section(tmp_path, [SHAPES[shape]]), limits(), chat(), 0, PromptSet([])).duels
    text = "<|im_start|>user\nsay a<|im_end|>\n<|im_start|>assistant\n"
    decode = byte_tokenizer().decode
    assert decode(duel.prompt_ids) == text
    assert (decode(duel.real_ids), *map(decode, duel.generated_ids)) == ("a<|im_end|>", "b<|im_end|>")


def test_several_turns_and_own_columns(tmp_path: Path) -> None:
    row = {"q": [SYSTEM, USER, GOOD, {"role": "user", "content": "again"}], "good": [GOOD], "bad": [BAD], "score": 3}
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    (found,) = load_pairs(section(tmp_path, [row], columns=columns), limits()).rows
    assert [turn["content"] for turn in found.chosen.prompt] == ["be brief", "say a", "a", "again"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "say a: a", "rejected": "say a: b"}, "plain text and the row has no prompt"),
        ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "chosen and rejected do not answer the same turns"),
        ({"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "prompt is none of the turns of chosen"),
        ({"prompt": "say a", "chosen": "a"}, "preference pairs need a column 'rejected'; the columns are: prompt, chosen"),
        ({"prompt": "say a", "chosen": "a", "rejected": None}, "row without a reply: rejected is missing or null"),
        ({"prompt": "say a", "chosen": "a", "rejected": 3}, "rejected is a number (3), not text"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [USER, BAD]}, "row without a reply: it has no assistant turn"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_pairs(section(tmp_path, [row]), limits())
    assert words in caught.value.what and "pairs.jsonl" in str(caught.value.where)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data file") as caught:
        load_pairs(PairsSection(path=str(tmp_path / "none.jsonl")), limits())
    assert "controls.pairs.path" in caught.value.remedy
    with pytest.raises(UserError, match="has no rows") as caught:
        load_pairs(section(tmp_path, []), limits())
    assert "check controls.pairs.path" in caught.value.remedy
    with pytest.raises(UserError, match="need a column 'chosen'"):
        load_pairs(PairsSection(path="builtin:tasks"), limits())
    with pytest.raises(UserError, match="need a column 'x'"):
        load_pairs(section(tmp_path, [pair(0)], columns={"chosen": "x"}), limits())


def test_what_becomes_of_every_pair(tmp_path: Path) -> None:
    asked = Conversation(({"role": "user", "content": "say  1 "},), "")  # the pair's prompt but for white space
    held_out = [Example("0", asked, chat().prompt_ids(asked.prompt), ())]
    found = prepared(
        tmp_path,
        [pair(0), pair(1), pair(0), pair(2, rejected="good"), pair(3, chosen=" "), pair(4, rejected="x" * 50), pair(5)],
        held_out,
        max_reply_tokens=20,
    )
    counts = {
        "read": 7,
        "empty": 1,
        "duplicates": 1,
        "same_reply": 1,
        "too_long": 1,
        "prompt_held_out": 1,
        "not_in_subset": 0,
        "untrained": 0,
        "bad": 0,
    }
    counts["pairs"] = 2
    assert found.counts == counts and tuple(counts) == PAIR_COUNTS
    write_pairs(tmp_path / "pairs.parquet", found.duels)
    assert read_pairs(tmp_path / "pairs.parquet") == found.duels
    with pytest.raises(UserError, match="no pair is left to train on: 1 read, 1 same reply"):
        prepared(tmp_path, [pair(2, rejected="good")])


def test_long_replies_are_cut_where_the_data_says_so(tmp_path: Path) -> None:
    (duel,) = prepared(tmp_path, [pair(0, rejected="good and more")], max_reply_tokens=6, too_long="cut").duels
    assert (len(duel.real_ids), len(duel.generated_ids[0])) == (5, 6)
    with pytest.raises(UserError, match="1 same reply"):  # cut to the same tokens, they teach nothing
        prepared(tmp_path, [pair(0, chosen="good1", rejected="good2")], max_reply_tokens=4, too_long="cut")


def test_a_subset_does_not_depend_on_the_order(tmp_path: Path) -> None:
    every = [pair(n) for n in range(20)]
    one = prepared(tmp_path, every, max_examples=5)
    assert one.counts["not_in_subset"] == 15 and one == prepared(tmp_path, every[::-1], max_examples=5)
    assert json.dumps(sorted(duel.row_id for duel in one.duels)) == json.dumps([duel.row_id for duel in one.duels])
