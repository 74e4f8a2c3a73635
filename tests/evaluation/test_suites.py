"""Suites and the words for a benchmark."""

from __future__ import annotations

import pytest

from sparring.config import BenchmarksSection
from sparring.errors import UserError
from sparring.evaluation.benchmarks import SUITES, Benchmark, chosen, parse_benchmark, score_name, suite_means
from sparring.evaluation.metrics import Score


@pytest.mark.parametrize(
    ("text", "benchmark"),
    [
        ("arc_easy", Benchmark("arc_easy")),
        ("arc_easy@5", Benchmark("arc_easy", 5)),
        ("arc_easy:acc_norm", Benchmark("arc_easy", None, "acc_norm")),
        ("gsm8k@0:exact_match,strict-match", Benchmark("gsm8k", 0, "exact_match,strict-match")),
    ],
)
def test_a_benchmark_in_words(text: str, benchmark: Benchmark) -> None:
    assert parse_benchmark(text) == benchmark


@pytest.mark.parametrize("text", ["arc easy", "@5", "arc@five", "arc@5@5", "arc:acc:acc"])
def test_no_benchmark(text: str) -> None:
    with pytest.raises(UserError, match=r"names no task\n  -> write TASK, TASK@SHOTS"):
        parse_benchmark(text)


def test_the_papers_tasks() -> None:
    """Table 3 of arXiv 2401.01335, and the metrics that the leaderboard averaged."""
    assert {(b.task, b.shots, b.metric) for b in SUITES["open-llm-leaderboard"]} == {
        ("arc_challenge", 25, "acc_norm"),
        ("truthfulqa_mc2", 0, "acc"),
        ("winogrande", 5, "acc"),
        ("gsm8k", 5, "exact_match,strict-match"),
        ("hellaswag", 10, "acc_norm"),
        ("mmlu", 5, "acc"),
    }


def test_suites_and_tasks_are_played_once_each() -> None:
    section = BenchmarksSection(suites=("paper-extra",), tasks=("openbookqa@1:acc_norm", "arc_easy"))
    assert [benchmark.key for benchmark in chosen(section)][-2:] == ["openbookqa@1", "arc_easy"]
    with pytest.raises(UserError, match="arc_easy is given twice with equal shots and different metrics"):
        chosen(BenchmarksSection(tasks=("arc_easy:acc", "arc_easy:acc_norm")))


def test_an_unknown_suite() -> None:
    with pytest.raises(UserError, match=r"\(--suite\): no suite named 'leaderboard'; did you mean open-llm-leaderboard\?"):
        chosen(BenchmarksSection(suites=("leaderboard",)))


@pytest.mark.parametrize("name", ["mt-bench", "mt_bench", "MT-Bench"])
def test_mt_bench_is_the_judges(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is graded by another model.*\n  -> sparring judge RUN\|MODEL --questions"):
        chosen(BenchmarksSection(suites=(name,)))


def test_the_mean_of_a_suite() -> None:
    section = BenchmarksSection(suites=("paper-extra",))
    values = [0.2, 0.4, 0.6, 0.8]
    scores = {
        score_name(benchmark): Score(value=value, n=10, stderr=0.03, higher_is_better=True)
        for benchmark, value in zip(SUITES["paper-extra"], values, strict=True)
    }
    mean = suite_means(section, scores)["paper-extra/mean"]
    assert mean == {"value": pytest.approx(0.5), "n": 40, "stderr": pytest.approx(0.015), "higher_is_better": True}  # 2 * 0.03 / 4
