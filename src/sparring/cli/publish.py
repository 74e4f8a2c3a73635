"""The commands that publish players: export and push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparring.cli.shared import Dtype, RunFolder, Weights, outcome
from sparring.console import printable, set_up_logging


def export(
    run: RunFolder,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.", show_default=False)],
    iteration: Annotated[str, typer.Option(help="An iteration's number, best, start or a control, such as continued-sft.")] = "best",
    dtype: Weights = Dtype.float32,
    adapter: Annotated[bool, typer.Option("--adapter", help="For a LoRA player, write only the adapter and not the merged model.")] = False,
) -> None:
    """Write one player as a plain Hugging Face folder with a model card."""
    with outcome():
        set_up_logging()
        from sparring.export import export as write

        print(printable(f"wrote {write(run, target, iteration, dtype.rounded, adapter)}"))


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
    iteration: Annotated[str, typer.Option(help="An iteration's number, best, start or continued-sft.")] = "best",
    all_iterations: Annotated[
        bool, typer.Option("--all-iterations", help="Every iteration's player too, in branches iteration-0, iteration-1, ...")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch for the player; main when not given.", show_default=False)] = None,
    private: Annotated[bool, typer.Option("--private", help="Create new repositories as private.")] = False,
    dtype: Weights = Dtype.float32,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="For LoRA players, upload only the adapters and not the merged models.")
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
    """Publish a player and the sampled replies on the Hugging Face Hub. The token is that of `hf auth login` or HF_TOKEN."""
    with outcome():
        set_up_logging()
        from sparring.push import PushOptions
        from sparring.push import push as publish

        licences = {"base_licence": base_licence, "data_licence": data_licence, "pairs_licence": pairs_licence}
        options = PushOptions(repo, dataset_repo, iteration, dtype.rounded, adapter, private, revision, all_iterations, **licences)
        for line in publish(run, options, dry_run):
            print(printable(line))
