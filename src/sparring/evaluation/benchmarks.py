"""Benchmarks: their names and suites, and the files of a benchmark stage. harness.py runs them.

Needs neither the harness nor torch, so that finished benchmarks can be compared anywhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import BenchmarksSection
from sparring.errors import UserError, suggestion
from sparring.evaluation.metrics import Score
from sparring.rundir import digest, read_json

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
    """The benchmarks of all suites and tasks of a section, each once. Raises UserError for an unknown suite or a malformed task name."""
    found = [benchmark for name in section.suites for benchmark in _suite(name)]
    found += [parse_benchmark(text) for text in section.tasks]
    unique = list(dict.fromkeys(found))
    for index, benchmark in enumerate(unique):
        if benchmark.key in [other.key for other in unique[:index]]:
            what = f"{benchmark.task} is given twice with equal shots and different metrics"
            raise UserError(what, where=TASKS_OPTION, remedy="name it once, without a metric: all of its metrics are kept")
    return unique


def parse_benchmark(text: str) -> Benchmark:
    """A benchmark from its text, such as hellaswag@10:acc_norm. Raises UserError for a text of another form."""
    found = SPEC.fullmatch(text)
    if found is None:
        raise UserError(f"{text!r} names no task", where=TASKS_OPTION, remedy=f"write {SPEC_RULE}, for example hellaswag@10:acc_norm")
    return Benchmark(found["task"], None if found["shots"] is None else int(found["shots"]), found["metric"])


def suite_means(section: BenchmarksSection, scores: Mapping[str, Score]) -> dict[str, Score]:
    """suite -> the mean of its benchmarks' scores; its standard error assumes that they are independent."""
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
        what = f"no suite named {name!r}{suggestion(name, SUITES, before='; ')}"
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


RESULTS, SAMPLES = "results", "samples"
# task settings that only locate the data; its content is known from the samples
OF_DATA = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata")
# tolerance between the mean of the samples' values and the harness's number: JSON keeps all digits
ROUNDING = 1e-6


@dataclass(frozen=True)
class TaskMeasured:
    """One number of the harness: a metric, after a filter, of a task or of a group; `leaves` are the tasks with its samples."""

    name: str
    metric: str
    filter_name: str
    leaves: tuple[str, ...]
    score: Score


@dataclass(frozen=True)
class SampledMetric:
    """A metric of a benchmark with its value for every sample.

    values: sample -> value; None if the harness's number is not a mean over samples. prompts: sample -> hash of the prompt,
    shots included. asked: the settings of the task (see `_asked`). is_main: whether this metric, or all of the task, were requested.
    """

    name: str
    score: Score
    values: Mapping[str, float] | None
    prompts: Mapping[str, str]
    asked: Mapping[str, Any]
    harness: str
    is_main: bool


def results_file(stage: Path, key: str) -> Path:
    """The file with the harness's results of one benchmark."""
    return stage / RESULTS / f"{key}.json"


def samples_file(stage: Path, key: str, task: str) -> Path:
    """The file with the samples of one task of a benchmark."""
    return stage / SAMPLES / f"{key}.{task}.jsonl".replace("/", "_")


def metric_name(metric: str, filter_name: str) -> str:
    """The harness writes `acc,none` if no filter is applied."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def measured(benchmark: Benchmark, found: Mapping[str, Any]) -> Iterator[TaskMeasured]:
    """The numbers of a task or group; those of all its tasks for a tag, or a group without an aggregate. found: the harness's results."""
    results = found["results"]
    names = [benchmark.task] if any("," in column for column in results.get(benchmark.task, ())) else list(results)
    for name in names:
        key = benchmark.key if name == benchmark.task else Benchmark(name, benchmark.shots).key
        leaves = _leaves(name, found.get("group_subtasks") or {})
        n = sum(found["n-samples"][leaf]["effective"] for leaf in leaves)
        for column, value in results[name].items():
            metric, comma, filter_name = column.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = results[name].get(f"{metric}_stderr,{filter_name}")
            higher = (found["higher_is_better"].get(name) or {}).get(metric)
            stderr = float(error) if isinstance(error, (int, float)) else None
            score = Score(value=float(value), n=n, stderr=stderr, higher_is_better=higher)
            yield TaskMeasured(f"{key}/{metric_name(metric, filter_name)}", metric, filter_name, leaves, score)


def sampled_metrics(stage: Path) -> Iterator[SampledMetric]:
    """All metrics of all benchmarks in the folder of a finished stage, each with its samples."""
    for file in sorted((stage / RESULTS).glob("*.json")):
        found = read_json(file)
        benchmark = Benchmark(**found["benchmark"])
        tasks: dict[str, list[dict[str, Any]]] = {}
        for one in measured(benchmark, found):
            for leaf in one.leaves:
                if leaf not in tasks:
                    tasks[leaf] = list(_samples(samples_file(stage, benchmark.key, leaf), leaf))
            yield _sampled(benchmark, found, one, [row for leaf in one.leaves for row in tasks[leaf]])


def _sampled(benchmark: Benchmark, found: Mapping[str, Any], one: TaskMeasured, samples: Sequence[Mapping[str, Any]]) -> SampledMetric:
    own = [row for row in samples if row["filter"] == one.filter_name and one.metric in row["values"]]
    values = {row["sample"]: row["values"][one.metric] for row in own}
    is_mean = bool(values) and abs(sum(values.values()) / len(values) - one.score["value"]) <= ROUNDING
    return SampledMetric(
        name=one.name,
        score=one.score,
        values=values if is_mean else None,
        prompts={row["sample"]: row["prompt"] for row in own},
        asked=_asked(found, one.leaves),
        harness=found["harness"],
        is_main=benchmark.metric is None or one.name == score_name(benchmark),
    )


def _asked(found: Mapping[str, Any], leaves: Sequence[str]) -> dict[str, Any]:
    """Versions and settings of the tasks, shots, and whether a chat template was applied; the seed if it chose the shots."""
    shots = {leaf: found["n-shot"].get(leaf, 0) for leaf in leaves}
    return {
        "version": {leaf: found["versions"].get(leaf) for leaf in leaves},
        "shots": shots,
        "chat_template": found["chat_template"],
        "seed": found["seed"] if any(shots.values()) else None,
        "settings": {
            leaf: {key: value for key, value in (found["configs"].get(leaf) or {}).items() if key not in OF_DATA} for leaf in leaves
        },
    }


def _samples(file: Path, task: str) -> Iterator[dict[str, Any]]:
    """The fields of every line that a comparison needs; a task's prompts and answers may take hundreds of megabytes."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            numbers = {name: row.get(name) for name in row["metrics"]}
            yield {
                "sample": f"{task} {row['doc_id']} ({digest([row['doc_hash'], row['target_hash']])[:8]})",
                "prompt": row["prompt_hash"],
                "filter": row["filter"],
                "values": {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))},
            }


def _leaves(name: str, subtasks: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    below = subtasks.get(name)
    return tuple(leaf for child in below for leaf in _leaves(child, subtasks)) if below else (name,)
