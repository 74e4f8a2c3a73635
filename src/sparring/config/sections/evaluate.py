"""The evaluation of players, and the stop rules of the game."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sparring.config.option_types import Contradiction, Fraction, MetricName, PositiveFloat, PositiveInt, Regex, Section, Texts
from sparring.config.sections.target import TargetSection
from sparring.own_code import is_own_code


class BenchmarksSection(Section):
    """Tasks of lm-evaluation-harness (`sparring[eval]`)."""

    suites: Texts = ()
    """Known sets: `open-llm-leaderboard`, the paper's six tasks and their mean; `paper-extra`, four further tasks of the paper."""
    tasks: Texts = ()
    """Any other tasks of the harness, or of `task_folders`: TASK, TASK@SHOTS, TASK:METRIC or TASK@SHOTS:METRIC. Without SHOTS the task's
    own number, without METRIC all its metrics."""
    task_folders: Texts = ()
    """Folders with task files of your own (YAML in the harness's format), whose data may be local files."""
    limit: PositiveInt | None = None
    """Only this many items of every task, the first ones; all when null."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1234
    """Seed of the few-shot examples; the default is the harness's, so numbers can be compared with published ones."""
    chat_template: bool = False
    """Format the questions with the model's chat template, shots as turns. The paper's numbers are without it."""
    batch_tokens: PositiveInt = 8192
    """Tokens per batch, new ones included; a larger batch takes more memory and changes results by rounding."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.suites and not self.tasks:
            raise ValueError("no benchmark is named; name a suite or a task")
        return self


class EvaluateSection(Section):
    """What is measured of every player on the held-out rows."""

    answer_pattern: Regex | None = None
    """Regular expression that finds the answer in a reply (its last match; group 1 if it has one). Exact match compares it with the answer
    in the human reply, unless `target.checker` grades it. Without pattern and checker there is no exact match."""
    samples: PositiveInt = 1
    """Replies to every held-out prompt. Exact match is then the mean over them (pass@1), with errors by prompt, and pass@k, maj@k and
    distinct answers are reported too. More replies give smaller standard errors."""
    greedy: bool = False
    """Also answer the held-out prompts greedily and report exact_match_greedy."""
    metric: MetricName | None = None
    """Metric that selects the best iteration and that `patience` uses; exact_match where there is a pattern or a checker, else
    nll_per_token."""
    headroom: bool | None = None
    """After the start is measured, sample k new replies to every held-out prompt, k more at temperature 0.7 where the game samples at a
    higher one, and a greedy one (k is the larger of `samples` and `sampling.replies_per_prompt`), and report what a lower temperature,
    majority and verified targets could gain. When null, where `target` is verified or majority."""
    headroom_epochs: PositiveFloat | None = None
    """Epochs of a short continued SFT of the start, for its held-out NLL before and after; none when null."""
    benchmarks: BenchmarksSection | None = None
    """Benchmarks to run on the start, every iteration and the controls; none when null. See docs/evaluation.md."""

    def contradictions(self, others: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Options that contradict the checker that grades the held-out replies."""
        target: TargetSection | None = others.get("target")
        if target is None:  # it is not known whether there is a checker
            return
        checker = target.grading_checker
        if checker == "exact" and self.answer_pattern is None:
            yield "answer_pattern", "target.checker exact needs it to find the answer; (?s).+ takes the whole reply"
        if target.counts_votes and is_own_code(checker) and self.answer_pattern is None:
            yield "answer_pattern", "majority counts votes for answers, and a function of your own extracts none: this pattern finds them"
        if target.losers == "answered" and is_own_code(checker) and self.answer_pattern is None:
            why = "with target.losers answered a reply loses only if it has an answer, which this pattern finds for a function of your own"
            yield "answer_pattern", why
        if self.headroom_epochs is not None and (self.headroom is False or not (self.headroom or target.uses_grades)):
            yield "headroom_epochs", "has no effect where no headroom is measured; set evaluate.headroom: true"
        if self.metric == "exact_match_greedy" and not self.greedy:
            yield "metric", "needs evaluate.greedy: true"
        if checker is None and self.answer_pattern is None:
            yield from self._without_answers()

    def _without_answers(self) -> Iterator[Contradiction]:
        needs = "needs evaluate.answer_pattern, or a target.checker"
        if self.greedy:
            yield "greedy", f"greedy replies are scored by exact match, which {needs}"
        if self.metric in ("exact_match", "exact_match_greedy"):
            yield "metric", needs
        if self.samples > 1:
            yield "samples", f"several replies to a prompt are scored by their answers, which {needs}"
        if self.headroom:
            yield "headroom", f"it is reported in exact matches, which {needs}"


class StopSection(Section):
    """The rules that end a game before its last iteration."""

    indistinguishable: bool = True
    """End the game when the player cannot distinguish held-out human replies from the opponent's: the confidence interval of its duel
    accuracy reaches down to one half."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of that two-sided interval (Wilson)."""
    patience: PositiveInt | None = None
    """End the game after this many iterations in a row without a new best value of `evaluate.metric`; never when null."""
    plateau: bool = True
    """With `target` verified or majority, end the game when the pass rate (majority: the share of votes) of the training prompts has not
    risen by more than its standard error since the iteration before."""
    min_pass_at_k: Fraction | None = 0.9
    """With `target` verified or majority and `evaluate.samples` above 1, end the game when pass@k falls below this share of the start's:
    replies have lost their diversity. Never when null."""
    min_distinct: Fraction | None = None
    """The same for distinct answers per prompt, which need `evaluate.answer_pattern` where `target.checker` is a function of your own.
    These fall in every game that succeeds, so the rule is off by default."""

    def contradictions(self, others: Mapping[str, Any]) -> Iterator[Contradiction]:
        """Limits that could never be reached, because what they limit is not measured."""
        target: TargetSection | None = others.get("target")
        evaluate: EvaluateSection | None = others.get("evaluate")
        if target is None or evaluate is None:
            return
        for name in ("min_pass_at_k", "min_distinct"):
            if getattr(self, name) is None or not self.is_set(name, getattr(self, name)):
                continue
            if evaluate.samples == 1:
                yield name, "needs several replies to a held-out prompt: set evaluate.samples, 8 for example"
            elif name == "min_distinct" and is_own_code(target.grading_checker) and evaluate.answer_pattern is None:
                yield name, "counts answers, and a function of your own extracts none: set evaluate.answer_pattern, which finds them"
