"""What trackers are sent: one point per optimizer step, on one axis over all stages of a game, made from the run directory alone.

The x value of a point is the player's number of optimizer steps. The scores of a player belong to the point of its last
step, which therefore waits for them, and the rates of its opponent's graded replies, if there are any, to that of its first: every
point is sent once and whole, and the points of a series rise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sparring.config import ControlSection, Recipe
from sparring.report.summary import METRICS
from sparring.rundir import DONE, PARTIAL, RunDir, digest, read_json
from sparring.stage_names import SCORES, SFT, START, control_stage, evaluate_stage, iteration_name, iteration_of, iteration_stage

GAME = "game"
NOT_NUMBERS = ("step", "stage")


@dataclass(frozen=True)
class Point:
    """The values that a tracker gets for one step."""

    step: int
    values: dict[str, float]


class Round(NamedTuple):
    """A stage that trains a player (None: it is there without), and who is evaluated after it."""

    train: str | None
    owner: str


@dataclass(frozen=True)
class Series:
    """What a tracker shows as one run: the game, or a control, which sets out from the start of the game or from its best player.

    objective: what its points are named after outside of the game's iterations: the losses of two objectives cannot be compared.
    """

    name: str
    rounds: Sequence[Round]
    begins_after: Literal["start", "best"] | None = None  # whose steps the player has behind it already
    objective: str = "sft"


def series_of(recipe: Recipe) -> list[Series]:
    """The game first; every iteration that the recipe asks for."""
    played = [Round(iteration_stage(t, "train"), iteration_name(t)) for t in range(recipe.iterations)]
    game = Series(GAME, [Round(SFT if recipe.sft else None, START), *played])
    return [game, *(_series_of_control(section) for section in recipe.controls)]


def _series_of_control(section: ControlSection) -> Series:
    trained = Round(control_stage(section.folder, "train"), section.folder)
    return Series(section.folder, [trained], section.start, "dpo" if section.kind == "dpo" else "sft")


def points(root: Path, series: Series, after: int) -> Iterator[Point]:
    """Those beyond step `after`, as far as the run has come."""
    before = _steps_behind(root, series.begins_after)
    for train, owner in series.rounds:
        rows = [] if train is None else _lines(root, train)
        first = _rates(root, owner)
        for place, line in enumerate(rows[:-1]):
            if before + place + 1 > after:
                yield Point(before + place + 1, {**_numbers(json.loads(line), series.objective), **(first if place == 0 else {})})
        scores = root / evaluate_stage(owner) / SCORES
        if not scores.exists() or (train is not None and not (root / train / DONE).exists()):
            return
        before += len(rows)
        if before > after:
            last = _numbers(json.loads(rows[-1]), series.objective) if rows else {}
            yield Point(before, {**last, **(first if len(rows) == 1 else {}), **_scores(read_json(scores))})


def identities(root: Path, series: Series) -> dict[str, str]:
    """Training stage, begun or finished -> what it is made from: with other inputs its points are another run's."""
    run = RunDir(root)
    inputs = {train: run.inputs_of(train) for train, _ in series.rounds if train is not None}
    return {name: digest(found) for name, found in inputs.items() if found is not None}


def _lines(root: Path, stage: str) -> list[str]:
    """The whole lines of a stage's metrics, finished or in work."""
    for folder in (root / stage, root / (stage + PARTIAL)):
        if (folder / METRICS).exists():
            return (folder / METRICS).read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    return []


def _steps_behind(root: Path, player: str | None) -> int:
    """Optimizer steps that made the start of the game, or its best player, which is known when the iterations are over."""
    link = root / "best"
    best = iteration_of(str(link.readlink())) if player == "best" and link.is_symlink() else None
    played = [iteration_stage(t, "train") for t in range(0 if best is None else best + 1)]
    return sum(len(_lines(root, stage)) for stage in ([SFT, *played] if player else []))


def _numbers(row: dict[str, Any], objective: str) -> dict[str, float]:
    """Those of a step, named after the objective that was trained."""
    kind = "train" if "iteration" in row else objective
    return {f"{kind}/{name}": value for name, value in row.items() if name not in NOT_NUMBERS}


def _rates(root: Path, owner: str) -> dict[str, float]:
    """Of the replies of an iteration's opponent, where they were graded: before its first step."""
    done = root / owner / "grade" / DONE
    return _scores(read_json(done)["facts"].get("rates", {}), "opponent") if done.exists() else {}


def _scores(scores: dict[str, Any], group: str = "scores") -> dict[str, float]:
    values = {f"{group}/{name}": score["value"] for name, score in scores.items()}
    errors = {f"{group}/{name}_stderr": score["stderr"] for name, score in scores.items() if score["stderr"] is not None}
    return {**values, **errors}
