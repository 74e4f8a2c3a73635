"""Names of benchmarks: tasks of lm-evaluation-harness with shots and metric, and suites of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparring.config import BenchmarksSection
from sparring.errors import UserError, nearest
from sparring.evaluation.metrics import Score

SPEC = re.compile(r"(?P<task>[^@:\s]+)(@(?P<shots>\d+))?(:(?P<metric>[^@:\s]+))?")
SUITES_OPTION, TASKS_OPTION = "evaluate.benchmarks.suites (--suite)", "evaluate.benchmarks.tasks (--task)"
# benchmarks that users may look for here, but that `sparring judge` runs
JUDGED = ("mt-bench", "mtbench")
SPEC_RULE = "TASK, TASK@SHOTS, TASK:METRIC or TASK@SHOTS:METRIC"


@dataclass(frozen=True)
class Benchmark:
    """A task (or group or tag) of the harness. `shots` None means the task's own, `metric` None means all of its metrics."""

    task: str
    shots: int | None = None
    metric: str | None = None

    @property
    def key(self) -> str:
        """The name of its files: one task may be run with several numbers of shots."""
        return self.task.replace("/", "_") + ("" if self.shots is None else f"@{self.shots}")


SUITES: dict[str, tuple[Benchmark, ...]] = {
    # the first Open LLM Leaderboard, which the paper reports (arXiv 2401.01335, table 3)
    "open-llm-leaderboard": (
        Benchmark("arc_challenge", 25, "acc_norm"),
        Benchmark("truthfulqa_mc2", 0, "acc"),
        Benchmark("winogrande", 5, "acc"),
        Benchmark("gsm8k", 5, "exact_match,strict-match"),
        Benchmark("hellaswag", 10, "acc_norm"),
        Benchmark("mmlu", 5, "acc"),
    ),
    # its appendix; the harness has these three of BIG-bench with the chains of thought of BIG-bench Hard, 3 shots
    "paper-extra": (
        Benchmark("bbh_cot_fewshot_causal_judgement", 3, "exact_match,get-answer"),
        Benchmark("bbh_cot_fewshot_formal_fallacies", 3, "exact_match,get-answer"),
        Benchmark("bbh_cot_fewshot_sports_understanding", 3, "exact_match,get-answer"),
        Benchmark("openbookqa", 1, "acc_norm"),
    ),
}


def chosen(section: BenchmarksSection) -> list[Benchmark]:
    """The benchmarks of all suites and tasks of a section, each once. Raises UserError for an unknown suite and for a broken task."""
    found = [benchmark for name in section.suites for benchmark in _suite(name)]
    found += [parse_benchmark(text) for text in section.tasks]
    unique = list(dict.fromkeys(found))
    for index, benchmark in enumerate(unique):
        if benchmark.key in [other.key for other in unique[:index]]:
            what = f"{benchmark.task} is asked for twice with equal shots and another metric"
            raise UserError(what, where=TASKS_OPTION, remedy="name it once, without a metric: all of its metrics are kept")
    return unique


def parse_benchmark(text: str) -> Benchmark:
    """A benchmark from its text, such as hellaswag@10:acc_norm. Raises UserError for a text of another form."""
    found = SPEC.fullmatch(text)
    if found is None:
        raise UserError(f"{text!r} names no task", where=TASKS_OPTION, remedy=f"write {SPEC_RULE}, for example hellaswag@10:acc_norm")
    return Benchmark(found["task"], None if found["shots"] is None else int(found["shots"]), found["metric"])


def suite_means(section: BenchmarksSection, scores: Mapping[str, Score]) -> dict[str, Score]:
    """suite -> the mean of its benchmarks' scores, its standard error from theirs as of independent samples."""
    return {f"{name}/mean": _mean([scores[score_name(benchmark)] for benchmark in _suite(name)]) for name in section.suites}


def score_name(benchmark: Benchmark) -> str:
    """The key of a benchmark's score: KEY/METRIC."""
    return f"{benchmark.key}/{benchmark.metric}"


def _suite(name: str) -> Sequence[Benchmark]:
    if name.lower().replace("_", "-") in JUDGED:
        raise UserError(
            f"{name} is graded by another model, which needs an endpoint and its questions",
            where=SUITES_OPTION,
            remedy="sparring judge RUN|MODEL --questions question.jsonl --judge URL --judge-model NAME; see `sparring docs evaluation`",
        )
    if name not in SUITES:
        guess = nearest(name, SUITES)
        what = f"no suite named {name!r}" + (f"; did you mean {guess}?" if guess else "")
        raise UserError(what, where=SUITES_OPTION, remedy=f"the suites are {', '.join(SUITES)}; single tasks are named as tasks")
    return SUITES[name]


def _mean(scores: Sequence[Score]) -> Score:
    errors = [score["stderr"] for score in scores]
    known = [error for error in errors if error is not None]
    return Score(
        value=sum(score["value"] for score in scores) / len(scores),
        n=sum(score["n"] for score in scores),
        stderr=math.hypot(*known) / len(scores) if len(known) == len(scores) else None,
        higher_is_better=True,
    )
