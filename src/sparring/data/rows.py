"""Rows as a source gives them, before their shape is known; the handling of rows that cannot be used; and JSON in rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparring.config import DataSection, PairsSection, PromptsSection
from sparring.errors import UserError

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

    @property
    def notices(self) -> list[str]:
        """One sentence with the number of dropped rows and the first error; empty if there are none."""
        if self.first is None:
            return []
        return [f"data.on_bad_row: drop left out {self.count} of the rows; the first was {self.first.where}: {self.first.what}"]


@dataclass(frozen=True)
class Table:
    """The rows of one source, `count` of them. `columns` names all that exist; `read` returns the rows with at least the requested
    columns. `notices` has the decisions about the source, one sentence each."""

    source: str
    columns: tuple[str, ...]
    count: int
    read: Callable[[Collection[str]], Iterable[LocatedRow]]
    notices: tuple[str, ...] = ()


def table_of(source: str, items: Iterable[tuple[str, Any]], bad: BadRows, notices: tuple[str, ...] = ()) -> Table:
    """Rows that are in memory. Their places get the source's name in front, and their columns are all that any row has."""
    columns: dict[str, None] = {}
    located: list[LocatedRow] = []
    for place, row in items:
        where = f"{source}, {place}"
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
            located.append((where, row))
        else:
            bad.raise_or_count(UserError(f"a row is an object with named columns, not {kind_of(row)}", where=where))
    return Table(source, tuple(columns), len(located), lambda _: located, notices)


def joined(source: str, tables: Collection[Table]) -> Table:
    """The rows of several files as those of one source."""
    columns = tuple(dict.fromkeys(name for table in tables for name in table.columns))

    def read(names: Collection[str]) -> Iterable[LocatedRow]:
        for table in tables:
            yield from table.read([name for name in names if name in table.columns])

    notices = tuple(notice for table in tables for notice in table.notices)
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
    """Raises ValueError (json.JSONDecodeError among them) or RecursionError: also for duplicate keys in an object."""
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
