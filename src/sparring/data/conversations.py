"""Rows become conversations: each row of the recipe's data, whatever its shape, as turns and a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparring.config import DataSection, PromptsSection
from sparring.data.records import Conversation, Message
from sparring.data.rows import BadRows, Row, kind_of
from sparring.data.shapes import PROMPT_SHAPES, SHAPES, Shape, choose_shape
from sparring.data.sources import open_table, read_rows
from sparring.errors import UserError

ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
MEND_ROW = "mend the row or take it out of the file"
Turns = list[Message]


@dataclass(frozen=True)
class Loaded:
    """Conversations with the place they came from. `counts`: read, trailing_turns_dropped, surrogates_replaced (in rows). `columns` are
    all that the source has; `bad` are the rows that could not be read, of which `read` counts those too."""

    rows: list[tuple[str, Conversation]]
    counts: dict[str, int]
    notices: list[str]
    columns: tuple[str, ...]
    bad: BadRows


def load_conversations(section: DataSection, seed: int) -> Loaded:
    """Read every row of the recipe's data and turn it into a Conversation, blank ones included (`is_empty` tells them).

    `seed` reaches only the built-in tasks. Raises UserError for anything that cannot be read, with its file and line or row.
    """
    bad = BadRows(section.on_bad_row == "drop")
    table = open_table(section, seed, bad)
    shape = choose_shape(section.shape, section.columns, table.columns, table.source)
    rows = read_rows(table, columns_read(SHAPES[shape], section, section.checker_columns))
    counts = Counter({"read": len(rows) + bad.count, "trailing_turns_dropped": 0, "surrogates_replaced": 0})
    conversations = []
    for where, row in rows:
        try:
            conversation = to_conversation(row, shape, section.columns, where, counts)
            conversations.append((where, with_columns(conversation, row, section.answer, section.checker_columns, where)))
        except UserError as error:
            bad.meet(error)
    notices = list(table.notices)
    if section.shape == "auto":
        notices.append(f"data.shape: {shape}, by the columns {', '.join(table.columns)}")
    return Loaded(conversations, dict(counts), notices, table.columns, bad)


def columns_read(shape: Shape, section: DataSection | PromptsSection, further: Sequence[str]) -> set[str]:
    """Names of the source's own columns that are read of it: those of the shape, of the answer, and `further` ones."""
    of_shape = (section.columns.get(name, name) for name in (*shape.required, *shape.optional))
    return {*of_shape, *further, *([section.answer] if section.answer else [])}


def is_empty(conversation: Conversation) -> bool:
    """Nothing was asked or nothing but blanks was answered."""
    return asks_nothing(conversation) or not conversation.reply.strip()


def asks_nothing(conversation: Conversation) -> bool:
    """Only system turns have text."""
    return not any(m["role"] != "system" and m["content"].strip() for m in conversation.prompt)


def with_columns(conversation: Conversation, row: Row, answer: str | None, checker_columns: Sequence[str], where: str) -> Conversation:
    """The conversation with the text of the column `answer`, and with the columns that a checker's function asks for."""
    if answer is None and not checker_columns:
        return conversation
    text = None if answer is None else _answer(row.get(answer), answer, where)
    return replace(conversation, answer=text, columns={name: row.get(name) for name in checker_columns})


def _answer(value: Any, name: str, where: str) -> str | None:
    """The text of a cell of the answer column; None where it is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, (str, int, float)):
        return without_surrogates(str(value))
    raise UserError(f"{name} is {kind_of(value)}, not an answer: text or a number", where=where, remedy=MEND_ROW)


def to_conversation(row: Row, shape: str, columns: Mapping[str, str], where: str, counts: Counter[str] | None = None) -> Conversation:
    """One row as the turns up to its last assistant turn, and that turn.

    Keys of a turn other than its role and text are ignored. Lone surrogates, which no tokenizer takes, become U+FFFD. `counts`,
    when given, learns in how many rows that happened, and in how many turns after the last assistant turn were dropped.
    Raises UserError, naming `where`, for a row without a reply or with anything but text in a turn.
    """
    counts = Counter() if counts is None else counts
    cells = {standard: row.get(columns.get(standard, standard)) for standard in (*SHAPES[shape].required, *SHAPES[shape].optional)}
    prompt, answer = TURNS_OF[shape](cells, columns, where)
    last = max((n for n, turn in enumerate(answer) if turn["role"] == "assistant"), default=None)
    if last is None:
        roles = ", ".join(turn["role"] for turn in (*prompt, *answer)) or "none"
        raise UserError(f"row without a reply: it has no assistant turn (its turns: {roles})", where=where, remedy=MEND_ROW)
    turns = [Message(role=turn["role"], content=without_surrogates(turn["content"])) for turn in (*prompt, *answer[: last + 1])]
    counts["trailing_turns_dropped"] += last + 1 < len(answer)
    counts["surrogates_replaced"] += turns != [*prompt, *answer[: last + 1]]
    return Conversation(tuple(turns[:-1]), turns[-1]["content"])


def to_prompt(row: Row, shape: str, columns: Mapping[str, str], where: str) -> tuple[Turns, bool]:
    """(the turns of a row of `data.prompts`, whether assistant turns at their end were left out)."""
    spec = PROMPT_SHAPES[shape]
    cells = {name: row.get(columns.get(name, name)) for name in (*spec.required, *spec.optional)}
    if shape == "alpaca":
        turns = _alpaca_prompt(cells, columns, where)
    elif shape == "prompt":
        turns = _side(cells, "prompt", "user", columns, where)
    else:
        (column,) = spec.required
        turns = _turns(cells[column], columns.get(column, column), where)
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    asked = [Message(role=turn["role"], content=without_surrogates(turn["content"])) for turn in turns[:end]]
    return asked, end < len(turns)


def _from_turns(column: str) -> Callable[[Row, Mapping[str, str], str], tuple[Turns, Turns]]:
    def read(cells: Row, columns: Mapping[str, str], where: str) -> tuple[Turns, Turns]:
        return [], _turns(cells[column], columns.get(column, column), where)

    return read


def _from_prompt_completion(cells: Row, columns: Mapping[str, str], where: str) -> tuple[Turns, Turns]:
    return _side(cells, "prompt", "user", columns, where), _side(cells, "completion", "assistant", columns, where)


def _from_alpaca(cells: Row, columns: Mapping[str, str], where: str) -> tuple[Turns, Turns]:
    return _alpaca_prompt(cells, columns, where), _side(cells, "output", "assistant", columns, where)


def _alpaca_prompt(cells: Row, columns: Mapping[str, str], where: str) -> Turns:
    asked = _text(cells["instruction"], columns.get("instruction", "instruction"), where)
    extra = "" if cells["input"] is None else _text(cells["input"], columns.get("input", "input"), where)
    return [Message(role="user", content=f"{asked}\n\n{extra}" if extra.strip() else asked)]


TURNS_OF = {
    "messages": _from_turns("messages"),
    "real_generated": _from_turns("real"),
    "sharegpt": _from_turns("conversations"),
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}


def _side(cells: Row, column: str, role: str, columns: Mapping[str, str], where: str) -> Turns:
    """A column that holds text or turns. A list counts as turns when its members have roles, else as parts of one text."""
    value, name = cells[column], columns.get(column, column)
    if value is None and role == "assistant":
        raise UserError(f"row without a reply: {name} is missing or null", where=where, remedy=MEND_ROW)
    if isinstance(value, list) and any(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value):
        return _turns(value, name, where)
    return [Message(role=role, content=_text(value, name, where))]


def _turns(value: Any, column: str, where: str) -> Turns:
    if not isinstance(value, list):
        raise UserError(f"{column} is {kind_of(value)}, not a list of turns", where=where, remedy=MEND_ROW)
    return [_turn(turn, f"{column}[{n}]", where) for n, turn in enumerate(value)]


def _turn(turn: Any, name: str, where: str) -> Message:
    """A turn in either spelling: role/content or from/value."""
    if not isinstance(turn, dict):
        raise UserError(f"{name} is {kind_of(turn)}, not a turn with role and content", where=where, remedy=MEND_ROW)
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise UserError(f"{name} has the role {role!r}; known roles: {', '.join(ROLES)}", where=where, remedy=MEND_ROW)
    if turn.get("tool_calls"):
        raise UserError(f"{name} calls a tool, which cannot be trained on here", where=where, remedy=MEND_ROW)
    key = "content" if turn.get("content") is not None or "value" not in turn else "value"
    return Message(role=known, content=_text(turn.get(key), f"{name}.{key}", where))


def _text(value: Any, name: str, where: str) -> str:
    """Text, or the list of text parts that multimodal chat formats use."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    raise UserError(f"{name} is {kind_of(value)}, not text", where=where, remedy=MEND_ROW)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for every lone surrogate, which can be neither written as UTF-8 nor tokenised."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # By way of UTF-16, so that two halves of one character that were escaped separately come together.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
