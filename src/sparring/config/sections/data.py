"""The rows: human replies, and the labelled pairs of a control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from sparring.config.option_types import (
    Columns,
    FrozenDict,
    PairColumns,
    Paths,
    PositiveInt,
    PromptColumns,
    Section,
    ShapeName,
    Text,
    Texts,
)

FILES = "a .jsonl, .json, .csv or .parquet file (the first three also as .gz or .zst), a folder or a pattern of such files, a list of them"


def path_alone(value: Any) -> Any:
    """The section that a path alone is short for."""
    return {"path": value} if isinstance(value, str) else value


class RowsSection(Section):
    """Where rows come from."""

    option: ClassVar[str]

    path: Paths
    name: Text | None = None
    """Configuration name of a Hub data set."""
    split: Text = "train"
    """Split of a Hub data set."""
    revision: Text | None = None
    """Branch, tag or commit of a Hub data set."""

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple, also where the recipe gives a single one."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def named(self) -> str:
        """The name of the source in messages."""
        return ", ".join(self.paths)


class PromptsSection(RowsSection):
    """Prompts without a human reply. Their limits in tokens are those of `data`."""

    option: ClassVar[str] = "data.prompts"

    path: Paths = Field(description=f"Rows with a prompt: {FILES}, or a Hub id.")
    columns: PromptColumns = Field(default_factory=FrozenDict)
    """The rows' own column names for `messages`, `conversations`, `prompt`, `instruction`, `input`, `system` and `history`."""
    answer: Text | None = None
    """Column that holds the answer, which a checker compares replies with; none when null."""
    replies: Literal["refuse", "drop"] = "refuse"
    """What happens if a row has a reply. `refuse`: the run stops, because such rows belong to `data.path`. `drop`: the reply is not
    read."""
    max_examples: PositiveInt | None = None
    """Random subset of this many prompts; all when null."""


LEAST_HELD_OUT, MOST_HELD_OUT = 8, 200  # if the recipe gives no number
RESERVED_COLUMNS = ("prompts", "completions", "answer", "human_reply", "row_id")  # arguments of a checker that are no columns


class DataSection(RowsSection):
    """The SFT rows: where they come from, how they are read, and which are held out."""

    option: ClassVar[str] = "data"

    path: Paths = Field(
        description=f"SFT rows: {FILES}, a Hub id, `builtin:tasks` for a generated family of short tasks, or `builtin:digits` for three "
        "digits to sort, which the toy model can learn."
    )
    shape: ShapeName = "auto"
    """How a row stores its turns; `auto` detects it from the column names and reports it."""
    columns: Columns = Field(default_factory=FrozenDict)
    """The rows' own column names for the standard ones, for example `{prompt: question, completion: answer, system: persona}`."""
    max_examples: PositiveInt | None = None
    """Random subset of this many rows, held-out rows included; all rows when null."""
    held_out: PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rows kept from training for evaluation, chosen by a hash of the prompt: a count, or a fraction between 0 and 1. A fraction keeps
    every prompt on the same side in every data set. When null, a tenth of the rows, at least 8 and at most 200."""
    max_prompt_tokens: PositiveInt = 512
    """Rows with a longer prompt are dropped and counted."""
    max_reply_tokens: PositiveInt = 512
    """Rows with a longer human reply are dropped or cut: see `too_long`."""
    too_long: Literal["drop", "cut"] = "drop"
    """What happens to a human reply over `max_reply_tokens`. A cut reply gets no end-of-turn token, so `target` verified and majority
    refuse `cut`. Prompts are never cut."""
    on_bad_row: Literal["stop", "drop"] = "stop"
    """What happens to a row that cannot be read or used, also of the prompts and of labelled pairs. `stop`: the run stops and names it.
    `drop`: such rows are left out and counted, and the first is shown."""
    reasoning: Literal["keep", "drop"] = "keep"
    """What happens to an assistant's reasoning in a key of its own (`reasoning_content`, `thinking` or `reasoning`). `keep`: the chat
    template gets it, and a row is refused if the template drops it. `drop`: it is left out."""
    answer: Text | None = None
    """Column of the SFT rows that holds the answer; when null, a checker reads it from the human reply."""
    prompts: Annotated[PromptsSection | None, BeforeValidator(path_alone)] = None
    """Further prompts without replies, on which a game with `target` verified or majority is played as well. `prompts: PATH` is short for
    its `path`."""
    checker_columns: Texts = ()
    """Columns of the rows and of the prompts that `target.checker` gets when it is a function of your own."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        rows = given.get("max_examples")
        if option == "held_out" and value is not None and rows is not None and value >= rows:
            yield f"leaves no rows to train on, because max_examples is {rows}"
        if option == "checker_columns" and "answer" in value:
            yield "a checker gets the column of data.answer as answer: set data.answer, and data.prompts.answer, to it instead"
        if option == "checker_columns" and (reserved := next((name for name in value if name in RESERVED_COLUMNS), None)):
            yield f"{reserved} is an argument that a checker has already; give the column another name"

    def held_out_of(self, rows: int) -> int | float:
        """The number or fraction held out of `rows`: the recipe's, else enough for a score with an error, but little of a small file."""
        if self.held_out is not None:
            return self.held_out
        return max(LEAST_HELD_OUT, min(MOST_HELD_OUT, rows // 10))


class PairsSection(RowsSection):
    """Labelled preference pairs. The limits of prompts and replies are those of `data`."""

    option: ClassVar[str] = "controls.pairs"

    path: Paths = Field(description=f"Rows with `prompt`, `chosen` and `rejected`: {FILES}, or a Hub id.")
    columns: PairColumns = Field(default_factory=FrozenDict)
    """The rows' own column names for `prompt`, `chosen`, `rejected`, `system` and `history`."""
    max_examples: PositiveInt | None = None
    """Random subset of this many pairs; all when null."""
