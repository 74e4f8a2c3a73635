"""Who `sparring evaluate` and `sparring judge` are about: players of a run, or a model by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sparring.config import ModelSection, Recipe, load_recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.errors import UserError
from sparring.players import Players
from sparring.policy.load import find_model, load_tokenizer, model_facts, weights_hash
from sparring.policy.player import Player
from sparring.rundir import RunDir, StageRecord, digest

MODEL = "model"
LOG = "evaluate.log"
MOST_LETTERS = 60


@dataclass(frozen=True, kw_only=True)
class Subject(Player):
    """A player, or a model without a run, with what is needed to sample from it."""

    recipe: Recipe
    find_chat: Callable[[], Chat]

    @cached_property
    def chat(self) -> Chat:
        """How it is talked to, which benchmarks may do without. Raises UserError for a model without a chat template."""
        return self.find_chat()


def resolve_models(target: str, wanted: Sequence[str], out: Path) -> list[Subject]:
    """The wanted players of a run (the start and the best when none are named), or the model that `target` names otherwise.

    A model that is no folder of safetensors is written to `out` first. Raises UserError for who is not there.
    """
    if is_run(target):
        return _players(Path(target), wanted)
    return [_model(target, out)]


def is_run(target: str) -> bool:
    """Whether `target` is a run directory: it has a recipe.yaml."""
    return (Path(target) / "recipe.yaml").is_file()


def default_out(target: str) -> Path:
    """Inside a run; in the current folder for a model without a run."""
    return Path(target) / "evaluations" if is_run(target) else Path("evaluations") / slug([Path(target).name or target])


def slug(parts: Sequence[str]) -> str:
    """A folder name from arbitrary text; a long one is cut and made unique by a hash."""
    name = re.sub(r"[^A-Za-z0-9@_.-]+", "_", "+".join(parts))
    return name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS]}-{digest(list(parts))[:8]}"


def remade_stage(run: RunDir, name: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> StageRecord:
    """A stage of a folder of evaluations: skipped if finished with equal inputs, else recomputed."""
    if changes := run.remove_changed(name, inputs):
        log.info(f"recomputing {name}: {'; '.join(changes)}")
    return run.stage(name, inputs, work)


def _players(root: Path, wanted: Sequence[str]) -> list[Subject]:
    players = Players(root)
    has_best = players.summary is not None and players.summary["best"] is not None
    names = wanted or ["start", *(["best"] if has_best else [])]
    found = dict.fromkeys(players.find(name) for name in names)
    chat = players.chat()
    folders = {name: players.folder(name) for name in found}
    return [Subject(name, folder, weights_hash(folder), recipe=players.recipe, find_chat=lambda: chat) for name, folder in folders.items()]


def _model(target: str, out: Path) -> Subject:
    source = find_model(ModelSection(path=target), seed=0)
    folder = source.folder
    if folder is None:
        make = source.make
        assert make is not None, "a model without a folder can be made"
        stage = RunDir(out).stage("base", {"model": source.fingerprint}, lambda stage: make(stage / "model") or {})
        folder = stage.path / "model"
    # of the recipe only the model, the number format and what samples are read
    played = {"data": {"path": "builtin:tasks"}, "train": {"precision": "fp32"}}
    recipe = load_recipe({"run_dir": str(out), "model": {"path": target}, **played})
    return Subject(MODEL, folder, weights_hash(folder), recipe=recipe, find_chat=partial(_chat_of, target, folder))


def _chat_of(target: str, folder: Path) -> Chat:
    try:
        return Chat(load_tokenizer(folder), None, model_facts(folder)[1])
    except UserError as error:  # which names the key of a recipe
        raise UserError(error.what, where=target, remedy="give the model a chat template, or take one that has it") from error
