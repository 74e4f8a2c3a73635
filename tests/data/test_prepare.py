"""Dropping, the subset, the split and the files of prepared examples."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from conftest import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparring.config import DataSection
from sparring.data.chat import Chat, load_template
from sparring.data.prepare import ROW_COUNTS, prepare, read_examples, split_by_prompt, write_examples
from sparring.data.records import Conversation, Example, Message
from sparring.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that lengths can be told by eye."""
    vocabulary = {letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def chat(name: str = "mistral") -> Chat:
    return Chat(byte_tokenizer(), load_template(Path(__file__).parent / f"{name}.jinja"))


def conversation(prompt: str, reply: str) -> Conversation:
    return Conversation((Message(role="user", content=prompt),), reply)


def example(prompt: str, reply: str) -> Example:
    found = conversation(prompt, reply)
    return Example(found.row_id, found, tuple(prompt.encode()), tuple(reply.encode()))


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": reply}) + "\n" for prompt, reply in rows))
    return path


def run(path, seed=0, template="mistral", **options):
    return prepare(DataSection(path=str(path), **options), chat(template), seed)


def ids(examples) -> set[str]:
    return {found.row_id for found in examples}


MANY = [(f"question {n % 70}", f"answer {n}") for n in range(100)]

# "[INST] " and " [/INST]" with the start token make a prompt 16 tokens longer than its text; " " and "</s>" a reply 2.


def test_every_rule_drops_what_it_says_and_counts_it(tmp_path):
    rows = [("a", "1"), ("a", "1"), ("a", "2"), (" ", "1"), ("b", "\n"), ("c" * 30, "1"), ("d", "1" * 30), ("e", "5"), ("f", "6")]
    prepared = run(jsonl(tmp_path / "r.jsonl", rows), held_out=1, max_prompt_tokens=16 + 29, max_reply_tokens=2 + 29)
    counts = prepared.counts
    kept = {found.conversation.prompt[0]["content"] + found.conversation.reply for found in prepared.train + prepared.held_out}
    assert kept == {"a1", "a2", "e5", "f6"}
    assert {key: counts[key] for key in ROW_COUNTS[:6]} == {
        "read": 9, "empty": 2, "duplicates": 1, "prompt_too_long": 1, "reply_too_long": 1, "not_in_subset": 0,
    }  # fmt: skip
    assert counts["train"] + counts["held_out"] == 4 and counts["reply_cut"] == 0
    assert counts["read"] == sum(counts[key] for key in ROW_COUNTS[1:])
    assert prepared.notices == ["data.shape: prompt_completion, by the columns prompt, completion"]


def test_limits_are_inclusive(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", [("abcd", "12"), ("efgh", "34")])
    assert len(run(path, held_out=1, max_prompt_tokens=20, max_reply_tokens=4).train) == 1
    with pytest.raises(UserError, match=r"no row is left of 2: dropped 2 for a prompt over data.max_prompt_tokens \(19\)"):
        run(path, held_out=1, max_prompt_tokens=19)
    with pytest.raises(UserError, match=r"no row is left of 2: dropped 2 for a reply over data.max_reply_tokens \(3\)"):
        run(path, held_out=1, max_reply_tokens=3)


def test_cut_reply_has_no_end_of_turn(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", [("a", "1" * 9), ("b", "2" * 8), ("c", "3")])
    prepared = run(path, held_out=1, max_reply_tokens=10, too_long="cut")
    replies = {found.conversation.reply: found.reply_ids for found in prepared.train + prepared.held_out}
    end = chat().end_of_turn_id
    assert prepared.counts["reply_cut"] == 1 and prepared.counts["reply_too_long"] == 0
    assert len(replies["1" * 9]) == 10 and end not in replies["1" * 9]
    assert replies["2" * 8][-1] == end and replies["3"][-1] == end


def test_examples_carry_what_chat_encodes(tmp_path):
    for found in run(jsonl(tmp_path / "r.jsonl", MANY), held_out=10).train:
        assert (found.prompt_ids, found.reply_ids) == chat().encode(found.conversation)
        assert found.row_id == found.conversation.row_id


@pytest.mark.parametrize("held_out", [20, 0.3])
@pytest.mark.parametrize("max_examples", [None, 60])
def test_order_of_the_file_does_not_matter(tmp_path, held_out, max_examples):
    first = run(jsonl(tmp_path / "a.jsonl", MANY), held_out=held_out, max_examples=max_examples)
    shuffled = random.Random(1).sample(MANY, len(MANY))
    second = run(jsonl(tmp_path / "b.jsonl", shuffled), held_out=held_out, max_examples=max_examples)
    assert (first.train, first.held_out, first.counts) == (second.train, second.held_out, second.counts)


def test_subset_is_random_by_seed_and_grows_with_its_size(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", MANY)

    def rows(seed, size):
        prepared = run(path, seed=seed, held_out=5, max_examples=size)
        return ids(prepared.train + prepared.held_out)

    drawn = {(seed, size): rows(seed, size) for seed in (0, 1) for size in (40, 50)}
    assert {key: len(rows) for key, rows in drawn.items()} == {(0, 40): 40, (0, 50): 50, (1, 40): 40, (1, 50): 50}
    assert drawn[0, 40] < drawn[0, 50]
    assert 10 < len(drawn[0, 50] & drawn[1, 50]) < 40  # 25 expected, standard deviation 2.5
    assert run(path, held_out=5, max_examples=40).counts["not_in_subset"] == 60


def test_subset_equals_tokenising_everything_first(tmp_path):
    rows = [(prompt, reply * (1 + 9 * (n % 3 == 0))) for n, (prompt, reply) in enumerate(MANY)]
    path = jsonl(tmp_path / "r.jsonl", rows)
    every = run(path, held_out=5, max_reply_tokens=40)
    short = [(f.conversation.prompt[0]["content"], f.conversation.reply) for f in every.train + every.held_out]
    assert 40 < len(short) < 100
    from_short = run(jsonl(tmp_path / "s.jsonl", short), held_out=5, max_examples=40)
    from_all = run(path, held_out=5, max_examples=40, max_reply_tokens=40)
    assert (from_all.train, from_all.held_out) == (from_short.train, from_short.held_out)
    assert from_all.counts["read"] == sum(from_all.counts[key] for key in ROW_COUNTS[1:])


@pytest.mark.parametrize(("rows", "held_out"), [(9, 8), (24, 8), (80, 8), (99, 9), (1990, 199), (2010, 200), (60000, 200)])
def test_a_tenth_is_held_out_of_few_rows_and_200_of_many(rows, held_out):
    assert DataSection(path="rows.jsonl").held_out_of(rows) == held_out
    assert DataSection(path="rows.jsonl", held_out=3).held_out_of(rows) == 3
    assert DataSection(path="rows.jsonl", held_out=0.5).held_out_of(rows) == 0.5


def test_held_out_of_what_the_rules_leave(tmp_path):
    """The tenth is one of the rows that are left, not of those that are read."""
    path = jsonl(tmp_path / "r.jsonl", [(f"question {n}", f"answer {n}" if n < 150 else "") for n in range(200)])
    found = run(path)
    assert (found.counts["read"], len(found.train), len(found.held_out)) == (200, 135, 15)
    assert run(path, max_examples=24).counts["held_out"] == 8
    with pytest.raises(UserError, match=r"data\.held_out is 8, but 8 rows remain .*: nothing is left to train on"):
        run(path, max_examples=8)


def test_more_wanted_than_there_are(tmp_path):
    prepared = run(jsonl(tmp_path / "r.jsonl", MANY), held_out=5, max_examples=1000)
    assert len(prepared.train) + len(prepared.held_out) == 100 and prepared.counts["not_in_subset"] == 0


# --- the split ---

PROMPTS = st.lists(st.tuples(st.text(max_size=3), st.text(max_size=2)), min_size=1, max_size=40, unique=True)


@settings(max_examples=100, deadline=None)
@given(PROMPTS, st.one_of(st.integers(1, 50), st.floats(0.01, 0.99)), st.randoms())
def test_no_prompt_is_on_both_sides_in_any_order(rows, held_out, rng):
    examples = [example(*row) for row in rows]
    train, held = split_by_prompt(examples, held_out)
    assert ids(train) | ids(held) == ids(examples) and len(train) + len(held) == len(examples)
    assert not {f.conversation.prompt_key for f in train} & {f.conversation.prompt_key for f in held}
    rng.shuffle(examples)
    again = split_by_prompt(examples, held_out)
    assert (ids(again[0]), ids(again[1])) == (ids(train), ids(held))


@settings(max_examples=100, deadline=None)
@given(PROMPTS, st.integers(1, 50))
def test_count_takes_whole_prompts_until_there_are_enough(rows, count):
    examples = [example(*row) for row in rows]
    _, held = split_by_prompt(examples, count)
    assert len(held) >= min(count, len(examples))
    highest = max(f.conversation.prompt_key for f in held)
    assert len([f for f in held if f.conversation.prompt_key != highest]) < count
    assert ids(held) == ids(f for f in examples if f.conversation.prompt_key <= highest)


@settings(max_examples=50, deadline=None)
@given(PROMPTS, PROMPTS, st.floats(0.01, 0.99))
def test_fraction_puts_a_prompt_on_the_same_side_in_any_data_set(some, others, fraction):
    first, second = ([example(*row) for row in rows] for rows in (some, others))
    both = split_by_prompt([*first, *second], fraction)
    for part in (first, second):
        train, held = split_by_prompt(part, fraction)
        assert ids(train) <= ids(both[0]) and ids(held) <= ids(both[1])


def test_fraction_is_about_that_share():
    examples = [example(str(n), "") for n in range(2000)]
    held = split_by_prompt(examples, 0.25)[1]
    assert abs(len(held) - 500) < 80  # four standard deviations
    assert ids(held) < ids(split_by_prompt(examples, 0.5)[1])


def test_prompts_with_the_same_tokens_are_not_trained_on_when_held_out(tmp_path):
    # The Gemma-like template trims blanks, so these texts differ in their hash and not in their tokens.
    rows = [(" " * n + "q", str(n)) for n in range(20)] + [(f"other {n}", "a") for n in range(20)]
    prepared = run(jsonl(tmp_path / "r.jsonl", rows), template="gemma", held_out=0.3)
    unseen = {found.prompt_ids for found in prepared.held_out}
    assert not unseen & {found.prompt_ids for found in prepared.train}
    assert prepared.counts["prompt_held_out"] > 0
    assert prepared.counts["read"] == sum(prepared.counts[key] for key in ROW_COUNTS[1:]) == 40


def test_prompts_that_differ_in_white_space_are_not_trained_on_when_held_out(tmp_path):
    texts = [f"what is {n}?" for n in range(20)]
    rows = [(text.replace(" ", blank), "a") for text in texts for blank in (" ", "  ", "\n")]
    prepared = run(jsonl(tmp_path / "r.jsonl", rows), held_out=0.3)
    asked = [{" ".join(one.conversation.prompt[-1]["content"].split()) for one in part} for part in (prepared.train, prepared.held_out)]
    assert not asked[0] & asked[1] and asked[0] | asked[1] == set(texts)
    assert prepared.counts["prompt_held_out"] > 0
    assert prepared.counts["read"] == sum(prepared.counts[key] for key in ROW_COUNTS[1:]) == 60


def test_a_blank_turn_makes_no_other_prompt(tmp_path):
    def turns(system, text):
        opening = [] if system is None else [{"role": "system", "content": system}]
        return [*opening, {"role": "user", "content": text}, {"role": "assistant", "content": "a"}]

    rows = [{"messages": turns(system, f"what is {n}?")} for n in range(20) for system in (None, "", " \n", "be brief")]
    prepared = run(write_rows(tmp_path / "r.jsonl", rows), held_out=0.3)
    train, held_out = (
        {"".join(turn["content"] for turn in one.conversation.prompt).strip() for one in part}
        for part in (prepared.train, prepared.held_out)
    )
    assert not train & held_out and len(train | held_out) == 40
    assert prepared.counts["prompt_held_out"] > 0


# --- refusals ---


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (MANY, {"held_out": 100}, "data.held_out is 100, but 100 rows remain after filters and data.max_examples: nothing is left"),
        ([("q", str(n)) for n in range(99)], {"held_out": 9, "max_examples": 10}, "data.held_out is 9, but 10 rows remain"),
        ([("same", str(n)) for n in range(9)], {"held_out": 1}, "data.held_out is 1, but 9 rows remain .*: nothing is left to train on"),
        (
            [("same" + " " * n + "words", "a") for n in range(1, 21)],
            {},
            "data.held_out is 8, but 20 rows remain .*; rows left out because a held-out prompt has the same words or tokens: 12",
        ),
        (MANY, {"held_out": 1e-9}, "data.held_out is 1e-09, but 100 rows remain .*: nothing is held out"),
        ([("", "a"), ("q", " "), ("q", "a" * 50)], {"max_reply_tokens": 9},
         r"no row is left of 3: dropped 2 for an empty prompt or reply, 1 for a reply over data.max_reply_tokens \(9\)"),
    ],
)  # fmt: skip
def test_nothing_left_says_which_rule(tmp_path, rows, options, message):
    with pytest.raises(UserError, match=message) as caught:
        run(jsonl(tmp_path / "r.jsonl", rows), **options)
    assert caught.value.where.endswith("r.jsonl") and caught.value.remedy


def test_row_that_the_template_refuses_is_named(tmp_path):
    rows = [{"messages": [{"role": r, "content": "x"} for r in roles]} for roles in (["user", "assistant"], ["user", "user", "assistant"])]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"r.jsonl, line 2: the chat template refuses this conversation: Roles must alternate"):
        run(path, held_out=1)


def test_notices_of_chat_come_along(tmp_path):
    row = {"messages": [{"role": r, "content": f"{r} text"} for r in ("system", "user", "assistant")]}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({"messages": row["messages"][1:]}))
    assert "the chat template has no system role" in run(path, held_out=1).notices[1]


# --- files ---


@settings(max_examples=30, deadline=None)
@given(PROMPTS)
def test_written_examples_are_read_back_equal(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("examples") / "train.parquet"
    examples = [example(*row) for row in rows]
    write_examples(path, examples)
    assert read_examples(path) == examples


def test_many_turns_and_no_rows_are_written(tmp_path):
    turns = tuple(Message(role=role, content=f"\x00 {role} 漢字") for role in ("system", "user", "assistant", "user"))
    found = Example("id", Conversation(turns, "\r\n"), (0, 2**31 - 1), ())
    write_examples(tmp_path / "one.parquet", [found])
    write_examples(tmp_path / "none.parquet", [])
    assert read_examples(tmp_path / "one.parquet") == [found] and read_examples(tmp_path / "none.parquet") == []


@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_unreadable_examples(tmp_path, content):
    path = tmp_path / "train.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the prepared examples"):
        read_examples(path)


# --- real data ---


@pytest.mark.long
def test_real_data():
    path = SHARED / "gsm8k_train.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    options = {"columns": {"prompt": "question", "completion": "answer"}, "max_examples": 300, "max_prompt_tokens": 400}
    prepared = run(path, template="chatml", held_out=50, max_reply_tokens=500, **options)
    assert (len(prepared.train), len(prepared.held_out), prepared.counts["read"]) == (250, 50, 7473)
    assert prepared.counts["prompt_too_long"] > 0 and prepared.counts["reply_too_long"] > 0
    assert all("#### " in chat("chatml").decode(found.reply_ids) for found in prepared.train)
