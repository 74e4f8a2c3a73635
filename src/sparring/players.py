"""The players of a run: their names, the location of their weights, their chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import ModelSection, Recipe
from sparring.data.chat import Chat, load_template
from sparring.errors import UserError
from sparring.policy.adapters import base_of, is_adapter
from sparring.policy.load import find_model, load_tokenizer, model_facts, weights_hash
from sparring.report.summary import OF_SUMMARY, SUMMARY
from sparring.rundir import RunDir, read_object
from sparring.stage_names import START, control_stage, iteration_stage, measure_stage, player_name, recipe_of_game, title_of_player

BASE, SFT = "base", "sft"


@dataclass(frozen=True)
class Player:
    """A player by name: "start", an iteration's number or a control's folder.

    `stage` holds its model; None is the model that the recipe names where that is a folder of its own, which a run does not copy.
    """

    name: str
    stage: str | None

    @property
    def title(self) -> str:
        """The name for people, as in tables and logs."""
        return title_of_player(self.name)

    @property
    def is_trained(self) -> bool:
        """Whether training saved it: with the chat template and the ends of turn of the run."""
        return self.stage not in (None, BASE)


class Players:
    """All players of a run so far. The summary says which iterations count, if there is one; else the folders on disk."""

    def __init__(self, root: Path) -> None:
        self.recipe: Recipe = recipe_of_game(root)
        self.run = RunDir(root)
        self.summary: dict[str, Any] | None = read_object(root / SUMMARY, *OF_SUMMARY) if (root / SUMMARY).exists() else None
        self.all = [player for player in self._possible() if player.stage is None or self.run.finished(player.stage)]

    @property
    def unanswered(self) -> int:
        """Prompts without a human reply that the game is played on."""
        data = self.run.finished("data")
        return 0 if data is None else data.facts.get("prompt_counts", {}).get("prompts", 0)

    def find(self, name: str) -> Player:
        """A player by its name or as "best"; numbers may have leading zeros."""
        wanted = self._best() if name == "best" else name
        wanted = player_name(wanted)
        found = next((player for player in self.all if player.name == wanted), None)
        if found is None:
            there = ", ".join(player.name for player in self.all) or "none yet"
            raise UserError(
                f"this run has no player {wanted!r}", where=str(self.run.root), remedy=f"it has {there}{self._ended_early() or ''}"
            )
        return found

    def folder(self, player: Player) -> Path:
        """Its model folder. Raises UserError when it is not what the run made or used."""
        if player.stage is not None:
            folder = self.run.verified(player.stage).path / "model"
            if is_adapter(folder):
                self._require_base(folder)
            return folder
        source = find_model(self.recipe.model, self.recipe.seed)
        played = self.run.inputs_of(measure_stage(START)) or {}
        if source.folder is None or source.fingerprint != played.get("model"):
            raise UserError(
                "this is no longer the model that the run started from (its hash differs)",
                where=f"model.path ({source.name})",
                remedy="put it back, or run the recipe again in another run_dir",
            )
        return source.folder

    def _require_base(self, adapter: Path) -> None:
        """An adapter is the player over the start of its game alone."""
        start = self._start()[0]
        if start.stage is not None:
            self.run.verified(start.stage)
        elif weights_hash(base_of(adapter)) != (self.run.inputs_of(measure_stage(START)) or {}).get("model"):
            raise UserError(
                "the base model of this player is no longer the one that the run started from (its hash differs)",
                where=str(base_of(adapter)),
                remedy="put it back, or run the recipe again in another run_dir",
            )

    def chat(self) -> Chat:
        """The run's chat, which is the same for all players, from one that was trained if there is one: they carry it with them."""
        carrier = next((player for player in self.all if player.is_trained), self.all[0])
        folder = self.folder(carrier)
        # A trained player's tokenizer carries the template that it was trained under, with the values of its variables.
        model = ModelSection(path=self.recipe.model.path) if carrier.is_trained else self.recipe.model
        own = load_template(model.chat_template) if model.chat_template else None
        chat = Chat(load_tokenizer(folder), own, model_facts(folder)[1], model.chat_template_kwargs)
        chat.tokenizer.chat_template = chat.template
        return chat

    def _possible(self) -> list[Player]:
        if self.summary is None:
            iterations = len(list((self.run.root / "iterations").glob("[0-9]*")))
            controls = [section.folder for section in self.recipe.controls]
        else:
            iterations, controls = len(self.summary["iterations"]), [entry["stage"] for entry in self.summary["controls"]]
        played = [Player(str(t), iteration_stage(t, "train")) for t in range(iterations)]
        return [*self._start(), *played, *(Player(name, control_stage(name, "train")) for name in controls)]

    def _start(self) -> list[Player]:
        if self.recipe.sft is not None:
            return [Player(START, SFT)]
        if self.run.finished(BASE):
            return [Player(START, BASE)]
        return [Player(START, None)] if self.run.finished(measure_stage(START)) else []

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
        """Where the game is over without an iteration, a clause that says so."""
        if self.summary is None or self.summary["iterations"] or self.summary["stop_reason"] is None:
            return None
        return f"; the game ended without an iteration - {self.summary['stop_reason']}"
