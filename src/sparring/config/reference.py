"""The options in words, shared by errors and the page docs/recipe.md, and that page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from sparring.config.option_types import Section
from sparring.config.recipe import Recipe


def types_inside(annotation: Any) -> Iterator[Any]:
    """An annotation and its arguments at any depth: `X | None` gives itself, X and None."""
    yield annotation
    for part in get_args(annotation):
        yield from types_inside(part)


def section_of(annotation: Any) -> type[Section] | None:
    """The section class behind a field's annotation (`X` or `X | None`), or None for a plain value."""
    return next((part for part in types_inside(annotation) if isinstance(part, type) and issubclass(part, Section)), None)


def walk_fields(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option as (dotted key, pydantic field), sections before their keys."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        child = section_of(field.annotation)
        if child is not None:
            yield from walk_fields(child, f"{prefix}{name}.")


def description(field: FieldInfo) -> str:
    """The description of an option in one line."""
    return " ".join((field.description or "").split())


_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its bounds in plain words: `number above 0, or null`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(parts[0], parts[1:])
    if section_of(annotation) is not None and origin is tuple:
        return "section, or list of sections, or null"
    if section_of(annotation) is not None:
        return "section, or null" if NoneType in parts else "section"
    if origin in (Union, UnionType):
        return ", or ".join(in_words(part) for part in parts)
    if origin is Literal:
        *most, last = (f"`{choice}`" for choice in parts)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        return f"list of {re.sub('text|number', lambda noun: noun[0] + 's', in_words(parts[0]))}"
    if origin is dict:
        return f"mapping from {in_words(parts[0])} to {in_words(parts[1])}"
    return _WORDS[annotation] + _bounds(metadata)


def _bounds(metadata: Sequence[Any]) -> str:
    flat = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    words = [f"{word} {getattr(rule, sign)}" for sign, word in signs.items() for rule in flat if getattr(rule, sign, None) is not None]
    return f" {' and '.join(words)}" if words else ""


def show(value: Any) -> str:
    """A value as the user wrote it, in one line of at most 100 characters."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Section):
        return _shortened(f"{{{', '.join(f'{name}: {show(getattr(value, name))}' for name in sorted(value.model_fields_set))}}}")
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        text = "an integer of thousands of digits"
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


_INTRODUCTION = """\
# Recipe reference

A recipe is a YAML file that describes a whole game. `sparring run RECIPE.yaml` plays it; `sparring recipe RECIPE.yaml`
prints it with every default filled in. This is the smallest one:

```yaml
run_dir: runs/first
model: {path: builtin:tiny}
data: {path: builtin:tasks}
```

- Any key can be changed on the command line: `sparring run RECIPE.yaml train.lr=1e-6 objective.beta=[0.1,0.1,5] sft=null`.
- Where a key takes a number or a list, the list holds one value per iteration.
- Numbers and texts are recognised as in YAML 1.2: `5e-7` is a number, `"3"` and `no` are texts.
- Unknown or repeated keys, wrong types, values out of range and contradictions are refused before anything loads.
"""


def recipe_reference() -> str:
    """The page docs/recipe.md: every key with its type, default and description."""
    pages = [_INTRODUCTION, "## Top level\n", _table(Recipe)]
    for name, (field, section) in _sections(Recipe).items():
        pages += [f"## {name}\n", f"{description(field)}\n", _table(section)]
    return "\n".join(pages)


def _sections(section: type[Section]) -> dict[str, tuple[FieldInfo, type[Section]]]:
    """Every section below `section` by its key, each once, before those within it."""
    found: dict[str, tuple[FieldInfo, type[Section]]] = {}
    for name, field in section.model_fields.items():
        if (child := section_of(field.annotation)) is not None:
            found |= {name: (field, child), **{key: inner for key, inner in _sections(child).items() if key not in found}}
    return found


def _table(section: type[Section]) -> str:
    rows = ["| key | type | default | description |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        key = f"[`{name}`](#{name})" if section_of(field.annotation) else f"`{name}`"
        cells = (key, markdown(in_words(field.annotation, field.metadata)), _default(field), markdown(description(field)))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, float):
        return f"`{value:g}`".replace("e-0", "e-")
    return markdown(f"`{value if isinstance(value, str) else show(value)}`")


def markdown(text: str) -> str:
    """Text for a table cell: `|` escaped everywhere, HTML and emphasis only outside `code`, where an escape would show."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", r"\|"))
    return "".join(piece if piece.startswith("`") else re.sub(r"([*<\[\]])", r"\\\1", piece) for piece in pieces)
