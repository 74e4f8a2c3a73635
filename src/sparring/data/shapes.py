"""Which columns rows have: the known shapes, and the one that a source's columns fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sparring.errors import UserError, nearest


class Shape(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


# In the order in which `auto` tries them: a row that keeps whole conversations says more than its flattened columns do.
SHAPES: dict[str, Shape] = {
    "messages": Shape(("messages",)),
    "real_generated": Shape(("real",), ("generated",)),
    "sharegpt": Shape(("conversations",)),
    "prompt_completion": Shape(("prompt", "completion")),
    "alpaca": Shape(("instruction", "output"), ("input",)),
}
PAIR_COLUMNS = ("prompt", "chosen", "rejected")
STANDARD_COLUMNS = frozenset(name for shape in SHAPES.values() for name in (*shape.required, *shape.optional))


def choose_shape(shape: str, columns: Mapping[str, str], present: Iterable[str], source: str) -> str:
    """The shape to read rows with. `auto` takes the first one (in the order of SHAPES) whose columns are `present`.

    `columns` maps standard names to the rows' own; a shape is only considered if it uses all of them.
    """
    present = list(present)
    _check_mapping(columns, present, source)
    candidates = list(SHAPES) if shape == "auto" else [shape]
    for name in candidates:
        needed = SHAPES[name].required
        if name == "real_generated" and shape == "auto":
            needed = (*needed, *SHAPES[name].optional)  # a lone column `real` may mean anything
        own = {columns.get(column, column) for column in needed}
        if own <= set(present) and set(columns) <= {*SHAPES[name].required, *SHAPES[name].optional}:
            return name
    raise _no_shape(shape, columns, present, source)


def _check_mapping(columns: Mapping[str, str], present: list[str], source: str) -> None:
    for standard, own in columns.items():
        if own not in present:
            guess = nearest(own, present)
            what = f"there is no column {own!r} (data.columns.{standard}); the columns are: {', '.join(present)}"
            raise UserError(what, where=source, remedy=f"did you mean {guess}?" if guess else "correct data.columns")


def _no_shape(shape: str, columns: Mapping[str, str], present: list[str], source: str) -> UserError:
    known = "; ".join(f"{name} ({', '.join(spec.required)})" for name, spec in SHAPES.items())
    mapped = f" with data.columns {', '.join(f'{k}: {v}' for k, v in columns.items())}" if columns else ""
    wanted = "no known shape fits" if shape == "auto" else f"data.shape {shape} needs {', '.join(SHAPES[shape].required)} and does not fit"
    return UserError(
        f"{wanted} the columns: {', '.join(present) or '(none)'}{mapped}",
        where=source,
        remedy=f"known shapes: {known}; or name your own columns, for example data.columns: {{prompt: question, completion: answer}}",
    )
