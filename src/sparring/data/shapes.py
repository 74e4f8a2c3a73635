"""Which columns rows have: the known shapes, and the one that a source's columns fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sparring.errors import UserError, nearest


class RowShape(NamedTuple):
    """Standard columns of a row. Those of `unread` belong to it and are not read."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def columns(self) -> set[str]:
        """All columns that belong to such a row."""
        return {*self.required, *self.optional, *self.unread}


_WHOLE, _PARTS = ("system",), ("system", "history")  # optional columns of whole conversations, and of flattened ones


# In the order in which `auto` tries them: a row that keeps whole conversations says more than its flattened columns do.
SHAPES: dict[str, RowShape] = {
    "messages": RowShape(("messages",), _WHOLE),
    "real_generated": RowShape(("real",), _WHOLE, ("generated",)),
    "sharegpt": RowShape(("conversations",), _WHOLE),
    "prompt_completion": RowShape(("prompt", "completion"), _PARTS),
    "alpaca": RowShape(("instruction", "output"), ("input", *_PARTS)),
}
# Shapes of prompts without replies, each with the columns that would hold a reply
PROMPT_SHAPES: dict[str, RowShape] = {
    "messages": RowShape(("messages",), _WHOLE),
    "sharegpt": RowShape(("conversations",), _WHOLE),
    "prompt": RowShape(("prompt",), _PARTS),
    "alpaca": RowShape(("instruction",), ("input", *_PARTS)),
}
REPLY_COLUMNS = {"prompt": ("completion",), "alpaca": ("output",)}
PAIR_SHAPE = RowShape(("chosen", "rejected"), ("prompt", *_PARTS))
STANDARD_COLUMNS = frozenset(name for shape in SHAPES.values() for name in shape.columns)
KNOWN_COLUMNS = STANDARD_COLUMNS | PAIR_SHAPE.columns
# Columns that must be empty: tools are not supported
TOOL_COLUMNS = ("tools", "functions")
# Names of columns that often hold a system text; the recipe has to say so
SYSTEM_LIKE = frozenset(("system_prompt", "system_message", "system_text", "sys_prompt", "instructions"))


def choose_shape(shape: str, columns: Mapping[str, str], present: Iterable[str], source: str) -> str:
    """The shape to read rows with. `auto` takes the first one (in the order of SHAPES) whose columns are `present`.

    `columns` maps standard names to the rows' own; a shape is only considered if it uses all of them.
    """
    candidates = SHAPES if shape == "auto" else {shape: SHAPES[shape]}
    if shape == "auto":  # a single column `real` may mean anything
        candidates = {**candidates, "real_generated": RowShape(("real", "generated"), _WHOLE)}
    found = _first_that_fits(candidates, columns, list(present), source, "data")
    if found is None:
        raise _no_shape(shape, columns, list(present), source)
    return found


def choose_prompt_shape(columns: Mapping[str, str], present: Iterable[str], source: str) -> str:
    """The same for the rows of `data.prompts`, by PROMPT_SHAPES."""
    found = _first_that_fits(PROMPT_SHAPES, columns, list(present), source, "data.prompts")
    if found is None:
        known = "; ".join(f"{name} ({', '.join(spec.required)})" for name, spec in PROMPT_SHAPES.items())
        raise UserError(
            f"no column holds a prompt; the columns are: {', '.join(present) or '(none)'}",
            where=source,
            remedy=f"known shapes: {known}; or name your own column, for example data.prompts.columns: {{prompt: question}}",
        )
    return found


def _first_that_fits(
    candidates: Mapping[str, RowShape], columns: Mapping[str, str], present: list[str], source: str, option: str
) -> str | None:
    for standard, own in columns.items():
        if own not in present:
            guess = nearest(own, present)
            what = f"there is no column {own!r} ({option}.columns.{standard}); the columns are: {', '.join(present)}"
            raise UserError(what, where=source, remedy=f"did you mean {guess}?" if guess else f"correct {option}.columns")
    for name, shape in candidates.items():
        required = {columns.get(column, column) for column in shape.required}
        if required <= set(present) and set(columns) <= shape.columns:
            return name
    return None


def _no_shape(shape: str, columns: Mapping[str, str], present: list[str], source: str) -> UserError:
    known = "; ".join(f"{name} ({', '.join(spec.required)})" for name, spec in SHAPES.items())
    mapped = f" with data.columns {', '.join(f'{k}: {v}' for k, v in columns.items())}" if columns else ""
    wanted = "no known shape fits" if shape == "auto" else f"data.shape {shape} needs {', '.join(SHAPES[shape].required)} and does not fit"
    return UserError(
        f"{wanted} the columns: {', '.join(present) or '(none)'}{mapped}",
        where=source,
        remedy=f"known shapes: {known}; or name your own columns, for example data.columns: {{prompt: question, completion: answer}}",
    )
