"""Prompts without replies, as conversations."""

from __future__ import annotations

from collections.abc import Sequence

from sparring.config import DataSection, PromptsSection
from sparring.data.conversations import Loaded, Located, Shaped, to_prompt, with_columns
from sparring.data.records import Conversation
from sparring.data.shapes import PROMPT_SHAPES, REPLY_COLUMNS, BadRows, Table, choose_prompt_shape
from sparring.data.sources import open_table
from sparring.errors import UserError

# Outcomes of the prompts; `read` is the sum of those that follow it.
PROMPT_COUNTS = ("read", "empty", "duplicates", "held_out", "in_sft_rows", "prompt_too_long", "not_in_subset", "bad", "prompts")
CHANGES = ("surrogates_replaced", "turns_as_json", "reasoning_dropped")
DROP_REPLIES = "move such rows to data.path, or set data.prompts.replies: drop to leave their replies unread"


def load_prompts(section: PromptsSection, data: DataSection) -> Loaded[Located]:
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
        with bad.caught():
            turns, has_reply = to_prompt(row, shape, source.reading, where)
            if has_reply and section.replies == "refuse":
                raise UserError("the prompt has a reply: its last turn is the assistant's", where=where, remedy=DROP_REPLIES)
            conversation = with_columns(Conversation(tuple(turns), ""), row, section.answer, data.checker_columns, where)
            found.append((where, conversation))
            dropped += has_reply or bool(whole)
    counts = {**{name: source.reading.counts[name] for name in CHANGES}, "replies_dropped": dropped}
    return source.loaded(found, {name: count for name, count in counts.items() if count}, bad)


def _reply_columns(section: PromptsSection, table: Table, shape: str, further: Sequence[str]) -> list[str]:
    """Columns that hold a reply by their name, except for those that the recipe uses for something else."""
    used = {*further, *section.columns.values()}
    return [name for name in REPLY_COLUMNS.get(shape, ()) if name in table.columns and name not in used]
