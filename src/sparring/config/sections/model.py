"""The model that plays."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sparring.config.option_types import FrozenDict, PathText, Section, TemplateKwargs, Text


class ModelSection(Section):
    """The model that the game, or its SFT stage, starts from."""

    path: PathText = Field(
        description="The SFT (or base) model: a local folder, a Hub id, a .gguf file, `package:NAME/FILE.gguf` for a file "
        "inside an installed Python package, or `builtin:tiny` for a generated toy model."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub model.")
    dtype: Literal["bfloat16", "float32"] | None = Field(
        None,
        description="Number format of the frozen model while it samples; bfloat16 halves its memory and rounds the weights that "
        "the replies are sampled from. That of train.precision when null. The saved weights are float32 either way.",
    )
    chat_template: PathText | None = Field(
        None, description="A Jinja file that replaces the tokenizer's chat template, or gives one to a model that has none."
    )
    chat_template_kwargs: TemplateKwargs = Field(
        default_factory=FrozenDict,
        description="Values for variables of the chat template, for example `{enable_thinking: false}`. Saved players carry them in their "
        "template.",
    )
