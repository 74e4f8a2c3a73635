"""`sparring push`: players and generated data of a run as repositories on the Hugging Face Hub, or as the folders that would go there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sparring.errors import UserError
from sparring.export import export, new_folder
from sparring.locks import hold
from sparring.players import Player, Players
from sparring.policy.hub import HUB_FILES
from sparring.publish.cards import About, dataset_card, model_title
from sparring.publish.pairs import write_pairs
from sparring.publish.plots import FOLDER as PLOTS

if TYPE_CHECKING:
    from sparring.publish.upload import Hub

ASIDE, LOCK = ".push", ".lock-push"  # in the run directory: what is under way to the Hub, and who pushes


@dataclass(frozen=True)
class Order:
    """What is to be published: the options of the command.

    repo: of the model; dataset_repo: of the replies; at least one of them. revision: the branch of the player that is chosen.
    all_iterations: every iteration's player too, in the branch iteration-N. Licences: see publish/licences.py.
    """

    repo: str | None
    dataset_repo: str | None = None
    iteration: str = "best"
    dtype: str | None = None
    adapter: bool = False
    private: bool = False
    revision: str | None = None
    all_iterations: bool = False
    base_licence: str | None = None
    data_licence: str | None = None
    pairs_licence: str | None = None


@dataclass(frozen=True)
class Parcel:
    """One folder of a push: `make` writes it; `name` is what a dry run calls it, `title` what the commit is called."""

    name: str
    title: str
    kind: str
    repo: str
    revision: str | None
    make: Callable[[Path], object]


def push(root: Path, order: Order, dry_run: Path | None = None) -> Iterator[str]:
    """Publish, or write the folders to the new folder `dry_run` and upload nothing. Yields a line per folder that is where it belongs."""
    from sparring.publish.upload import Hub, check_repo_id

    for repo, option in ((order.repo, "--repo"), (order.dataset_repo, "--dataset-repo")):
        if repo is not None:
            check_repo_id(repo, option)
    parcels = _parcels(Players(root), order)
    if dry_run is not None:
        target = new_folder(dry_run)
        yield from (_write(parcel, target) for parcel in parcels)
        return
    hub = Hub()
    with hold(root, LOCK):
        yield from (_send(parcel, hub, root, order.private) for parcel in parcels)


def _parcels(players: Players, order: Order) -> list[Parcel]:
    if order.repo is None and order.dataset_repo is None:
        raise UserError(
            "nothing to push", where="push", remedy="give --repo for the model, --dataset-repo for the generated replies, or both"
        )
    revisions = [player for player in players.all if player.name.isdigit()] if order.all_iterations else []
    about = About.of(
        players.recipe,
        order.base_licence,
        order.data_licence,
        order.pairs_licence,
        unanswered=players.unanswered,
        repo=order.repo,
        dataset_repo=order.dataset_repo,
        revisions=tuple(f"iteration-{player.name}" for player in revisions),
    )
    parcels = []
    if order.repo is not None:
        parcels = [_model(players, order, about, players.find(order.iteration), "model", order.revision)]
        parcels += [_model(players, order, about, *named) for named in zip(revisions, about.revisions, about.revisions, strict=True)]
    if order.dataset_repo is not None:
        parcels.append(Parcel("data", "the generated replies", "dataset", order.dataset_repo, None, partial(_data, players, about)))
    return parcels


def _model(players: Players, order: Order, about: About, player: Player, name: str, revision: str | None) -> Parcel:
    def make(folder: Path) -> None:
        export(players.run.root, folder, player.name, order.dtype, order.adapter, replace(about, revision=revision))

    assert order.repo is not None
    title = model_title(players.summary, player) if players.summary else player.title
    return Parcel(name, title, "model", order.repo, revision, make)


def _data(players: Players, about: About, folder: Path) -> None:
    counts = write_pairs(players, folder)
    (folder / "README.md").write_text(dataset_card(players.recipe, counts, about), encoding="utf-8")


def _write(parcel: Parcel, target: Path) -> str:
    parcel.make(target / parcel.name)
    return f"wrote {parcel.title} to {target / parcel.name}"


def _send(parcel: Parcel, hub: Hub, root: Path, private: bool) -> str:
    """By way of a folder in the run directory, where there is room for a model; nothing is created for what cannot be made.

    A push that was killed leaves that folder to the next one, which makes it anew.
    """
    folder = root / ASIDE
    shutil.rmtree(folder, ignore_errors=True)
    try:
        parcel.make(made := folder / parcel.name)
        hub.create(parcel.repo, parcel.kind, private)
        replaces = (*HUB_FILES, f"{PLOTS}/*.svg") if parcel.kind == "model" else ("*.parquet",)
        hub.upload(made, parcel.repo, parcel.kind, parcel.revision, parcel.title, replaces)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"pushed {parcel.title} to {parcel.repo}{f' ({parcel.revision})' if parcel.revision else ''}"
