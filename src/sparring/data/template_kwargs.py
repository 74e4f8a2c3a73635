"""Variables that a recipe gives to the chat template, as part of the template's own text.

So they apply wherever the template is rendered: sampling, training, benchmarks, and the tokenizer that a saved player carries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from sparring.errors import UserError, nearest

OPTION = "model.chat_template_kwargs"
Scalar = bool | int | float | str | None


def with_kwargs(template: str, kwargs: Mapping[str, Scalar]) -> str:
    """The template with these values as defaults of its variables.

    Raises UserError for a variable that the template does not mention, since it would have no effect.
    """
    for name in kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            guess = nearest(name, {word for word in re.findall(r"\b[a-z_]\w+\b", template) if "_" in word})
            what = f"the chat template does not mention {name!r}, so that it would have no effect"
            raise UserError(what, where=OPTION, remedy=f"did you mean {guess}?" if guess else "leave it out")
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}" for name, value in kwargs.items()
    )
    # The line break after the last block is no part of the rendering: transformers trims it, and the template's first line stays a line's
    # beginning, where blanks before a block are trimmed too.
    return f"{defaults}\n{template}" if defaults else template


def _literal(value: Scalar) -> str:
    """A value as a Jinja literal; texts as in JSON, except for characters that JSON escapes as surrogate pairs."""
    return {None: "none", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else _number_or_text(value)


def _number_or_text(value: float | str) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
