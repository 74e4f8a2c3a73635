"""One row by the standard names of its columns: its turns, its system text, its history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparring.data.rows import Row, kind_of, parsed
from sparring.data.turns import FIX_ROW, Reading, Turn, are_turns, read_turn, text_of, unpacked
from sparring.errors import UserError

Turns = list[Turn]
EMPTY = ("", "[]", "{}", "null", "None")
TURNS_AS_TEXT = "write the column as a list of turns, or as JSON text of one"


@dataclass(frozen=True)
class Cells:
    """The cells of one row by their standard column names; `where` is the row's place in messages."""

    row: Row
    reading: Reading
    where: str

    def name(self, standard: str) -> str:
        """The row's own name of a standard column."""
        return self.reading.columns.get(standard, standard)

    def value(self, standard: str) -> Any:
        """The value of a standard column; None if the row does not have it."""
        columns = self.reading.columns
        # A column that the recipe uses as another one is not read a second time by its own name.
        return None if standard not in columns and standard in columns.values() else self.row.get(self.name(standard))

    def text(self, standard: str) -> str:
        """A cell as text. Raises UserError for anything else."""
        return text_of(self.value(standard), self.name(standard), self.where)

    def optional_text(self, standard: str) -> str:
        """ "" if the cell is null or blank."""
        text = "" if self.value(standard) is None else self.text(standard)
        return text if text.strip() else ""

    def turns(self, standard: str) -> Turns:
        """A cell that holds a list of turns, or JSON text of one. Raises UserError for anything else."""
        name, value = self.name(standard), self.value(standard)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = parsed(value, f"{self.where}, column {name}", TURNS_AS_TEXT)
            self.reading.counts["turns_as_json"] += 1
        if not isinstance(value, list):
            raise self.fault(f"{name} is {kind_of(value)}, not a list of turns")
        return [read_turn(turn, name, place, self.reading, self.where) for place, turn in enumerate(value)]

    def side(self, standard: str, role: str) -> Turns:
        """A column that holds text or turns. A list counts as turns when its members have roles, else as parts of one text."""
        name, value = self.name(standard), unpacked(self.value(standard), self.reading)
        if value is None and role == "assistant":
            raise self.fault(f"row without a reply: {name} is missing or null")
        if are_turns(value):
            return [read_turn(turn, name, place, self.reading, self.where) for place, turn in enumerate(value)]
        return [Turn(role, text_of(value, name, self.where))]

    def opened(self, turns: Turns) -> Turns:
        """The turns with the column `system` as their system turn."""
        text = self.optional_text("system")
        own = next((turn.content for turn in turns if turn.role == "system"), None)
        if not text or (own is not None and own.strip() == text.strip()):
            return turns
        if own is not None:
            what = f"two system texts: the column {self.name('system')} and a system turn say different things"
            raise self.fault(what)
        return [Turn("system", text), *turns]

    def history(self) -> Turns:
        """Earlier turns in a column of their own: pairs of question and answer, or turns."""
        name, value = self.name("history"), self.value("history")
        if isinstance(value, str) and value.strip() not in EMPTY:
            value = parsed(value, f"{self.where}, column {name}", TURNS_AS_TEXT)
        if not value or isinstance(value, str):
            return []
        if not isinstance(value, (list, tuple)):
            raise self.fault(f"{name} is {kind_of(value)}, not a list of pairs or turns")
        return [turn for place, entry in enumerate(value) for turn in self._earlier(entry, name, place)]

    def _earlier(self, entry: Any, name: str, place: int) -> Turns:
        if isinstance(entry, (list, tuple)) and len(entry) == 2:
            texts = [text_of(text, f"{name}[{place}][{side}]", self.where) for side, text in enumerate(entry)]
            return [Turn(role, text) for role, text in zip(("user", "assistant"), texts, strict=True)]
        if isinstance(entry, dict):
            return [read_turn(entry, name, place, self.reading, self.where)]
        raise self.fault(f"{name}[{place}] is {kind_of(entry)}, not a pair of question and answer")

    def require_no_tools(self) -> None:
        """Raises UserError if a column of tools is filled."""
        for name in self.reading.refused:
            value = self.row.get(name)
            if value and not (isinstance(value, str) and value.strip() in EMPTY):
                raise self.fault(f"the column {name!r} offers tools, which cannot be trained on here")

    def fault(self, what: str) -> UserError:
        """An error about this row."""
        return UserError(what, where=self.where, remedy=FIX_ROW)
