"""The players of a run: their names, weights and chat template; and what `sparring evaluate` and `sparring judge` run on: players of a
run, or a model by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sparring.config import ModelSection, Recipe, load_recipe
from sparring.console import log
from sparring.data.chat import Chat
from sparring.errors import UserError
from sparring.policy.adapters import base_of, is_adapter
from sparring.policy.compute import release_memory
from sparring.policy.load import find_model, load_chat, weights_hash
from sparring.policy.player import Player
from sparring.report.summary import read_summary
from sparring.rundir import RunDir, StageRecord, digest, read_json
from sparring.stage_names import SCORES, SFT, START, owner_of, player_name, recipe_of_game

BASE = "base"
MODEL = "model"  # the name of a model without a run
LOG = "evaluate.log"
MOST_LETTERS = 60  # of a folder's name
PUT_BACK = "put it back, or run the recipe again in another run_dir"


class Players:
    """All players of a run so far, by name. The summary says which iterations count, if there is one; else the folders on disk.

    stages: name -> the stage that holds the model; None if the model is the folder of `model.path`, which a run does not copy.
    """

    def __init__(self, root: Path) -> None:
        self.recipe: Recipe = recipe_of_game(root)
        self.run = RunDir(root)
        self.summary = read_summary(root)
        self.stages = {name: stage for name, stage in self._possible().items() if stage is None or self.run.finished(stage)}

    @property
    def unanswered(self) -> int:
        """Prompts without a human reply that the game is played on."""
        data = self.run.finished("data")
        return 0 if data is None else data.facts.get("prompt_counts", {}).get("prompts", 0)

    def find(self, text: str) -> str:
        """The name of a player by what was typed: a name or "best"; numbers may have leading zeros."""
        wanted = player_name(self._best() if text == "best" else text)
        if wanted not in self.stages:
            there = ", ".join(self.stages) or "none yet"
            raise UserError(
                f"this run has no player {wanted!r}", where=str(self.run.root), remedy=f"it has {there}{self._ended_early() or ''}"
            )
        return wanted

    def is_trained(self, name: str) -> bool:
        """Whether training saved it, so that its files have the chat template and the end-of-turn ids of the run."""
        return self.stages[name] not in (None, BASE)

    def folder(self, name: str) -> Path:
        """Its model folder. Raises UserError if it is no longer what the run trained or used."""
        stage = self.stages[name]
        if stage is not None:
            folder = self.run.verified(stage).path / "model"
            if is_adapter(folder):
                self._require_base(folder)
            return folder
        source = find_model(self.recipe.model, self.recipe.seed)
        if source.folder is None or source.fingerprint != self._hash_of_start:
            what = "this is no longer the model that the run started from (its hash differs)"
            raise UserError(what, where=f"model.path ({source.name})", remedy=PUT_BACK)
        return source.folder

    def _require_base(self, adapter: Path) -> None:
        """An adapter is this player only on the start of its game: raise UserError if the base has changed."""
        start = self._start()[START]
        if start is not None:
            self.run.verified(start)
        elif weights_hash(base_of(adapter)) != self._hash_of_start:
            what = "the base model of this player is no longer the one that the run started from (its hash differs)"
            raise UserError(what, where=str(base_of(adapter)), remedy=PUT_BACK)

    @property
    def _hash_of_start(self) -> str | None:
        return (self.run.inputs_of(f"{START}/measure") or {}).get("model")

    def chat(self) -> Chat:
        """The run's chat template and tokenizer, the same for all players; read from a trained player if there is one."""
        carrier = next(filter(self.is_trained, self.stages), None)
        folder = self.folder(carrier or next(iter(self.stages)))
        # A trained player's tokenizer carries the template that it was trained under, with the values of its variables.
        return load_chat(folder, ModelSection(path=self.recipe.model.path) if carrier else self.recipe.model)

    def _possible(self) -> dict[str, str | None]:
        if self.summary is None:
            iterations = len(list((self.run.root / "iterations").glob("[0-9]*")))
            controls = [section.folder for section in self.recipe.controls]
        else:
            iterations, controls = len(self.summary["iterations"]), [entry["stage"] for entry in self.summary["controls"]]
        trained = [*map(str, range(iterations)), *controls]
        return {**self._start(), **{name: f"{owner_of(name)}/train" for name in trained}}

    def _start(self) -> dict[str, str | None]:
        if self.recipe.sft is not None:
            return {START: SFT}
        if self.run.finished(BASE):
            return {START: BASE}
        return {START: None} if self.run.finished(f"{START}/measure") else {}

    def _best(self) -> str:
        best = self.summary and self.summary["best"]
        if not best:
            ended = self._ended_early()
            raise UserError(
                "this run has no best iteration" + (ended or " yet"),
                where=str(self.run.root),
                remedy="`--iteration start` is the model that it started from" if ended else "let it play at least one iteration",
            )
        return str(best["iteration"])

    def _ended_early(self) -> str | None:
        """A clause that says that the game is over without an iteration; None if it is not."""
        if self.summary is None or self.summary["iterations"] or self.summary["stop_reason"] is None:
            return None
        return f"; the game ended without an iteration - {self.summary['stop_reason']}"


@dataclass(frozen=True, kw_only=True)
class EvaluatedPlayer(Player):
    """A player, or a model without a run, with what is needed to sample from it."""

    recipe: Recipe
    find_chat: Callable[[], Chat]

    @cached_property
    def chat(self) -> Chat:
        """Its chat template and tokenizer; benchmarks may not need them. Raises UserError for a model without a chat template."""
        return self.find_chat()


@dataclass(frozen=True)
class Results:
    """player -> its scores, and the facts of the stage that computed them; the folder with everything."""

    scores: dict[str, dict[str, Any]]
    facts: dict[str, dict[str, Any]]
    folder: Path

    @classmethod
    def of(cls, stages: Mapping[str, StageRecord], folder: Path) -> Results:
        """The results in the stages of the players."""
        scores = {title: read_json(stage.path / SCORES) for title, stage in stages.items()}
        return cls(scores, {title: stage.facts for title, stage in stages.items()}, folder)


def resolve_models(target: str, wanted: Sequence[str], out: Path) -> list[EvaluatedPlayer]:
    """The wanted players of a run (the start and the best when none are named), or the model `target` if it is not a run.

    A model that is not a folder of safetensors is written to `out` first. Raises UserError for an unknown player or model.
    """
    if is_run(target):
        return _players(Path(target), wanted)
    return [_model(target, out)]


def is_run(target: str) -> bool:
    """Whether `target` is a run directory: it has a recipe.yaml."""
    return (Path(target) / "recipe.yaml").is_file()


def default_out(target: str) -> Path:
    """The folder of results if none is given: inside a run, or in the current folder for a model without a run."""
    return Path(target) / "evaluations" if is_run(target) else Path("evaluations") / slug([Path(target).name or target])


def slug(parts: Sequence[str]) -> str:
    """A folder name from arbitrary text; a long one is cut and made unique by a hash."""
    name = re.sub(r"[^A-Za-z0-9@_.-]+", "_", "+".join(parts))
    return name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS]}-{digest(list(parts))[:8]}"


def remade_stage(run: RunDir, name: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]]) -> StageRecord:
    """A stage of a folder of evaluations: skipped if finished with equal inputs, else recomputed; its memory is freed on return."""
    if changes := run.remove_changed(name, inputs):
        log.info(f"recomputing {name}: {'; '.join(changes)}")
    record = run.stage(name, inputs, work)
    release_memory()
    return record


def _players(root: Path, wanted: Sequence[str]) -> list[EvaluatedPlayer]:
    players = Players(root)
    has_best = players.summary is not None and players.summary["best"] is not None
    names = wanted or ["start", *(["best"] if has_best else [])]
    found, chat = dict.fromkeys(map(players.find, names)), players.chat()

    def player(name: str) -> EvaluatedPlayer:
        folder = players.folder(name)
        return EvaluatedPlayer(name, folder, weights_hash(folder), recipe=players.recipe, find_chat=lambda: chat)

    return list(map(player, found))


def _model(target: str, out: Path) -> EvaluatedPlayer:
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
    return EvaluatedPlayer(MODEL, folder, weights_hash(folder), recipe=recipe, find_chat=partial(_chat_of, target, folder))


def _chat_of(target: str, folder: Path) -> Chat:
    try:
        return load_chat(folder, ModelSection(path=target))
    except UserError as error:  # its `where` is a key of a recipe
        raise UserError(error.what, where=target, remedy="give the model a chat template, or use a model that has one") from error
