"""Rows as a source gives them, the handling of rows that cannot be used, and the known shapes that a source's columns fit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sparring.config import DataSection, PairsSection, PromptsSection
from sparring.errors import UserError, suggestion

Row = Mapping[str, Any]
LocatedRow = tuple[str, Row]
Source = DataSection | PairsSection | PromptsSection


class BadRows:
    """Handling of rows that cannot be read or used: the first one stops the run; with `drop` all are left out and counted."""

    def __init__(self, drop: bool = False) -> None:
        self.drop, self.count = drop, 0
        self.first: UserError | None = None

    def raise_or_count(self, error: UserError) -> None:
        """Raise the error of a row, or count it with `drop`."""
        if not self.drop:
            raise error
        self.count += 1
        self.first = self.first or error

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """As `raise_or_count`, for the UserError of a row that is read or used in this context."""
        try:
            yield
        except UserError as error:
            self.raise_or_count(error)

    @property
    def notices(self) -> list[str]:
        """One sentence with the number of dropped rows and the first error; empty if there are none."""
        if self.first is None:
            return []
        return [f"data.on_bad_row: drop left out {self.count} of the rows; the first was {self.first.where}: {self.first.what}"]


@dataclass(frozen=True)
class Table:
    """The rows of one source, `count` of them. `columns` names all that exist; `read` returns the rows with at least the requested
    columns, each with its place ("FILE, line 3"; rows count from 1). `notices` has the decisions about the source, one sentence each."""

    source: str
    columns: tuple[str, ...]
    count: int
    read: Callable[[Collection[str]], Iterable[LocatedRow]]
    notices: tuple[str, ...] = ()


def table_of(source: str, items: Iterable[tuple[str, Any]], bad: BadRows, notices: tuple[str, ...] = ()) -> Table:
    """A table of rows that are in memory. The source's name is put in front of their places; the columns are those of all rows."""
    columns: dict[str, None] = {}
    located: list[LocatedRow] = []
    for place, row in items:
        where = f"{source}, {place}"
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
            located.append((where, row))
        else:
            what = f"a row is an object with named columns, not {kind_of(row)}"
            bad.raise_or_count(UserError(what, where=where, remedy='write rows like {"prompt": "...", "completion": "..."}'))
    return Table(source, tuple(columns), len(located), lambda _: located, notices)


def joined(source: str, tables: Collection[Table], notice: str) -> Table:
    """The rows of several files as those of one source."""
    columns = tuple(dict.fromkeys(name for table in tables for name in table.columns))

    def read(names: Collection[str]) -> Iterable[LocatedRow]:
        for table in tables:
            yield from table.read([name for name in names if name in table.columns])

    notices = (notice, *(notice for table in tables for notice in table.notices))
    return Table(source, columns, sum(table.count for table in tables), read, notices)


def kind_of(value: Any) -> str:
    """A JSON value in words, with the value if it is short."""
    if value is None:
        return "missing or null"
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    shown = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"duplicate key {twice!r} in an object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError (also as json.JSONDecodeError) or RecursionError; duplicate keys are an error."""
    return _DECODER.decode(text)


def parsed(text: str, where: str, remedy: str) -> Any:
    """The value of one line or cell. Raises UserError with the text around the error."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20].strip()
        raise UserError(f"broken JSON: {error.msg} (column {error.colno}, near {near!r})", where=where, remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"broken JSON: {error}", where=where, remedy=remedy) from None


class RowShape(NamedTuple):
    """Standard columns of a row: first the one of its turns, then the one of its reply. Those of `unread` are not read."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether one column holds whole conversations; a flattened one may have a column with the turns before."""
        return "history" not in self.optional

    @property
    def columns(self) -> set[str]:
        """All columns that belong to such a row."""
        return {*self.required, *self.optional, *self.unread}


_WHOLE, _PARTS = ("system",), ("system", "history")  # optional columns of whole conversations, and of flattened ones


# In the order in which `auto` tries them: a column of whole conversations is more complete than flattened columns.
SHAPES: dict[str, RowShape] = {
    "messages": RowShape(("messages",), _WHOLE),
    "real_generated": RowShape(("real",), _WHOLE, ("generated",)),
    "sharegpt": RowShape(("conversations",), _WHOLE),
    "prompt_completion": RowShape(("prompt", "completion"), _PARTS),
    "alpaca": RowShape(("instruction", "output"), ("input", *_PARTS)),
}
# Shapes of prompts without replies; unread are the columns that would hold a reply
PROMPT_SHAPES: dict[str, RowShape] = {
    name.removesuffix("_completion"): RowShape(shape.required[:1], shape.optional, shape.required[1:])
    for name, shape in SHAPES.items()
    if name != "real_generated"
}
PAIR_SHAPE = RowShape(("chosen", "rejected"), ("prompt", *_PARTS))
STANDARD_COLUMNS = frozenset(name for shape in SHAPES.values() for name in shape.columns)
KNOWN_COLUMNS = STANDARD_COLUMNS | PAIR_SHAPE.columns
# Columns that must be empty: tools are not supported
TOOL_COLUMNS = ("tools", "functions")
# Names of columns that often hold a system text; the recipe has to say so
SYSTEM_LIKE = frozenset(("system_prompt", "system_message", "system_text", "sys_prompt", "instructions"))


def choose_shape(shape: str, columns: Mapping[str, str], present: Sequence[str], source: str) -> str:
    """The shape to read rows with. `auto` takes the first one (in the order of SHAPES) whose columns are `present`.

    `columns` maps standard names to the rows' own; a shape is only considered if it uses all of them.
    """
    candidates = {shape: SHAPES[shape]} if shape != "auto" else {**SHAPES, "real_generated": RowShape(("real", "generated"), _WHOLE)}
    if found := _first_that_fits(candidates, columns, present, source, "data"):
        return found
    what = "no known shape fits" if shape == "auto" else f"data.shape {shape} needs {', '.join(SHAPES[shape].required)} and does not fit"
    example = "{prompt: question, completion: answer}"
    if set(PAIR_SHAPE.required) <= set(present):
        example = "{completion: chosen}, or {messages: chosen} if that column holds conversations"
    raise _no_shape(what, SHAPES, columns, present, source, "data", example)


def choose_prompt_shape(columns: Mapping[str, str], present: Sequence[str], source: str) -> str:
    """The shape to read the rows of `data.prompts` with, one of PROMPT_SHAPES. Raises UserError if none fits."""
    if found := _first_that_fits(PROMPT_SHAPES, columns, present, source, "data.prompts"):
        return found
    raise _no_shape("no column holds a prompt among", PROMPT_SHAPES, columns, present, source, "data.prompts", "{prompt: question}")


def _first_that_fits(
    candidates: Mapping[str, RowShape], columns: Mapping[str, str], present: Sequence[str], source: str, option: str
) -> str | None:
    for standard, own in columns.items():
        if own not in present:
            what = f"there is no column {own!r} ({option}.columns.{standard}); the columns are: {', '.join(present)}"
            raise UserError(what, where=source, remedy=suggestion(own, present, otherwise=f"correct {option}.columns"))
    for name, shape in candidates.items():
        required = {columns.get(column, column) for column in shape.required}
        if required <= set(present) and set(columns) <= shape.columns:
            return name
    return None


def _no_shape(
    what: str, shapes: Mapping[str, RowShape], columns: Mapping[str, str], present: Sequence[str], source: str, option: str, example: str
) -> UserError:
    known = "; ".join(f"{name} ({', '.join(shape.required)})" for name, shape in shapes.items())
    mapped = f" with {option}.columns {', '.join(f'{name}: {own}' for name, own in columns.items())}" if columns else ""
    remedy = f"known shapes: {known}; or name your own columns, for example {option}.columns: {example}"
    return UserError(f"{what} the columns: {', '.join(present) or '(none)'}{mapped}", where=source, remedy=remedy)
