"""JSON in rows: files, lines of files, and cells that hold turns as text."""

from __future__ import annotations

import json
from typing import Any

from sparring.errors import UserError


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
