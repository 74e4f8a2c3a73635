"""Rows as a source gives them, before anybody knows their shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sparring.config import DataSection, PairsSection, PromptsSection
from sparring.errors import UserError

Row = Mapping[str, Any]
LocatedRow = tuple[str, Row]
Source = DataSection | PairsSection | PromptsSection


@dataclass(frozen=True)
class Rows:
    """The rows of one source. `columns` names all that exist; the rows may hold only those that a shape can use."""

    source: str
    columns: tuple[str, ...]
    items: tuple[LocatedRow, ...]


def located_rows(source: str, items: Iterable[tuple[str, Any]]) -> Rows:
    """Rows whose places get the source's name in front and whose columns are all that any row has."""
    columns: dict[str, None] = {}
    located = []
    for place, row in items:
        where = f"{source}, {place}"
        if not isinstance(row, dict):
            raise UserError(f"a row is an object with named columns, not {kind_of(row)}", where=where)
        columns.update(dict.fromkeys(row))
        located.append((where, row))
    return Rows(source, tuple(columns), tuple(located))


def kind_of(value: Any) -> str:
    """How a person would name a JSON value, with the value where it is short."""
    if value is None:
        return "missing or null"
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    shown = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
