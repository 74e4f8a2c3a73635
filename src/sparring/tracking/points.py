"""The points that trackers get: one per optimizer step, on one axis over all stages of a game, made from the run directory alone.

The x value of a point is the player's number of optimizer steps. The point of a player's last step also has its scores, so it is sent
when these are known; the point of its first step also has the rates of its opponent's graded replies, if there are any. Every point is
sent once and complete, and the steps of a series increase.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sparring.config import ControlSection, Recipe
from sparring.report.summary import facts_of
from sparring.rundir import DONE, PARTIAL, RunDir, digest, read_json
from sparring.stage_names import METRICS, SCORES, SFT, START, iteration_name, iteration_of, iteration_stage

GAME = "game"
NOT_NUMBERS = ("step", "stage")


class Point(NamedTuple):
    """The values that a tracker gets for one step."""

    step: int
    values: dict[str, float]


class Round(NamedTuple):
    """The stage that trains a player (None for a base model, which is not trained), and the owner of the evaluation after it."""

    train: str | None
    owner: str


class Series(NamedTuple):
    """One run in a tracker: the game, or a control, which continues from the start of the game or from its best player.

    objective: prefix of the names of metrics outside of the game's iterations, since losses of two objectives cannot be compared.
    """

    name: str
    rounds: Sequence[Round]
    begins_after: Literal["start", "best"] | None = None  # the player whose steps count before the first one
    objective: str = "sft"


def series_of(recipe: Recipe) -> list[Series]:
    """The game, with every iteration of the recipe, and then the controls."""
    played = [Round(iteration_stage(t, "train"), iteration_name(t)) for t in range(recipe.iterations)]
    game = Series(GAME, [Round(SFT if recipe.sft else None, START), *played])
    return [game, *(_series_of_control(section) for section in recipe.controls)]


def _series_of_control(section: ControlSection) -> Series:
    trained = Round(f"{section.folder}/train", section.folder)
    return Series(section.folder, [trained], section.start, "dpo" if section.kind == "dpo" else "sft")


def points(root: Path, series: Series, after: int) -> Iterator[Point]:
    """The points of the series after step `after` that the run directory has so far."""
    before = _steps_behind(root, series.begins_after)
    for train, owner in series.rounds:
        rows = [] if train is None else _lines(root, train)
        first = _scores(facts_of(root, f"{owner}/grade").get("rates", {}), "opponent")  # empty if they were not graded
        for place, line in enumerate(rows[:-1]):
            if before + place + 1 > after:
                yield Point(before + place + 1, {**_numbers(json.loads(line), series.objective), **(first if place == 0 else {})})
        scores = root / f"{owner}/evaluate" / SCORES
        if not scores.exists() or (train is not None and not (root / train / DONE).exists()):
            return
        before += len(rows)
        if before > after:
            last = _numbers(json.loads(rows[-1]), series.objective) if rows else {}
            yield Point(before, {**last, **(first if len(rows) == 1 else {}), **_scores(read_json(scores))})


def identities(root: Path, series: Series) -> dict[str, str]:
    """Training stage, begun or finished -> hash of its inputs: with other inputs its points belong to another run."""
    run = RunDir(root)
    inputs = {train: run.inputs_of(train) for train, _ in series.rounds if train is not None}
    return {name: digest(found) for name, found in inputs.items() if found is not None}


def _lines(root: Path, stage: str) -> list[str]:
    """The complete lines of a stage's metrics, finished or running."""
    for folder in (root / stage, root / (stage + PARTIAL)):
        if (folder / METRICS).exists():
            return (folder / METRICS).read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return []


def _steps_behind(root: Path, player: str | None) -> int:
    """Optimizer steps of the start of the game or of its best player, which is known only after the last iteration; 0 without player."""
    link = root / "best"
    best = iteration_of(str(link.readlink())) if player == "best" and link.is_symlink() else None
    played = [iteration_stage(t, "train") for t in range(0 if best is None else best + 1)]
    return sum(len(_lines(root, stage)) for stage in ([SFT, *played] if player else []))


def _numbers(row: dict[str, Any], objective: str) -> dict[str, float]:
    """The metrics of a step, with the name of the trained objective as prefix."""
    kind = "train" if "iteration" in row else objective
    return {f"{kind}/{name}": value for name, value in row.items() if name not in NOT_NUMBERS}


def _scores(scores: dict[str, Any], group: str = "scores") -> dict[str, float]:
    values = {f"{group}/{name}": score["value"] for name, score in scores.items()}
    errors = {f"{group}/{name}_stderr": score["stderr"] for name, score in scores.items() if score["stderr"] is not None}
    return {**values, **errors}
