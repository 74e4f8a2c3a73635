"""YAML as a recipe understands it: the scalars of YAML 1.2, no repeated keys, no tags."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from sparring.errors import UserError

# The scalars of YAML 1.2's core schema. PyYAML's own (YAML 1.1) read `5e-7` as text, `no` as false, `1:30` as 90 and
# `2026-01-01` as a date.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9]\d*)", list("-+0123456789")),
    "float": (r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)", list("-+0123456789.")),
    "merge": (r"<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    """Reads the scalars above, refuses a repeated key (PyYAML lets the last one win) and tags such as `!!int`."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag!r} has no place in a recipe", event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, and not when the dict is made, because by then `<<` has copied its keys into the node.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in lines:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} stands already in line {lines[name]}", key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # YAML takes these for line ends; only double quotes escape them
        style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _Dumper.represent_text)


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})\Z"), _first)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names the text in the error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"not valid YAML: {error.problem or error.context}", where=where + line) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(f"not valid YAML: {error}", where=where) from None


def parse_scalar(text: str) -> Any:
    """The value of a plain scalar that is the whole text, `#` and `: ` included."""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except (yaml.YAMLError, ValueError):  # `<<`, which only means something as a key, or an integer of thousands of digits
        return text


def dump_yaml(value: Any) -> str:
    """Block YAML that `parse_yaml` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
