"""Rows and tokens: measured where the data is at hand, given, or assumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from by_hand import recipe_of

from sparring.data.chat import Chat
from sparring.data.prepare import prepare
from sparring.errors import UserError
from sparring.planning.lengths import Given, find_lengths
from sparring.policy.tiny import byte_tokenizer


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": "p" * (n % 7 + 1) + str(n), "completion": "c" * (3 * (n % 5) + 1)} for n in range(90)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_measured_lengths_are_those_of_the_rows_that_a_run_makes(data: Path) -> None:
    recipe = recipe_of(path="builtin:tiny", data={"path": str(data), "held_out": 20})
    made = prepare(recipe.data, Chat(byte_tokenizer()), recipe.seed)
    found = find_lengths(recipe, Given())
    examples = [*made.train, *made.held_out]
    assert (found.train_rows, found.held_out_rows) == (len(made.train), len(made.held_out)) == (70, 20)
    assert found.prompt == pytest.approx(sum(len(e.prompt_ids) for e in examples) / 90)
    assert found.reply == found.generated == pytest.approx(sum(len(e.reply_ids) for e in examples) / 90)
    assert found.longest_prompt == max(len(e.prompt_ids) for e in examples)
    assert f"measured on 90 rows of {data}" in found.source


def test_a_sample_of_many_rows_tells_how_many_will_be_dropped(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.planning.lengths.SAMPLE_ROWS", 40)
    recipe = recipe_of(path="builtin:tiny", data={"path": str(data), "held_out": 10, "max_reply_tokens": 8})
    made = prepare(recipe.data, Chat(byte_tokenizer()), recipe.seed)
    found = find_lengths(recipe, Given())
    assert found.train_rows == pytest.approx(len(made.train), abs=8)
    assert found.longest_reply <= 8


def test_the_sampling_limit_bounds_the_generated_replies(data: Path) -> None:
    recipe = recipe_of("sampling.max_new_tokens=4", path="builtin:tiny", data={"path": str(data), "held_out": 10})
    found = find_lengths(recipe, Given())
    assert found.generated < found.reply and found.longest_generated == 4


def test_what_cannot_be_measured_is_assumed_and_said() -> None:
    found = find_lengths(recipe_of(), Given())
    assert (found.train_rows, found.held_out_rows, found.prompt, found.reply, found.generated) == (100, 10, 512, 512, 24)
    assert "assumed" in found.source and "upper bound" in found.source and found.are_bounds


def test_what_is_given_wins() -> None:
    found = find_lengths(recipe_of("data.held_out=0.1"), Given(rows=1000, prompt_tokens=99.5, reply_tokens=20))
    assert (found.train_rows, found.held_out_rows, found.prompt, found.reply, found.generated) == (900, 100, 99.5, 20, 20)
    assert "given: 99.5 prompt, 20 reply, 1,000 rows" in found.source and not found.are_bounds
    assert find_lengths(recipe_of(), Given(reply_tokens=20, generated_tokens=7)).generated == 7


def test_a_file_is_counted_though_the_tokenizer_is_elsewhere(data: Path) -> None:
    """Of a Hub model whose sizes are known."""
    found = find_lengths(recipe_of(data={"path": str(data), "held_out": 20}), Given())
    assert (found.train_rows, found.held_out_rows, found.prompt) == (70, 20, 512) and found.are_bounds
    assert find_lengths(recipe_of(data={"path": str(data), "held_out": 20, "max_examples": 50}), Given()).train_rows == 30
    assert find_lengths(recipe_of(data={"path": str(data), "held_out": 20, "max_examples": 500}), Given()).train_rows == 70


def test_a_given_mean_beyond_the_longest_is_the_longest() -> None:
    found = find_lengths(recipe_of(), Given(prompt_tokens=900.5, reply_tokens=700))
    assert (found.longest_prompt, found.longest_reply, found.generated) == (901, 700, 24)


def test_rows_that_nobody_knows_are_asked_for() -> None:
    recipe = recipe_of("data.max_examples=null")
    with pytest.raises(UserError, match="--rows"):
        find_lengths(recipe, Given())
    assert find_lengths(recipe, Given(rows=50)).train_rows == 40
    with pytest.raises(UserError, match=r"data\.held_out"):
        find_lengths(recipe, Given(rows=10))
