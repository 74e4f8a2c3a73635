"""The commands that grade players: evaluate and judge."""

from __future__ import annotations

from typing import Annotated

import typer

from sparring.cli.shared import Dtype, Out, Players, Target, outcome, stdout
from sparring.config import BenchmarksSection, ServerSection, section_from_options
from sparring.console import set_up_logging


def evaluate(
    target: Target,
    suites: Annotated[
        list[str] | None, typer.Option("--suite", help="open-llm-leaderboard or paper-extra; may be repeated.", show_default=False)
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="A task of the harness: TASK, TASK@SHOTS, TASK@SHOTS:METRIC; may be repeated.", show_default=False),
    ] = None,
    task_folders: Annotated[
        list[str] | None, typer.Option("--task-folder", help="A folder with task files of your own; may be repeated.", show_default=False)
    ] = None,
    players: Players = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items of every task, this many.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the few-shot examples; the default is the harness's.")] = 1234,
    chat_template: Annotated[bool, typer.Option(help="Format the questions with the model's chat template.")] = False,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens per batch.")] = 8192,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format of the model; for a run the recipe's, else float32.", show_default=False)
    ] = None,
    out: Out = None,
) -> None:
    """Evaluate players of a run, or a model, on benchmarks. Finished benchmarks are not run again. MT-Bench is `sparring judge`."""
    with outcome():
        set_up_logging()
        from sparring.benchmark import evaluate as play
        from sparring.benchmark import print_evaluated

        section = {"suites": suites or [], "tasks": tasks or [], "task_folders": task_folders or []}
        settings = {"limit": limit, "seed": seed, "chat_template": chat_template, "batch_tokens": batch_tokens}
        options = {"suites": "--suite", "tasks": "--task", "task_folders": "--task-folder", "seed": "--seed"}
        checked = section_from_options(BenchmarksSection, {**section, **settings}, options)
        found = play(target, checked, players or [], out, dtype and dtype.value)
        print_evaluated(found, stdout())


def judge(
    target: Target,
    questions: Annotated[str, typer.Option(help="Questions: a .jsonl file in FastChat's shape, or a Hub id.", show_default=False)],
    url: Annotated[str, typer.Option("--judge", help="Base URL of the judge's endpoint, up to and including /v1.", show_default=False)],
    model: Annotated[str, typer.Option("--judge-model", help="Name of the judge's model there.", show_default=False)],
    references: Annotated[str | None, typer.Option(help="Reference answers, FastChat's shape.", show_default=False)] = None,
    players: Players = None,
    against: Annotated[
        str | None,
        typer.Option(help="Compare answers instead of grading them: with this player of the run, or with this model.", show_default=False),
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the judge's key.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many questions of each category.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the answers.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Concurrent requests to the judge.")] = 8,
    timeout_seconds: Annotated[float, typer.Option(help="Longest wait for one judgment.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Retries of a request that fails.")] = 6,
    out: Out = None,
) -> None:
    """Have a judge model grade the answers of players of a run, or of a model, as MT-Bench does. Finished judgments are kept."""
    with outcome():
        set_up_logging()
        from sparring.judge import JudgeOptions, print_judged
        from sparring.judge import judge as ask

        endpoint = {"urls": [url], "model": model, "api_key_env": key_env, "concurrency": concurrency}
        options = {"urls": "--judge", "model": "--judge-model", "api_key_env": "--key-env", "concurrency": "--concurrency"}
        options |= {"timeout_seconds": "--timeout-seconds", "retries": "--retries"}
        server = section_from_options(ServerSection, {**endpoint, "timeout_seconds": timeout_seconds, "retries": retries}, options)
        asked = JudgeOptions(questions, references, server, max_new_tokens, seed, limit)
        print_judged(ask(target, asked, players or [], against, out), asked, against, stdout())
