"""The commands on finished players: evaluate, judge, grade, check-checker, export and push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shared import Argument, Dtype, Option, Out, PlayersOption, RunFolder, TargetArgument, WeightsOption, outcome, stdout
from sparring.config import BenchmarksSection, ServerSection, section_from_options
from sparring.console import printable, set_up_logging


def evaluate(
    target: TargetArgument,
    suites: Annotated[list[str] | None, Option("--suite", help="open-llm-leaderboard or paper-extra; may be repeated.")] = None,
    tasks: Annotated[
        list[str] | None, Option("--task", help="A task of the harness: TASK, TASK@SHOTS, TASK@SHOTS:METRIC; may be repeated.")
    ] = None,
    task_folders: Annotated[
        list[str] | None, Option("--task-folder", help="A folder with task files of your own; may be repeated.")
    ] = None,
    players: PlayersOption = None,
    limit: Annotated[int | None, Option(min=1, help="Evaluate only this many items of every task, the first ones.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the few-shot examples; the default is the harness's.")] = 1234,
    chat_template: Annotated[bool, typer.Option(help="Format the questions with the model's chat template.")] = False,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens per batch.")] = 8192,
    dtype: Annotated[Dtype | None, Option(help="Number format of the model; for a run the recipe's, else float32.")] = None,
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
    target: TargetArgument,
    questions: Annotated[str, Option(help="Questions: a .jsonl file in FastChat's shape, or a Hub id.")],
    url: Annotated[str, Option("--judge", help="Base URL of the judge's endpoint, up to and including /v1.")],
    model: Annotated[str, Option("--judge-model", help="Name of the judge's model there.")],
    references: Annotated[str | None, Option(help="Reference answers, FastChat's shape.")] = None,
    players: PlayersOption = None,
    against: Annotated[
        str | None, Option(help="Compare answers instead of grading them: with this player of the run, or with this model.")
    ] = None,
    key_env: Annotated[str | None, Option(help="Environment variable that holds the judge's key.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    limit: Annotated[int | None, Option(min=1, help="At most this many questions of each category.")] = None,
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


CHECKERS = "exact, number, choice, math or path/to/file.py:function"
Pattern = Annotated[
    str | None,
    Option(
        metavar="REGEX",
        help="Regular expression that finds the answer in a reply; evaluate.answer_pattern of the recipe when not given, '' for none.",
    ),
]


def grade_replies(
    run: RunFolder,
    checker: Annotated[
        str | None, Option(metavar="NAME", help=f"Grade the replies again by this checker: {CHECKERS}. The stored grades when not given.")
    ] = None,
    iteration: Annotated[
        list[int] | None, Option(min=0, metavar="N", help="Only this iteration; may be repeated. All players when not given.")
    ] = None,
    pattern: Pattern = None,
    limit: Annotated[int | None, Option(min=1, help="At most this many prompts of every iteration, chosen by a hash.")] = None,
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Also write the result as JSON, with the full texts.")] = None,
) -> None:
    """Show the grades of a run's replies, or grade them again by another checker. Samples nothing and does not change the run."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring.grading.grade import show_grades

        show_grades(run, checker, pattern, iteration or [], limit, json_file, stdout())


def check_checker(
    checker: Annotated[str, Argument(metavar="CHECKER", help=f"Its name: {CHECKERS}.")],
    source: Annotated[str, Argument(metavar="RUN|RECIPE|DATA", help="Where rows come from: a run, a recipe, or a data file or Hub id.")],
    pattern: Pattern = None,
    answer: Annotated[str | None, Option(metavar="COLUMN", help="For a data file: the column with the right answer.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows to try, chosen by a hash.")] = 500,
) -> None:
    """Try a checker on replies whose correct grade is known: what it wrongly passes, and the effect on a game. Loads no model."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring.grading.trial import print_trial, try_checker

        print_trial(try_checker(checker, source, pattern, answer, limit), stdout())


def export(
    run: RunFolder,
    target: Annotated[Path, Argument(metavar="DIR", help="A new folder.")],
    iteration: Annotated[str, typer.Option(help="An iteration's number, best, start or a control, such as continued-sft.")] = "best",
    dtype: WeightsOption = Dtype.float32,
    adapter: Annotated[bool, typer.Option("--adapter", help="For a LoRA player, write only the adapter and not the merged model.")] = False,
) -> None:
    """Write one player as a plain Hugging Face folder with a model card."""
    with outcome():
        set_up_logging()
        from sparring.export import export as write

        print(printable(f"wrote {write(run, target, iteration, dtype.rounded, adapter)}"))


def push(
    run: RunFolder,
    repo: Annotated[str | None, Option(metavar="ID", help="The model's repository, USER/NAME.")] = None,
    dataset_repo: Annotated[
        str | None, Option(metavar="ID", help="A repository for the replies that the players sampled; none when not given.")
    ] = None,
    dry_run: Annotated[Path | None, Option(metavar="DIR", help="Write the folders to this new one and upload nothing.")] = None,
    iteration: Annotated[str, typer.Option(help="An iteration's number, best, start or a control, such as continued-sft.")] = "best",
    all_iterations: Annotated[
        bool, typer.Option("--all-iterations", help="Also push every iteration's player, to branches iteration-0, iteration-1, ...")
    ] = False,
    revision: Annotated[str | None, Option(help="Branch for the player; main when not given.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create new repositories as private.")] = False,
    dtype: WeightsOption = Dtype.float32,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="For LoRA players, upload only the adapters and not the merged models.")
    ] = False,
    base_licence: Annotated[
        str | None, Option(help="Licence of the base model, such as apache-2.0; read from its card when not given.")
    ] = None,
    data_licence: Annotated[str | None, Option(help="Licence of the data; read from its card when not given.")] = None,
    pairs_licence: Annotated[
        str | None, Option(help="Licence of the labelled pairs of a control; read from their card when not given.")
    ] = None,
    prompts_licence: Annotated[str | None, Option(help="Licence of `data.prompts`; read from their card when not given.")] = None,
) -> None:
    """Publish a player and the sampled replies on the Hugging Face Hub. The token is that of `hf auth login` or HF_TOKEN."""
    with outcome():
        set_up_logging()
        from sparring.push import PushOptions
        from sparring.push import push as publish

        licences = {"base": base_licence, "data": data_licence, "pairs": pairs_licence, "prompts": prompts_licence}
        options = PushOptions(repo, dataset_repo, iteration, dtype.rounded, adapter, private, revision, all_iterations, licences)
        for line in publish(run, options, dry_run):
            print(printable(line))
