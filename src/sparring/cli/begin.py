"""The command that writes a first recipe: init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.options import Overrides
from sparring.cli.outcome import outcome
from sparring.console import set_up_logging
from sparring.errors import UserError


def init(
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Rows: a file, a folder, a pattern or a Hub id; the built-in tiny game when not given."),
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="The model that plays: a folder, a Hub id or a .gguf file; a small one when not given.", show_default=False
        ),
    ] = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write a first recipe: look at the rows, their shape, lengths and answers, and comment on every value. Loads no model."""
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
