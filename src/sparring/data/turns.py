"""One row by the standard names of its columns, and one turn of it, in any of the formats of chat data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sparring.data.records import Message, make_message
from sparring.data.shapes import Row, kind_of, parse_json, parsed
from sparring.errors import UserError

ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
    "developer": "system",
}
FIX_ROW = "fix the row or remove it from the file"
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "thinking", "reasoning")
# Keys that say whether an assistant turn is trained on; MASKED ones say the opposite
TRAINED: tuple[str, ...] = ("weight", "train", "training", "trainable", "trained", "is_trainable", "train_on_turn")
TRAINED += ("loss", "loss_mask", "loss_weight", "loss_scale")
MASKED = ("mask", "masked")
READ_KEYS = frozenset((*CALLS, *TRAINED, *MASKED))
FLAGS = {"0": False, "false": False, "no": False, "off": False, "1": True, "true": True, "yes": True, "on": True}


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str
    reasoning: str = ""  # the assistant's, before its text, if the row stores it separately
    trained: bool = True  # False for a reply that the row marks as not to be trained on

    @property
    def message(self) -> Message:
        """The turn as chat templates take it."""
        return make_message(self.role, self.content, self.reasoning)

    def without_surrogates(self) -> Turn:
        """A copy whose texts can be encoded as UTF-8."""
        return replace(self, content=without_surrogates(self.content), reasoning=without_surrogates(self.reasoning))


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read, and what was found in them."""

    columns: Mapping[str, str] = field(default_factory=dict)  # the rows' own names of standard columns
    reasoning: Literal["keep", "drop"] = "keep"  # of assistants
    refused: tuple[str, ...] = ()  # columns that must be empty in every row
    counts: Counter[str] = field(default_factory=Counter)  # of rows, except for turns_as_json (cells) and reasoning_dropped (turns)
    unread: dict[str, None] = field(default_factory=dict)  # keys of turns that nothing reads, as "messages[].name"


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def are_turns(value: Any) -> bool:
    """Whether a value is a list of turns, and not of the parts of one text."""
    return isinstance(value, list) and any(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)


def unpacked(value: Any, reading: Reading) -> Any:
    """The turns that a text holds as JSON, since some table formats have no lists; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = parse_json(value)
    except (ValueError, RecursionError):
        return value
    if not are_turns(found):
        return value
    reading.counts["turns_as_json"] += 1
    return found


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for every lone surrogate, which can be neither written as UTF-8 nor tokenised."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # Through UTF-16, so that two halves of one character that were escaped separately are joined.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


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
        return self._text_of(self.value(standard), self.name(standard))

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
        return [self._turn(turn, name, place) for place, turn in enumerate(value)]

    def side(self, standard: str, role: str) -> Turns:
        """A column that holds text or turns. A list counts as turns when its members have roles, else as parts of one text."""
        name, value = self.name(standard), unpacked(self.value(standard), self.reading)
        if value is None and role == "assistant":
            raise self.fault(f"row without a reply: {name} is missing or null")
        if are_turns(value):
            return [self._turn(turn, name, place) for place, turn in enumerate(value)]
        return [Turn(role, self._text_of(value, name))]

    def opened(self, turns: Turns) -> Turns:
        """The turns with the column `system` as their system turn."""
        text = self.optional_text("system")
        own = next((turn.content for turn in turns if turn.role == "system"), None)
        if not text or (own is not None and own.strip() == text.strip()):
            return turns
        if own is not None:
            raise self.fault(f"two system texts: the column {self.name('system')} and a system turn differ")
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
            texts = [self._text_of(text, f"{name}[{place}][{side}]") for side, text in enumerate(entry)]
            return [Turn(role, text) for role, text in zip(("user", "assistant"), texts, strict=True)]
        if isinstance(entry, dict):
            return [self._turn(entry, name, place)]
        raise self.fault(f"{name}[{place}] is {kind_of(entry)}, not a pair of question and answer")

    def require_no_tools(self) -> None:
        """Raise UserError if a column of tools is not empty."""
        for name in self.reading.refused:
            value = self.row.get(name)
            if value and not (isinstance(value, str) and value.strip() in EMPTY):
                raise self.fault(f"the column {name!r} has tools, which are not supported")

    def fault(self, what: str, remedy: str = FIX_ROW) -> UserError:
        """An error about this row."""
        return UserError(what, where=self.where, remedy=remedy)

    def _turn(self, turn: Any, column: str, place: int) -> Turn:
        """A turn as role/content or from/value. Raises UserError for anything but a turn with text."""
        name = f"{column}[{place}]"
        if not isinstance(turn, dict):
            raise self.fault(f"{name} is {kind_of(turn)}, not a turn with role and content")
        role_key = "role" if turn.get("role") is not None else "from"
        role = turn.get(role_key)
        known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if known is None:
            raise self.fault(f"{name} has the role {role!r}; known roles: {', '.join(ROLES)}")
        if call := next((key for key in CALLS if turn.get(key)), None):
            raise self.fault(f"{name} calls a tool ({call}), which is not supported")
        key = "content" if turn.get("content") is not None or "value" not in turn else "value"
        content = self._text_of(turn.get(key), f"{name}.{key}")
        read = {role_key, key}
        reasoning, trained = "", True
        if known == "assistant":
            reasoning = self._reasoning(turn, name)
            said = [(key, key in TRAINED) for key in (*TRAINED, *MASKED) if turn.get(key) is not None]
            trained = all(self._flag(turn[key], f"{name}.{key}") is wanted for key, wanted in said)
            read.update(REASONING)
        if further := turn.keys() - READ_KEYS - read:
            self.reading.unread.update({f"{column}[].{key}": None for key in sorted(map(str, further)) if turn.get(key) is not None})
        return Turn(known, content, reasoning, trained)

    def _reasoning(self, turn: Mapping[str, Any], name: str) -> str:
        found = {key: self._text_of(turn[key], f"{name}.{key}") for key in REASONING if turn.get(key)}
        texts = {text for text in found.values() if text.strip()}
        if texts and self.reading.reasoning == "drop":
            self.reading.counts["reasoning_dropped"] += 1
            return ""
        if len(texts) > 1:
            raise self.fault(f"{name} has different reasoning in its keys {', '.join(found)}")
        return texts.pop() if texts else ""

    def _flag(self, value: Any, name: str) -> bool:
        if isinstance(value, (bool, int, float)) and value in (0, 1):  # True == 1 == 1.0
            return bool(value)
        known = FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
        if known is None:
            what = f"{name} is {kind_of(value)}: a turn is trained on (1, true) or not (0, false); other weights are not supported"
            raise self.fault(what)
        return known

    def _text_of(self, value: Any, name: str) -> str:
        """Text, or the joined text parts of a multimodal chat format. Raises UserError for anything else."""
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
            return "".join(part["text"] for part in value)
        remedy = "write numbers as texts, in quotes" if isinstance(value, (int, float)) else FIX_ROW
        raise self.fault(f"{name} is {kind_of(value)}, not text", remedy)
