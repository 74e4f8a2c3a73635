"""The YAML of recipes: the scalars of YAML 1.2, no duplicate keys, no tags."""

from __future__ import annotations

import re
from typing import Any

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


# Size limits. A recipe has some 150 keys, three levels and a few kilobytes; only showcase prompts make it longer.
MOST_DEPTH = 20  # Python's own limit is about a thousand frames, and every level takes several
MOST_VALUES = 10_000  # with the values of aliases: nine lists of nine aliases each would be 400 million
MOST_DIGITS = 18  # of a whole number, which then fits in 64 bits


# part of PyYAML's message -> what to do
_REMEDIES = {
    r"'\t'": "indent with spaces",
    "escape character": "put a regular expression in single quotes, which leave backslashes as they are",
    "duplicate key": "keep one of the two",
}
_REMEDY = "correct this line, or the one above it; a bracket or a quote may not be closed"


class _Loader(yaml.SafeLoader):
    """Reads the scalars above; refuses duplicate keys (PyYAML keeps the last one), tags such as `!!int`, and texts beyond the limits.

    Values are counted while they are parsed, before any list or mapping is built.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[int, int] = {}  # of finished nodes, by id; those that hold themselves are not finished

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark = event.start_mark
        if getattr(event, "tag", None) not in (None, "!"):
            raise yaml.composer.ComposerError(None, None, f"the tag {event.tag!r} is not allowed in a recipe", mark)
        before = self._values
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {MOST_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent) and id(node) not in self._sizes:
            raise yaml.composer.ComposerError(None, None, f"*{event.anchor} refers to a value that contains it", mark)
        self._values += self._sizes[id(node)] if isinstance(event, yaml.AliasEvent) else 1
        if self._values > MOST_VALUES:
            what = f"more than {MOST_VALUES:,} values, counting the values of aliases"
            raise yaml.composer.ComposerError(None, None, what, mark)
        self._sizes.setdefault(id(node), self._values - before)
        return node

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        digits = len(node.value.lstrip("+-"))
        if digits > MOST_DIGITS:
            what = f"a whole number of {digits:,} digits; no option takes more than {MOST_DIGITS}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return int(node.value)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, and not when the dict is built, because by then `<<` has copied its keys into the node.
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in lines:
                what = f"duplicate key {key.value!r}, first defined on line {lines[name]}"
                raise yaml.composer.ComposerError(None, None, what, key.start_mark)
            lines[name] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would read as something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # line ends in YAML; only double quotes escape them
        style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Dumper.add_representer(str, _Dumper.represent_text)


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}  # none of PyYAML's own
    for _name, (_pattern, _first) in _SCALARS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})\Z"), _first)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` names the text in the error. Raises UserError for invalid YAML or beyond the limits above."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context or ""
        remedy = next((remedy for part, remedy in _REMEDIES.items() if part in problem), _REMEDY)
        raise UserError(f"not valid YAML: {problem}", where=where + line, remedy=remedy) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=where) from None


def parse_scalar(text: str, where: str) -> Any:
    """The value of a plain scalar that is the whole text, `#` and `: ` included. Raises UserError for a number too long."""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    try:
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except yaml.constructor.ConstructorError as error:
        if tag.endswith(":int"):
            raise UserError(error.problem or str(error), where=where) from None
        return text  # `<<`, which only means something as a key


def dump_yaml(value: Any) -> str:
    """Block YAML that `parse_yaml` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
