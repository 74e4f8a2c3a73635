"""What is measured of a player, and when that ends the game."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from sparring.config.option_types import Metric, PositiveInt, Regex, Section, Texts


class BenchmarksSection(Section):
    """Tasks of lm-evaluation-harness (`sparring[eval]`)."""

    suites: Texts = Field(
        (), description="Known sets: `open-llm-leaderboard`, the paper's six tasks and their mean; `paper-extra`, its further four."
    )
    tasks: Texts = Field(
        (),
        description="Any other tasks of the harness, or of `task_folders`: TASK, TASK@SHOTS, TASK:METRIC or TASK@SHOTS:METRIC; without "
        "them the task's own shots, and all its metrics.",
    )
    task_folders: Texts = Field(
        (), description="Folders with task files of your own (YAML in the harness's format), whose data may be local files."
    )
    limit: PositiveInt | None = Field(None, description="Play the first so many items of every task only; all when null.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        1234, description="Draws the few-shot examples; the default is the harness's own, so that numbers can be compared with others."
    )
    chat_template: bool = Field(
        False, description="Wrap the questions into the model's chat template, shots as turns. The paper's numbers are without it."
    )
    batch_tokens: PositiveInt = Field(
        8192, description="Tokens, new ones included, that are computed together; more take more memory, and change results by rounding."
    )

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.suites and not self.tasks:
            raise ValueError("names neither suites nor tasks")
        return self


class EvaluateSection(Section):
    answer_pattern: Regex | None = Field(
        None,
        description="Regular expression that finds the answer in a reply (its last match; group 1 if it has one). Exact match compares "
        "it with the human reply's. No exact match when null.",
    )
    greedy: bool = Field(False, description="Also answer the held-out prompts greedily and report exact_match_greedy.")
    metric: Metric | None = Field(
        None, description="Picks the best iteration and feeds `patience`; exact_match where there is a pattern, else nll_per_token."
    )

    benchmarks: BenchmarksSection | None = Field(
        None, description="Benchmarks to play with the start, every iteration and the control; none when null. See docs/evaluation.md."
    )

    @field_validator("greedy")
    @classmethod
    def _greedy_is_scored(cls, greedy: bool, info: ValidationInfo) -> bool:
        if greedy and info.data.get("answer_pattern", "invalid") is None:
            raise ValueError("greedy replies are scored by exact match, which needs evaluate.answer_pattern")
        return greedy

    @field_validator("metric")
    @classmethod
    def _metric_is_measured(cls, metric: str | None, info: ValidationInfo) -> str | None:
        if metric in ("exact_match", "exact_match_greedy") and info.data.get("answer_pattern", "invalid") is None:
            raise ValueError("needs evaluate.answer_pattern")
        if metric == "exact_match_greedy" and info.data.get("greedy") is False:
            raise ValueError("needs evaluate.greedy: true")
        return metric

    @property
    def chosen_metric(self) -> str:
        return self.metric or ("exact_match" if self.answer_pattern is not None else "nll_per_token")


class StopSection(Section):
    indistinguishable: bool = Field(
        True,
        description="End the game when the player cannot tell held-out human replies from the opponent's: the confidence interval "
        "of its duel accuracy reaches down to one half.",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="Level of that two-sided interval (Wilson).")
    patience: PositiveInt | None = Field(
        None, description="End the game after this many iterations in a row without a new best value of `evaluate.metric`; never when null."
    )
