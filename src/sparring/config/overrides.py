"""Overrides: `section.key=value` on top of what the file says."""

from __future__ import annotations

import re
from typing import Any

from sparring.config.fields import show
from sparring.config.yaml_dialect import parse_scalar, parse_yaml
from sparring.errors import UserError
from sparring.secrecy import HIDDEN

OLD_KEYS = {"baseline": "controls"}  # former name -> name


def override_path(override: str) -> str:
    """The dotted key that an override sets."""
    return override.partition("=")[0].strip()


def shown_override(override: str) -> str:
    """The override for a message; its value is hidden if it may contain a secret."""
    path = override_path(override)
    return show(f"{path}={HIDDEN}" if re.search(r"(?i)url|key|token|secret|password|command", path) else override)


def apply_override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """`values` with one key set; sections on the path are copied or created, never changed in place."""
    keys = override_path(override).split(".")
    keys[0] = OLD_KEYS.get(keys[0], keys[0])
    if "=" not in override or not all(keys):
        raise UserError(f"override {shown_override(override)} is not of the form section.key=value")
    result = node = dict(values)
    for depth, key in enumerate(keys[:-1], 1):
        child = node.get(key)
        if isinstance(child, str) and keys[:depth] in (["controls"], ["launcher"]):
            child = {"kind": child}
        if isinstance(child, (str, list)) and keys[:depth] == ["track"]:
            child = {"trackers": [child] if isinstance(child, str) else child}
        if isinstance(child, list) and len(child) == 1 and keys[:depth] == ["controls"]:
            child = child[0]
        if child is not None and not isinstance(child, dict):
            raise UserError(f"override {shown_override(override)}: {'.'.join(keys[:depth])} is {show(child)}, which has no keys of its own")
        node[key] = dict(child or {})
        node = node[key]
    node[keys[-1]] = _override_value(override)
    return result


def _override_value(override: str) -> Any:
    """The typed value: a quoted text, [list] or {mapping} is YAML, anything else a plain scalar."""
    text, where = override.partition("=")[2].strip(), f"override {shown_override(override)}"
    if text[:1] not in ("[", "{", "'", '"'):
        return parse_scalar(text, where)
    try:
        return parse_yaml(text, where)
    except UserError as error:
        raise UserError(error.what, where=where, remedy="a text that begins with [ { or a quote must itself be quoted") from None
