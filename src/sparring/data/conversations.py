"""Convert the rows of the recipe's data, of any shape, to conversations: turns and a reply, or none in data.prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sparring.config import DataSection, PromptsSection
from sparring.data.records import Conversation, Duel, Example, Message
from sparring.data.shapes import (
    PROMPT_SHAPES,
    SHAPES,
    SYSTEM_LIKE,
    TOOL_COLUMNS,
    BadRows,
    Row,
    RowShape,
    Source,
    Table,
    choose_prompt_shape,
    choose_shape,
    kind_of,
)
from sparring.data.sources import open_table
from sparring.data.turns import FIX_ROW, Cells, Reading, Turn, Turns, without_surrogates
from sparring.errors import UserError

EXACT_FLOATS = 2**53  # below it a float holds every integer
MOST_NAMED, LONGEST_NAME = 100, 80  # limits for columns in a message: a file may have any number of columns, of any length
DROP_REPLIES = "move such rows to data.path, or set data.prompts.replies: drop to leave their replies unread"
Located = tuple[str, Conversation]  # with the place that it came from
T = TypeVar("T")
Tokenised = TypeVar("Tokenised", Example, Duel)


def printable(name: str) -> str:
    """A column's name for a message."""
    return without_surrogates(name[:LONGEST_NAME]) or "''"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """The rows of a source: conversations and prompts (`Located`), or pairs.

    `counts`: read (bad rows included), untrained (rows that are left out because no reply is to be trained on), and what was changed in
    rows or left out of them, which has names where it may occur: trailing_turns_dropped, surrogates_replaced, prompt_repeated (in the
    reply's column), turns_as_json, reasoning_dropped, replies_dropped. `columns` are all columns of the source, `unused` the columns and
    keys of turns that nothing reads, at most a hundred and printable, `bad` the rows that could not be read.
    """

    rows: list[T]
    counts: dict[str, int]
    notices: list[str]
    columns: tuple[str, ...]
    bad: BadRows
    unused: tuple[str, ...]


def load_conversations(section: DataSection, seed: int) -> Loaded[Located]:
    """Read every row of the recipe's data and turn it into a Conversation, blank ones included (see `is_empty`).

    `seed` affects only the built-in tasks. Raises UserError for anything that cannot be read, with its file and line or row.
    """
    bad = BadRows(section.on_bad_row == "drop")
    table = open_table(section, seed, bad)
    shape = choose_shape(section.shape, section.columns, table.columns, table.source)

    def convert(row: Row, reading: Reading, where: str) -> Located | None:
        conversation = to_conversation(row, shape, reading, where)
        return None if conversation is None else (where, with_columns(conversation, row, section.answer, section.checker_columns, where))

    by = ", ".join(printable(name) for name in table.columns[:MOST_NAMED])
    notices = [f"data.shape: {shape}, by the columns {by}"] if section.shape == "auto" else []
    return load(section, section, table, bad, SHAPES[shape], convert, _further(section, section), notices)


def load_prompts(section: PromptsSection, data: DataSection) -> Loaded[Located]:
    """Every row as a Conversation without a reply. Raises UserError for rows that cannot be read, and for rows with a reply unless
    `replies` drops it."""
    bad = BadRows(data.on_bad_row == "drop")
    table = open_table(section, 0, bad)
    shape = PROMPT_SHAPES[choose_prompt_shape(section.columns, table.columns, table.source)]
    # columns that hold a reply by their name, except for those that the recipe uses for something else
    further = _further(section, data)
    used = {*further, *section.columns.values()}
    replies = tuple(name for name in shape.unread if name in table.columns and name not in used)
    if replies and section.replies == "refuse":
        raise UserError(f"the prompts have replies, in the column {replies[0]!r}", where=table.source, remedy=DROP_REPLIES)

    def convert(row: Row, reading: Reading, where: str) -> Located:
        turns, has_reply = to_prompt(row, shape, reading, where)
        if has_reply and section.replies == "refuse":
            raise UserError("the prompt has a reply: its last turn is the assistant's", where=where, remedy=DROP_REPLIES)
        conversation = with_columns(Conversation(tuple(turns), ""), row, section.answer, data.checker_columns, where)
        reading.counts["replies_dropped"] += has_reply or bool(replies)
        return where, conversation

    return load(section, data, table, bad, shape._replace(unread=replies), convert, further)


def _further(section: DataSection | PromptsSection, data: DataSection) -> list[str]:
    """The columns that are read in addition to those of a shape."""
    return [*data.checker_columns, *([section.answer] if section.answer else [])]


def load(
    section: Source,
    data: DataSection,
    table: Table,
    bad: BadRows,
    shape: RowShape,
    convert: Callable[[Row, Reading, str], T | None],
    further: Collection[str] = (),
    notices: Sequence[str] = (),
) -> Loaded[T]:
    """What `convert` makes of every row; None is a row without a reply that is to be trained on.

    further: columns that are read in addition to those of the shape; notices: those about the shape.
    """
    names = {*further, *(section.columns.get(name, name) for name in (*shape.required, *shape.optional))}
    refused = tuple(name for name in TOOL_COLUMNS if name not in names)
    known = names.union(refused, (section.columns.get(name, name) for name in shape.unread))
    reading = Reading(section.columns, data.reasoning, refused)
    rows: list[T] = []
    for where, row in table.read([name for name in table.columns if name in names or name in refused]):
        with bad.caught():
            if (one := convert(row, reading, where)) is None:
                reading.counts["untrained"] += 1
            else:
                rows.append(one)
    counts = {"read": len(rows) + reading.counts["untrained"] + bad.count, **reading.counts}
    unread = [*(name for name in table.columns if name not in known), *reading.unread]
    unused = tuple(printable(name) for name in unread[:MOST_NAMED])
    return Loaded(rows, counts, [*table.notices, *notices, *_notices(unused, section, table)], table.columns, bad, unused)


def _notices(unused: Sequence[str], section: Source, table: Table) -> list[str]:
    """One sentence about unused columns, with a hint if one looks like a system text; empty if there are none."""
    if not unused:
        return []
    like = next((name for name in unused if name.lower() in SYSTEM_LIKE), None)
    hint = f" ({section.option}.columns: {{system: {like}}} makes {like} the system turn)" if like is not None else ""
    return [f"nothing reads these columns of {table.source}: {', '.join(unused)}{hint}"]


def is_empty(conversation: Conversation) -> bool:
    """Whether the prompt or the reply is blank."""
    return has_no_user_text(conversation) or not conversation.reply.strip()


def has_no_user_text(conversation: Conversation) -> bool:
    """Whether only system turns have text."""
    return not any(m["role"] != "system" and m["content"].strip() for m in conversation.prompt)


def distinct(rows: Iterable[tuple[str, Located]], counts: dict[str, int]) -> dict[str, Located]:
    """One row for each key, whatever the order of the rows: of duplicates, which are counted, one with an answer, with the smallest answer
    if they have several. Returns them by row id. Prompts with several answers are counted if there are any."""
    kept: dict[str, Located] = {}
    several: set[str] = set()
    for key, row in rows:
        if key not in kept:
            kept[key] = row
            continue
        counts["duplicates"] += 1
        if len({one.answer for _, one in (kept[key], row)} - {None}) > 1:
            several.add(key)
        kept[key] = min(kept[key], row, key=_answer_order)
    if several:
        counts["prompts_with_several_answers"] = len(several)
    return {row[1].row_id: row for row in kept.values()}


def tokenised(
    rows: Mapping[str, T], most: int | None, seed: int, tokenise: Callable[[T], Tokenised | str], counts: dict[str, int], bad: BadRows
) -> list[Tokenised]:
    """The first `most` of the rows (by their ids; all if None) in an order that depends only on the seed and the ids; sorted by id.

    tokenise: returns the name in `counts` for a row that is left out, and may raise the UserError of a bad row. It is called in that order
    until there are enough, which gives the same rows as tokenising all of them first.
    """
    order = sorted(rows, key=lambda row_id: hashlib.sha256(f"{seed}:{row_id}".encode()).digest()) if most and most < len(rows) else rows
    found: list[Tokenised] = []
    for done, row_id in enumerate(order):
        if len(found) == most:
            counts["not_in_subset"] = len(rows) - done
            break
        with bad.caught():
            one = tokenise(rows[row_id])
            if isinstance(one, str):
                counts[one] += 1
            else:
                found.append(one)
    counts["bad"] = bad.count
    return sorted(found, key=lambda one: one.row_id)


def none_left(what: str, counts: Mapping[str, int], where: str) -> UserError:
    """The error if `counts` has no prompt, or pair, that can be used."""
    dropped = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    return UserError(f"no {what}: {dropped}", where=where, remedy="look at what dropped most")


def _answer_order(row: Located) -> tuple[bool, str, str]:
    _, one = row
    return one.answer is None, one.answer or "", json.dumps(one.columns, sort_keys=True, default=str)


def with_columns(conversation: Conversation, row: Row, answer: str | None, checker_columns: Sequence[str], where: str) -> Conversation:
    """The conversation with the text of the column `answer`, and with the columns that a checker's function needs."""
    if answer is None and not checker_columns:
        return conversation
    text = None if answer is None else _answer(row.get(answer), answer, where)
    return replace(conversation, answer=text, columns={name: row.get(name) for name in checker_columns})


def _answer(value: Any, name: str, where: str) -> str | None:
    """The text of a cell of the answer column; None where it is null, NaN (pandas' null) or blank.

    A float with an integral value is written as an integer: pandas makes floats of a column of integers in which a value is missing, and
    a pattern for digits would find the 0 of 18.0.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_FLOATS:
        value = int(value)
    if isinstance(value, (str, int, float)):
        return without_surrogates(str(value))
    raise UserError(f"{name} is {kind_of(value)}, not an answer: text or a number", where=where, remedy=FIX_ROW)


def to_conversation(row: Row, shape: str, reading: Reading, where: str) -> Conversation | None:
    """One row as the turns up to its last assistant turn that is to be trained on, and that turn; None if there is no such turn.

    Lone surrogates, which tokenizers do not accept, become U+FFFD. `reading.counts` counts the rows with a replacement, and the rows
    in which turns after the reply were dropped. Raises UserError, naming `where`, for a row without a reply or with anything but text in a
    turn.
    """
    prompt, answer = _sides(row, SHAPES[shape], reading, where)
    replies = [place for place, turn in enumerate(answer) if turn.role == "assistant"]
    if not replies:
        roles = ", ".join(turn.role for turn in (*prompt, *answer)) or "none"
        raise UserError(f"row without a reply: it has no assistant turn (roles of its turns: {roles})", where=where, remedy=FIX_ROW)
    last = max((place for place in replies if answer[place].trained), default=None)
    if last is None:
        return None
    turns = _clean([*prompt, *answer[: last + 1]], reading)
    reading.counts["trailing_turns_dropped"] += last + 1 < len(answer)
    *asked, reply = turns
    return Conversation(tuple(turn.message for turn in asked), reply.content, reasoning=reply.reasoning)


def to_prompt(row: Row, shape: RowShape, reading: Reading, where: str) -> tuple[list[Message], bool]:
    """(the turns of a row of `data.prompts`, whether assistant turns at their end were left out)."""
    cells = Cells(row, reading, where)
    cells.require_no_tools()
    turns = cells.opened(_asked(cells, shape))
    end = len(turns)
    while end and turns[end - 1].role == "assistant":
        end -= 1
    return [turn.message for turn in _clean(turns[:end], reading)], end < len(turns)


def _clean(turns: Turns, reading: Reading) -> Turns:
    clean = [turn.without_surrogates() for turn in turns]
    reading.counts["surrogates_replaced"] += clean != turns
    return clean


def _sides(row: Row, shape: RowShape, reading: Reading, where: str) -> tuple[Turns, Turns]:
    """(the turns before the reply's column, those of it); a column that holds a whole conversation is the second."""
    cells = Cells(row, reading, where)
    cells.require_no_tools()
    before = _asked(cells, shape)
    if shape.is_whole:
        asked, answer = [], before
    else:
        answer = cells.side(shape.required[1], "assistant")
        asked = before[: _not_repeated(before, answer)]
        reading.counts["prompt_repeated"] += len(asked) < len(before)
    turns = cells.opened([*asked, *answer])
    return turns[: len(turns) - len(answer)], turns[len(turns) - len(answer) :]


def _asked(cells: Cells, shape: RowShape) -> Turns:
    """The turns of the shape's first column, after the system turn and the history that further columns hold."""
    column = shape.required[0]
    if shape.is_whole:
        return cells.turns(column)
    if "input" in shape.optional:
        asked, extra = cells.text(column), cells.optional_text("input")
        turns = [Turn("user", f"{asked}\n\n{extra}" if extra else asked)]
    else:
        turns = cells.side(column, "user")
    systems = next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return [*turns[:systems], *cells.history(), *turns[systems:]]


def _not_repeated(asked: Turns, answer: Turns) -> int:
    """How many of the asked turns come before those that the reply's column repeats at its beginning.

    That column may repeat the conversation from its first turn, with its own system turn, or from a later one.
    """
    said, again = ([(turn.role, turn.content.strip()) for turn in turns] for turns in (asked, answer))
    systems = next((place for place, turn in enumerate(answer) if turn.role != "system"), len(answer))
    if any(again[place : place + len(said)] == said for place in range(systems + 1)):
        return 0
    return next((kept for kept in range(1, len(said)) if again[: len(said) - kept] == said[kept:]), len(said))
