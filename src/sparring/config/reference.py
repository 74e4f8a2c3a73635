"""The page docs/recipe.md: every key with its type, default and description."""

from __future__ import annotations

import re

from pydantic.fields import FieldInfo

from sparring.config.fields import in_words, section_of, show
from sparring.config.option_types import Section
from sparring.config.recipe import Recipe

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
        pages += [f"## {name}\n", f"{field.description}\n", _table(section)]
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
        cells = (key, markdown(in_words(field.annotation, field.metadata)), _default(field), markdown(field.description or ""))
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
