"""The rows: human replies, and the labelled pairs of a control."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from sparring.config.option_types import Columns, FrozenDict, PairColumns, PositiveInt, Section, Shape, Text


class DataSection(Section):
    option: ClassVar[str] = "data"

    path: Text = Field(
        description="SFT rows: a .jsonl, .json, .csv or .parquet file, a Hub id, or `builtin:tasks` for the generated task family."
    )
    name: Text | None = Field(None, description="Configuration name of a Hub data set.")
    split: Text = Field("train", description="Split of a Hub data set.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    shape: Shape = Field("auto", description="How a row stores its turns; `auto` goes by the column names and says what it found.")
    columns: Columns = Field(
        default_factory=FrozenDict,
        description="Names of the row's own columns for the standard ones, for example `{prompt: question, completion: answer}`.",
    )
    max_examples: PositiveInt | None = Field(
        None, description="Random subset of this many rows, held-out rows included; all rows when null."
    )
    held_out: PositiveInt | Annotated[float, Field(gt=0, lt=1)] = Field(
        200,
        description="Rows kept from training for evaluation, chosen by a hash of the prompt: a count, or a fraction between 0 and 1. "
        "A fraction keeps every prompt on the same side in every data set.",
    )
    max_prompt_tokens: PositiveInt = Field(512, description="Rows with a longer prompt are dropped and counted.")
    max_reply_tokens: PositiveInt = Field(512, description="Rows with a longer human reply are dropped or cut: see `too_long`.")
    too_long: Literal["drop", "cut"] = Field(
        "drop",
        description="What happens to a human reply over `max_reply_tokens`. A cut reply gets no end-of-turn token. Prompts are never cut.",
    )

    @field_validator("held_out")
    @classmethod
    def _leaves_training_rows(cls, held_out: int | float, info: ValidationInfo) -> int | float:
        rows = info.data.get("max_examples")
        if rows is not None and held_out >= rows:
            raise ValueError(f"leaves no rows to train on, because max_examples is {rows}")
        return held_out


class PairsSection(Section):
    """Labelled preference pairs. What a prompt and a reply may be is said by `data`: its limits hold here too."""

    option: ClassVar[str] = "baseline.pairs"

    path: Text = Field(description="Rows with `prompt`, `chosen` and `rejected`: a .jsonl, .json, .csv or .parquet file, or a Hub id.")
    name: Text | None = Field(None, description="Configuration name of a Hub data set.")
    split: Text = Field("train", description="Split of a Hub data set.")
    revision: Text | None = Field(None, description="Branch, tag or commit of a Hub data set.")
    columns: PairColumns = Field(
        default_factory=FrozenDict, description="Names of the row's own columns for `prompt`, `chosen` and `rejected`."
    )
    max_examples: PositiveInt | None = Field(None, description="Random subset of this many pairs; all when null.")
