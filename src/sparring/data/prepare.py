"""Rows to examples, once per run: drop, tokenise, take the subset, split by a hash of the prompt; and the fingerprint of it all.

The outcome depends on the rows as a set and on the recipe, never on the order of the rows in the file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import DataSection, PairsSection, PromptsSection
from sparring.data.chat import Chat
from sparring.data.conversations import (
    Loaded,
    Located,
    distinct,
    has_no_user_text,
    is_empty,
    load_conversations,
    load_prompts,
    none_left,
    tokenised,
)
from sparring.data.records import Conversation, Example, PromptSet, make_message
from sparring.data.shapes import BadRows, Source
from sparring.data.sources import local_files
from sparring.data.tables import read_rows, whole
from sparring.errors import UserError, suggestion
from sparring.rundir import digest, file_hash

# Options that are newer than the first runs; the first of them apply to rows of any kind
ROW_OPTIONS = ("on_bad_row", "reasoning")
LATER_OPTIONS = (*ROW_OPTIONS, "answer", "checker_columns")


def data_inputs(section: DataSection) -> dict[str, Any]:
    """Everything that the prepared rows depend on; newer options are left out at their default, so that earlier runs remain valid."""
    inputs = {**section.model_dump(exclude={"path", "prompts", *LATER_OPTIONS}), **changed(section, LATER_OPTIONS)}
    if section.prompts is not None:
        inputs["prompts"] = rows_inputs(section.prompts)
    return {**inputs, "content": source_fingerprint(section)}


def rows_inputs(section: PromptsSection | PairsSection) -> dict[str, Any]:
    """Everything that prompts without replies, or pairs, depend on, except for the limits of the data section."""
    return {**section.model_dump(exclude={"path"}), "content": source_fingerprint(section)}


def changed(section: DataSection, names: Sequence[str]) -> dict[str, Any]:
    """The options that are not at their default."""
    fields = type(section).model_fields
    return {name: value for name in names if (value := getattr(section, name)) != fields[name].default}


def source_fingerprint(section: Source) -> str:
    """sha256 of a local file, or of several files independent of their names; for built-in data and Hub ids the name (the recipe has the
    revision)."""
    files = local_files(section)
    if files is None:
        return section.named
    try:
        hashes = [file_hash(file) for file in files]
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", where=f"{section.option}.path ({error.filename})") from None
    return hashes[0] if len(hashes) == 1 else digest(sorted(hashes))


def chat_fingerprint(chat: Chat) -> str:
    """Hash of everything that turns messages into token ids."""
    tokenizer = chat.tokenizer.backend_tokenizer.to_str() if chat.tokenizer.is_fast else repr(chat.tokenizer)
    return digest([chat.template, tokenizer, sorted(chat.stop_ids)])


PROMPTS = "prompts.parquet"  # in a data stage: the prompts without replies, if the recipe has any

# Outcomes of the rows, and of data.prompts; `read` is the sum of those that follow it.
ROW_COUNTS: tuple[str, ...] = ("read", "empty", "duplicates", "prompt_too_long", "reply_too_long", "not_in_subset", "prompt_held_out")
ROW_COUNTS += ("untrained", "bad", "train", "held_out")
PROMPT_COUNTS = ("read", "empty", "duplicates", "held_out", "in_sft_rows", "prompt_too_long", "not_in_subset", "bad", "prompts")


@dataclass(frozen=True)
class Prepared:
    """Tokenised rows in the order of their ids. No prompt is in two lists, neither by its words nor by its token ids.

    `counts`: ROW_COUNTS, where `prompt_held_out` are rows left out because a held-out prompt has the same token ids or the same
    words with other white space, and `untrained` those without a reply that is to be trained on; and changes to rows: reply_cut,
    trailing_turns_dropped, surrogates_replaced, and where there are any prompt_repeated, turns_as_json, reasoning_dropped,
    prompts_with_several_answers; with data.answer also without_answer, the rows whose cell is empty. With data.max_examples the rows
    outside the subset are not tokenised, so those that are too long count as not_in_subset.
    """

    train: list[Example]
    held_out: list[Example]
    counts: dict[str, int]
    notices: list[str]  # the decisions, one sentence each
    prompts: list[Example] = field(default_factory=list)  # those of data.prompts
    prompt_counts: dict[str, int] = field(default_factory=dict)  # PROMPT_COUNTS of them
    unused: tuple[str, ...] = ()  # columns of the rows and of the prompts, and keys of their turns, that nothing reads


def prepare(section: DataSection, chat: Chat, seed: int) -> Prepared:
    """Read, drop empty rows and exact duplicates, apply the length rules, take the subset and split.

    Raises UserError for data that cannot be read, when a rule leaves no row, and when the held-out part leaves none to train on.
    """
    loaded = load_conversations(section, seed)
    counts = {**dict.fromkeys(ROW_COUNTS, 0), "reply_cut": 0, **loaded.counts}
    tokenise = partial(_tokenised, section=section, chat=chat, counts=counts)
    examples = tokenised(_distinct(loaded, counts), section.max_examples, seed, tokenise, counts, loaded.bad)
    if not examples:
        raise _nothing_left(section, counts, loaded.bad)
    split, held_out = split_by_prompt(examples, section.held_out_of(len(examples)))
    unseen = PromptSet(held_out)
    train = [example for example in split if not unseen.has(example.conversation, example.prompt_ids)]
    counts |= {"train": len(train), "held_out": len(held_out), "prompt_held_out": len(split) - len(train)}
    if section.answer is not None:  # of these the human reply is read
        counts["without_answer"] = sum(example.conversation.answer is None for example in (*train, *held_out))
    if not train or not held_out:
        raise _one_side_empty(section, counts)
    prompts = load_prompts(section.prompts, section) if section.prompts else Loaded[Located]([], {}, [], (), BadRows(), ())
    _check_columns(section, [*loaded.columns, *prompts.columns])
    found, prompt_counts = _prompts(prompts, section, chat, seed, train, held_out) if section.prompts else ([], {})
    notices = [*loaded.notices, *loaded.bad.notices, *prompts.notices, *prompts.bad.notices, *chat.notices]
    unused = (*loaded.unused, *(f"prompts: {name}" for name in prompts.unused))
    return Prepared(train, held_out, counts, notices, found, prompt_counts, unused)


def _prompts(
    loaded: Loaded[Located], section: DataSection, chat: Chat, seed: int, train: list[Example], held_out: list[Example]
) -> tuple[list[Example], dict[str, int]]:
    """The prompts of data.prompts, and PROMPT_COUNTS. None of them is a prompt of the rows, by its words or by token ids."""
    assert section.prompts is not None
    counts = {**dict.fromkeys(PROMPT_COUNTS, 0), "read": loaded.counts["read"]}
    of_rows = {"held_out": PromptSet(held_out), "in_sft_rows": PromptSet(train)}
    rows = _distinct_prompts(loaded.rows, counts, section.held_out, of_rows)

    def tokenise(row: Located) -> Example | str:
        where, conversation = row
        ids = chat.row_prompt_ids(conversation.prompt, where=where)
        if not ids:
            return "empty"
        if len(ids) > section.max_prompt_tokens:
            return "prompt_too_long"
        return next((name for name, prompts in of_rows.items() if ids in prompts.ids), Example(conversation.row_id, conversation, ids, ()))

    found = tokenised(rows, section.prompts.max_examples, seed, tokenise, counts, loaded.bad)
    counts["prompts"] = len(found)
    if not found:
        raise none_left("prompt is left to play on", counts, f"data.prompts ({section.prompts.named})")
    counts |= {name: count for name, count in loaded.counts.items() if count}  # with what was changed in them
    if section.prompts.answer is not None:
        counts["without_answer"] = sum(example.conversation.answer is None for example in found)
    return found, counts


def _distinct_prompts(
    rows: Sequence[Located], counts: dict[str, int], share: float | None, of_rows: Mapping[str, PromptSet]
) -> dict[str, Located]:
    """share: data.held_out. If it is a fraction, it is held out of the prompts too, by the same hash of the prompt."""
    kept: list[tuple[str, Located]] = []
    for row in rows:
        key, words = row[1].prompt_key, row[1].prompt_words
        if has_no_user_text(row[1]):
            counts["empty"] += 1
        elif found := next((name for name, prompts in of_rows.items() if words in prompts.words), None):
            counts[found] += 1
        elif isinstance(share, float) and _below(share, [key]):
            counts["held_out"] += 1
        else:
            kept.append((key, row))
    return distinct(kept, counts)


def _check_columns(section: DataSection, present: Sequence[str]) -> None:
    if missing := next((name for name in section.checker_columns if name not in present), None):
        there, of = ", ".join(dict.fromkeys(present)), "rows or prompts" if section.prompts else "rows"
        remedy = suggestion(missing, present, otherwise="correct the name")
        raise UserError(f"{missing!r} is not a column of the {of}; they have: {there}", where="data.checker_columns", remedy=remedy)


def _distinct(loaded: Loaded[Located], counts: dict[str, int]) -> dict[str, Located]:
    rows = [row for row in loaded.rows if not is_empty(row[1])]
    counts["empty"] += len(loaded.rows) - len(rows)
    return distinct([(row[1].row_id, row) for row in rows], counts)


def _tokenised(row: Located, section: DataSection, chat: Chat, counts: dict[str, int]) -> Example | str:
    """The row as an example, or what drops it: one of ROW_COUNTS."""
    where, conversation = row
    prompt_ids, reply_ids = chat.encode(conversation, where=where)
    if not prompt_ids:  # a template without marks, and a tokenizer that drops all characters of the text
        return "empty"
    if len(prompt_ids) > section.max_prompt_tokens:
        return "prompt_too_long"
    if len(reply_ids) > section.max_reply_tokens:
        if section.too_long == "drop":
            return "reply_too_long"
        counts["reply_cut"] += 1
        # A cut reply has no end-of-turn token: training must not teach that replies end in mid-sentence.
        reply_ids = reply_ids[: section.max_reply_tokens]
    return Example(conversation.row_id, conversation, prompt_ids, reply_ids)


def split_by_prompt(examples: Sequence[Example], held_out: int | float) -> tuple[list[Example], list[Example]]:
    """(train, held-out). All rows of a prompt are on the same side, which a hash of the prompt decides.

    held_out: a fraction is a fixed threshold for a prompt's hash, so that its side is the same in any data set; a count holds out the
    prompts with the lowest hashes until at least that many rows are held out.
    """
    keys = [example.conversation.prompt_key for example in examples]
    chosen = _below(held_out, keys) if isinstance(held_out, float) else set(sorted(keys)[:held_out])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for key, example in zip(keys, examples, strict=True):
        sides[key in chosen].append(example)
    return sides


def _below(fraction: float, keys: Iterable[str]) -> set[str]:
    threshold = int(fraction * 2.0**256)  # exact: a power of two only moves the exponent
    return {key for key in keys if int(key, 16) < threshold}


def _nothing_left(section: DataSection, counts: dict[str, int], bad: BadRows) -> UserError:
    rules = {
        "empty": "for an empty prompt or reply",
        "prompt_too_long": f"for a prompt over data.max_prompt_tokens ({section.max_prompt_tokens})",
        "reply_too_long": f"for a reply over data.max_reply_tokens ({section.max_reply_tokens})",
        "duplicates": "as duplicates",
        "bad": f"as bad rows, the first {bad.first.where}: {bad.first.what}" if bad.first else "",
        "untrained": "because no reply is to be trained on",
    }
    dropped = ", ".join(f"{counts[key]} {rule}" for key, rule in rules.items() if counts[key])
    what = f"no row is left of {counts['read']}: dropped {dropped}"
    return UserError(what, where=section.named, remedy="look at the rule that dropped most")


def _one_side_empty(section: DataSection, counts: dict[str, int]) -> UserError:
    held_out, left_out = counts["held_out"], counts["prompt_held_out"]
    rows = held_out + left_out + counts["train"]
    side = "nothing is left to train on" if held_out else "nothing is held out"
    if left_out:
        side += f"; rows left out because a held-out prompt has the same words or tokens: {left_out}"
    what = f"data.held_out is {section.held_out_of(rows)}, but {rows} rows remain after filters and data.max_examples: {side}"
    remedy = "change data.held_out (rows of one prompt stay together), or use rows of more prompts"
    return UserError(what, where=section.named, remedy=remedy)


def write_examples(path: str | Path, examples: Sequence[Example]) -> None:
    """Write examples as parquet, texts and token ids; `read_examples` returns an equal list.

    Columns for answers, for a checker and for reasoning are written only where a row has one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    thinks = any("reasoning_content" in turn for example in examples for turn in (*example.conversation.prompt, example.conversation.turn))
    turn = pa.struct([(name, pa.string()) for name in ("role", "content", *(["reasoning_content"] if thinks else []))])
    ids = pa.list_(pa.int32())
    types = {"row_id": pa.string(), "prompt": pa.list_(turn), "reply": pa.string(), "prompt_ids": ids, "reply_ids": ids}
    if any(example.conversation.answer is not None or example.conversation.columns for example in examples):
        types |= {"answer": pa.string(), "columns": pa.string()}
    if thinks:
        types["reasoning"] = pa.string()
    rows = [{name: value for name, value in _as_row(example).items() if name in types} for example in examples]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(types.items()))), whole(Path(path)))


def read_examples(path: str | Path, row_ids: Collection[str] | None = None) -> list[Example]:
    """Read the examples of `write_examples`, or only those of these ids. Raises UserError for a missing or invalid file."""
    import pyarrow as pa

    try:
        return [_as_example(row) for row in read_rows(Path(path), row_ids)]
    except (pa.ArrowException, OSError, KeyError) as error:
        what = f"cannot read the prepared examples: {type(error).__name__}: {error}"
        raise UserError(what, where=str(path), remedy="redo the data stage") from None


def read_played(folder: Path, row_ids: Collection[str] | None = None) -> list[Example]:
    """The rows of a data stage whose prompts the opponent replies to: the training rows, then the prompts without replies.

    row_ids: which of them; all when None.
    """
    return [example for file in (folder / "train.parquet", *folder.glob(PROMPTS)) for example in read_examples(file, row_ids)]


def _as_row(example: Example) -> dict[str, Any]:
    conversation = example.conversation
    return {
        "row_id": example.row_id,
        "prompt": [dict(message) for message in conversation.prompt],
        "reply": conversation.reply,
        "prompt_ids": list(example.prompt_ids),
        "reply_ids": list(example.reply_ids),
        "reasoning": conversation.reasoning,
        "answer": conversation.answer,
        "columns": json.dumps(conversation.columns, ensure_ascii=False, default=str) if conversation.columns else None,
    }


def _as_example(row: dict[str, Any]) -> Example:
    prompt = tuple(make_message(turn["role"], turn["content"], turn.get("reasoning_content")) for turn in row["prompt"])
    columns = json.loads(row["columns"]) if row.get("columns") else {}
    conversation = Conversation(prompt, row["reply"], row.get("answer"), columns, row.get("reasoning") or "")
    return Example(row["row_id"], conversation, tuple(row["prompt_ids"]), tuple(row["reply_ids"]))
