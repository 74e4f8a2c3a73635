"""Prompts without replies: read, checked against the SFT rows, tokenised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from sparring.config import DataSection, PromptsSection
from sparring.data.chat import Chat
from sparring.data.conversations import Located, Shaped, distinct, has_no_user_text, to_prompt, with_columns
from sparring.data.records import Conversation, Example, Message
from sparring.data.shapes import PROMPT_SHAPES, REPLY_COLUMNS, BadRows, Row, Table, choose_prompt_shape
from sparring.data.sources import open_table
from sparring.data.turns import Reading
from sparring.errors import UserError

# Outcomes of the prompts; `read` is the sum of those that follow it.
PROMPT_COUNTS = ("read", "empty", "duplicates", "held_out", "in_sft_rows", "prompt_too_long", "not_in_subset", "bad", "prompts")
CHANGES = ("surrogates_replaced", "turns_as_json", "reasoning_dropped")
DROP_REPLIES = "move such rows to data.path, or set data.prompts.replies: drop to leave their replies unread"


@dataclass(frozen=True)
class LoadedPrompts:
    """Prompts with the place they came from. `columns` are all columns of the source, `unused` the columns and keys of turns that nothing
    reads. `replies_dropped` counts rows whose reply was dropped, `changes` other changes by kind; `bad` are rows that could not be read.
    `notices` has the decisions about the source."""

    rows: list[Located]
    columns: tuple[str, ...]
    replies_dropped: int
    changes: dict[str, int]
    bad: BadRows
    notices: tuple[str, ...]
    unused: tuple[str, ...]


def load_prompts(section: PromptsSection, data: DataSection) -> LoadedPrompts:
    """Every row as a Conversation without a reply. Raises UserError for rows that cannot be read, and for rows with a reply unless
    `replies` drops it."""
    bad = BadRows(data.on_bad_row == "drop")
    table = open_table(section, 0, bad)
    shape = choose_prompt_shape(section.columns, table.columns, table.source)
    further = [*data.checker_columns, *([section.answer] if section.answer else [])]
    whole = _reply_columns(section, table, shape, further)
    if whole and section.replies == "refuse":
        raise UserError(f"the prompts have replies, in the column {whole[0]!r}", where=table.source, remedy=DROP_REPLIES)
    source = Shaped.of(table, section, PROMPT_SHAPES[shape]._replace(unread=tuple(whole)), data.reasoning, further)
    found, dropped = [], 0
    for where, row in source.rows():
        try:
            turns, has_reply = _prompt_of(row, shape, section, source.reading, where)
            conversation = with_columns(Conversation(tuple(turns), ""), row, section.answer, data.checker_columns, where)
        except UserError as error:
            bad.raise_or_count(error)
        else:
            found.append((where, conversation))
            dropped += has_reply or bool(whole)
    counts = {name: source.reading.counts[name] for name in CHANGES if source.reading.counts[name]}
    return LoadedPrompts(found, table.columns, dropped, counts, bad, (*table.notices, *source.notices), source.unused)


def _prompt_of(row: Row, shape: str, section: PromptsSection, reading: Reading, where: str) -> tuple[list[Message], bool]:
    turns, has_reply = to_prompt(row, shape, reading, where)
    if has_reply and section.replies == "refuse":
        raise UserError("the prompt has a reply: its last turn is the assistant's", where=where, remedy=DROP_REPLIES)
    return turns, has_reply


def _reply_columns(section: PromptsSection, table: Table, shape: str, further: Sequence[str]) -> list[str]:
    """Columns that hold a reply by their name, except for those that the recipe uses for something else."""
    used = {*further, *section.columns.values()}
    return [name for name in REPLY_COLUMNS.get(shape, ()) if name in table.columns and name not in used]


def prompt_examples(
    loaded: LoadedPrompts,
    chat: Chat,
    max_prompt_tokens: int,
    sft_rows: Sequence[Example],
    held_out_rows: Sequence[Example],
    is_held_out: Callable[[str], bool],
    order_key: Callable[[str], bytes],
    max_examples: int | None,
) -> tuple[list[Example], dict[str, int]]:
    """The prompts that are played on, in the order of their ids, and PROMPT_COUNTS.

    None of them is held out, by text, by token ids or by `is_held_out` of its key, and none is a prompt of the SFT rows. If there are more
    than `max_examples`, the first by `order_key` of the row id are taken.
    """
    counts = {**dict.fromkeys(PROMPT_COUNTS, 0), "read": len(loaded.rows) + loaded.bad.count}
    taken = _Seen(sft_rows), _Seen(held_out_rows)
    rows = _distinct(loaded, counts, *taken, is_held_out)
    wanted = max_examples or len(rows)
    order = sorted(rows, key=lambda row: order_key(row[1].row_id)) if wanted < len(rows) else rows
    found: list[Example] = []
    for done, (where, conversation) in enumerate(order):
        if len(found) == wanted:
            counts["not_in_subset"] = len(order) - done
            break
        try:
            ids = chat.row_prompt_ids(conversation.prompt, where=where)
        except UserError as error:
            loaded.bad.raise_or_count(error)
            continue
        reason = _reason_against(ids, max_prompt_tokens, *taken)
        if reason is None:
            found.append(Example(conversation.row_id, conversation, ids, ()))
        else:
            counts[reason] += 1
    counts["bad"], counts["prompts"] = loaded.bad.count, len(found)
    return sorted(found, key=lambda example: example.row_id), counts


class _Seen:
    """Prompts of rows, as text and as token ids: different texts can render to the same ids."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.keys = {example.conversation.prompt_key for example in examples}
        self.ids: Collection[tuple[int, ...]] = {example.prompt_ids for example in examples}


def _distinct(
    loaded: LoadedPrompts, counts: dict[str, int], sft: _Seen, held_out: _Seen, is_held_out: Callable[[str], bool]
) -> list[Located]:
    rows: list[tuple[str, Located]] = []
    for where, conversation in loaded.rows:
        key = conversation.prompt_key
        if has_no_user_text(conversation):
            counts["empty"] += 1
        elif key in held_out.keys or is_held_out(key):
            counts["held_out"] += 1
        elif key in sft.keys:
            counts["in_sft_rows"] += 1
        else:
            rows.append((key, (where, conversation)))
    return distinct(rows, counts)


def _reason_against(ids: tuple[int, ...], max_prompt_tokens: int, sft: _Seen, held_out: _Seen) -> str | None:
    """Why a tokenised prompt is left out: a key of PROMPT_COUNTS, or None."""
    if not ids:
        return "empty"
    if len(ids) > max_prompt_tokens:
        return "prompt_too_long"
    if ids in held_out.ids:
        return "held_out"
    return "in_sft_rows" if ids in sft.ids else None
