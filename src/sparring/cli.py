"""The command line: parse, call, print. Heavy libraries load inside the commands, so that --help starts at once."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import sparring
from sparring import interrupts
from sparring.config import BenchmarksSection, ServerSection, load_recipe, section_from_options, to_yaml
from sparring.console import is_in_log_file, set_up_logging
from sparring.errors import UserError

app = typer.Typer(
    help="Self-play fine-tuning (SPIN) of language models: one command plays the whole game and goes on after any interruption.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
RecipeFile = Annotated[Path, typer.Argument(help="The recipe, a YAML file; docs/recipe.md lists every key.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that replace the recipe's.", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory (run_dir of the recipe).", show_default=False)]
Target = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run directory, a model's folder or its Hub id.", show_default=False)]
Players = Annotated[
    list[str] | None,
    typer.Option(
        "--player",
        help="Of a run: an iteration's number, best, baseline or a control's folder; may be repeated. Baseline and best by default.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the results; RUN/evaluations or evaluations/MODEL when not given.", show_default=False)
]
USER_ERROR, FAULT, INTERRUPTED = 2, 1, 130
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sparring {sparring.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    restart_from: Annotated[
        str | None,
        typer.Option(
            help="Redo this stage and all after it, for example sft or iterations/001/train. Leave it out in the next call, which would "
            "redo them once more."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print warnings and the final tables only.")] = False,
) -> None:
    """Play the whole game. The same command goes on after any interruption."""
    again = shlex.join(["sparring", "run", str(recipe), *(overrides or [])])
    with _outcome(again):
        set_up_logging(quiet)
        checked = load_recipe(recipe, overrides or [])
        from sparring.report.tables import print_summary
        from sparring.seeds import run as play

        gc.freeze()  # garbage is collected after every stage: not through the libraries' million objects each time
        summary = play(checked, restart_from=restart_from, command=again)
        if checked.seeds is None:
            print_summary(summary, Path(checked.run_dir), _stdout())
        else:
            from sparring.comparison.seeds import print_over_seeds

            print_over_seeds(Path(checked.run_dir), _stdout())


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    hardware: Annotated[
        str | None, typer.Option(help="Devices, such as 8xA100-80G, RTX4090 or cpu; this machine's when not given.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the plan as JSON.", show_default=False)
    ] = None,
    rows: Annotated[int | None, typer.Option(min=2, help="Rows of the data, held-out ones included.", show_default=False)] = None,
    prompt_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a prompt.", show_default=False)] = None,
    reply_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a human reply.", show_default=False)] = None,
    generated_tokens: Annotated[float | None, typer.Option(min=1, help="Mean tokens of a sampled reply.", show_default=False)] = None,
    as_published: Annotated[bool, typer.Option("--as-published", help="Show beside it what the published code would take.")] = False,
) -> None:
    """What a game will cost: tokens, operations, memory per device and hours of every stage, and whether it fits. Loads no weights."""
    with _outcome():
        set_up_logging(quiet=True)
        checked = load_recipe(recipe, overrides or [])
        from sparring.planning.command import show_plan
        from sparring.planning.lengths import Given

        given = Given(rows, prompt_tokens, reply_tokens, generated_tokens)
        show_plan(checked, hardware, given, json_file, as_published, _stdout())


@app.command()
def stage(
    recipe: RecipeFile,
    name: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="sft, or iterations/NNN/ with generate, score, train or measure, and so on.", show_default=False
        ),
    ],
    overrides: Overrides = None,
) -> None:
    """Compute one stage as one of its ranks: the same command in every process of accelerate launch, torchrun or srun. `sparring run`
    starts it where the recipe has a launcher."""
    with _outcome():
        from sparring.one_stage import run_stage

        run_stage(load_recipe(recipe, overrides or []), name)


@app.command()
def sample(
    run: RunFolder,
    prompt: Annotated[str, typer.Argument(help="A first user turn.", show_default=False)],
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature, 0 for greedy; the recipe's when not given.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system turn before the prompt; none when not given.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the replies; the recipe's when not given.")] = None,
) -> None:
    """Answer one prompt with every iteration, side by side."""
    with _outcome():
        set_up_logging(quiet=True)
        from sparring.samples import answers, print_answers

        print_answers(prompt, answers(run, prompt, temperature, seed, system), _stdout())


@app.command()
def status(run: RunFolder) -> None:
    """Where a run stands, in one screen: who works on it, the stage, the newest numbers, the scores so far, and how it goes on."""
    with _outcome():
        from sparring.live.state import read_state
        from sparring.live.status import print_status

        print_status(read_state(run), _stdout())


@app.command()
def watch(run: RunFolder) -> None:
    """Follow a running run from another terminal or machine until it ends. Exit code 0: the game is finished; 1: it stopped before."""
    with _outcome():
        from sparring.live.watch import watch as follow

        try:
            is_finished = follow(run, _stdout())
        except KeyboardInterrupt:
            _stop("no longer watching; the run is not touched", INTERRUPTED)
        raise typer.Exit(0 if is_finished else FAULT)


@app.command()
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
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of every task.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the few-shot examples; the harness's own by default.")] = 1234,
    chat_template: Annotated[bool, typer.Option(help="Wrap the questions into the model's chat template.")] = False,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are computed together.")] = 8192,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Number format of the model; the recipe's of a run, else float32.", show_default=False)
    ] = None,
    out: Out = None,
) -> None:
    """Play benchmarks with players of a run, or with a model. What is finished is not played again. MT-Bench is `sparring judge`."""
    with _outcome():
        set_up_logging()
        from sparring.benchmark import evaluate as play
        from sparring.benchmark import print_evaluated

        section = {"suites": suites or [], "tasks": tasks or [], "task_folders": task_folders or []}
        settings = {"limit": limit, "seed": seed, "chat_template": chat_template, "batch_tokens": batch_tokens}
        options = {"suites": "--suite", "tasks": "--task", "task_folders": "--task-folder", "seed": "--seed"}
        checked = section_from_options(BenchmarksSection, {**section, **settings}, options)
        found = play(target, checked, players or [], out, dtype and dtype.value)
        print_evaluated(found, _stdout())


@app.command()
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
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions of each category.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the answers.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Judgments under way at once.")] = 8,
    timeout_seconds: Annotated[float, typer.Option(help="Longest wait for one judgment.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Further attempts at a request that fails.")] = 6,
    out: Out = None,
) -> None:
    """Have a judge grade answers of players of a run, or of a model, as MT-Bench does. What is judged is not paid for twice."""
    with _outcome():
        set_up_logging()
        from sparring.judge import Asked, print_judged
        from sparring.judge import judge as ask

        endpoint = {"urls": [url], "model": model, "api_key_env": key_env, "concurrency": concurrency}
        options = {"urls": "--judge", "model": "--judge-model", "api_key_env": "--key-env", "concurrency": "--concurrency"}
        options |= {"timeout_seconds": "--timeout-seconds", "retries": "--retries"}
        server = section_from_options(ServerSection, {**endpoint, "timeout_seconds": timeout_seconds, "retries": retries}, options)
        asked = Asked(questions, references, server, max_new_tokens, seed, limit)
        print_judged(ask(target, asked, players or [], against, out), asked, against, _stdout())


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories; that of a recipe with `seeds` too.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RUN:PLAYER",
            help="Whom all others are compared with: start, best, a number or a control; the first run's start when not given.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Once for each metric; exact matches and NLL per token as far as measured when not given.",
            show_default=False,
        ),
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Take what there is of runs that are still going, and mark it.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap and of the random sign flips.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the comparison as JSON.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Also write it as Markdown.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write it as a page with plots.", show_default=False)
    ] = None,
) -> None:
    """Every player of several runs on the same held-out rows: differences with errors, tests, and the compute that each has cost."""
    with _outcome():
        set_up_logging(quiet=True)
        from sparring.comparison.command import Files, show_comparison

        show_comparison(runs, against, metric or [], unfinished, seed, Files(json_file, markdown, html), _stdout())


@app.command()
def export(
    run: RunFolder,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    iteration: Annotated[str, typer.Option(help="An iteration's number, best, baseline or a control, such as continued-sft.")] = "best",
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights; float32 is as trained, the others round.")] = Dtype.float32,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of a LoRA player, write the adapter alone and not the model that it makes.")
    ] = False,
) -> None:
    """Write one player as a plain Hugging Face folder with a model card."""
    with _outcome():
        set_up_logging()
        from sparring.export import export as write

        print(f"wrote {write(run, target, iteration, None if dtype is Dtype.float32 else dtype.value, adapter)}")


@app.command()
def report(
    run: RunFolder,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write the page; report.html in the run directory when not given.", show_default=False),
    ] = None,
) -> None:
    """Draw a run's report, one HTML file that needs nothing else: verdict, scores, plots, samples side by side, recipe."""
    with _outcome():
        set_up_logging()
        from sparring.report.run_page import write_report

        print(f"wrote {write_report(run, output)}")


@app.command()
def push(
    run: RunFolder,
    repo: Annotated[str | None, typer.Option(metavar="ID", help="The model's repository, USER/NAME.", show_default=False)] = None,
    dataset_repo: Annotated[
        str | None,
        typer.Option(metavar="ID", help="A repository for the replies that the players sampled; none when not given.", show_default=False),
    ] = None,
    dry_run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the folders to this new one and upload nothing.", show_default=False)
    ] = None,
    iteration: Annotated[str, typer.Option(help="An iteration's number, best, baseline or continued-sft.")] = "best",
    all_iterations: Annotated[
        bool, typer.Option("--all-iterations", help="Every iteration's player too, in branches iteration-0, iteration-1, ...")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch for the player; main when not given.", show_default=False)] = None,
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights; float32 is as trained, the others round.")] = Dtype.float32,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Of LoRA players, the adapters alone and not the models that they make.")
    ] = False,
    base_licence: Annotated[
        str | None,
        typer.Option(help="Licence of the base model, such as apache-2.0; read from its card when not given.", show_default=False),
    ] = None,
    data_licence: Annotated[
        str | None, typer.Option(help="Licence of the data; read from its card when not given.", show_default=False)
    ] = None,
    pairs_licence: Annotated[
        str | None,
        typer.Option(help="Licence of the labelled pairs of a control; read from their card when not given.", show_default=False),
    ] = None,
) -> None:
    """Publish a player, and the replies that were sampled, on the Hugging Face Hub. The token is that of `hf auth login` or HF_TOKEN."""
    with _outcome():
        set_up_logging()
        from sparring.push import Order
        from sparring.push import push as publish

        rounded = None if dtype is Dtype.float32 else dtype.value
        licences = {"base_licence": base_licence, "data_licence": data_licence, "pairs_licence": pairs_licence}
        order = Order(repo, dataset_repo, iteration, rounded, adapter, private, revision, all_iterations, **licences)
        for line in publish(run, order, dry_run):
            print(line)


@app.command("recipe")
def show_recipe(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the resolved recipe: every key with the value that a run would use."""
    with _outcome():
        _encode_stdout(encoding="utf-8")  # what YAML is written in, whatever the terminal's own: `> FILE` must give the recipe back
        print(to_yaml(load_recipe(recipe, overrides or [])), end="")


def main() -> None:
    """Entry point of the `sparring` command."""
    _encode_stdout(errors="replace")  # a model's words must not end a command on a terminal that cannot show them; stderr escapes them
    app()


def _encode_stdout(**options: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where a test or a notebook put something else in its place
        sys.stdout.reconfigure(**options)


@contextlib.contextmanager
def _outcome(again: str | None = None) -> Iterator[None]:
    """Turn what can happen into a message and an exit code; `again` is the command that goes on with the work."""
    if again:
        interrupts.stop_on_signals()
    try:
        yield
    except UserError as error:
        _stop(f"error: {error}", USER_ERROR)
    except KeyboardInterrupt:
        _stop("interrupted; nothing finished is lost" + (f". Go on with:\n  {again}" if again else ""), INTERRUPTED)
    except Exception as error:
        if _is_full_disk(error):
            _stop(
                f"error: no space left to write: {error}\n  -> free some space; nothing finished is lost"
                + (f". Go on with:\n  {again}" if again else ""),
                USER_ERROR,
            )
        if not again or "SPARRING_DEBUG" in os.environ:
            raise
        if is_in_log_file(error):
            hint = "the traceback is in run.log in the run directory"
        else:
            traceback.print_exception(error)
            hint = "the traceback is above"
        _stop(f"fault: {type(error).__name__}: {error}\n  -> {hint}; go on with:\n  {again}", FAULT)


def _is_full_disk(error: BaseException) -> bool:
    """Also for libraries that pass the system's message on as text."""
    return (
        (isinstance(error, OSError) and error.errno in NO_SPACE)
        or "No space left on device" in str(error)
        or "File too large" in str(error)
    )


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(code) from None


def _stdout() -> Console:
    """A pipe has no width of its own; 80 columns would break the tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console
