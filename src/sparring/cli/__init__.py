"""The command line: parse, call, print. Heavy libraries load inside the commands, so that --help starts at once.

game.py view.py players.py   the commands
shared.py                    common arguments and options, errors and exit codes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import sparring
from sparring.cli.game import demo, init, plan, run, show_recipe, stage
from sparring.cli.players import check_checker, evaluate, export, grade_replies, judge, push
from sparring.cli.shared import encode_stdout
from sparring.cli.view import compare, docs, doctor, report, sample, status, watch
from sparring.objectives import in_words

app = typer.Typer(
    help="Self-play fine-tuning (SPIN) of language models: one command plays the whole game and resumes after any interruption.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# in the order of --help
app.command()(init)
app.command(epilog=f"The values of objective.loss: {in_words()}.")(run)
command: Callable[..., None]
for command in (demo, plan, stage, sample, status, watch, evaluate, judge):
    app.command()(command)
app.command("grade")(grade_replies)
for command in (check_checker, compare, export, report, push, doctor, docs):
    app.command()(command)
app.command("recipe")(show_recipe)


def main() -> None:
    """Entry point of the `sparring` command."""
    encode_stdout(errors="replace")  # a model's text must not crash a command on a terminal that cannot show it; stderr escapes it
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sparring {sparring.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass
