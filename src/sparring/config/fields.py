"""Iterating over the options, and their types and values in words, shared by errors and docs/recipe.md."""

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
