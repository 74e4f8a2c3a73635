"""The position of a run in its game: its stage, and the expected time of the remaining stages from the finished ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sparring.config import Recipe
from sparring.progress import GameProgress
from sparring.rundir import RunDir
from sparring.stage_names import stages_of_game

COMPUTED = ("generate", "score", "train")  # stages of an iteration whose cost a control matches


def place_in(root: Path, recipe: Recipe) -> Callable[[str], GameProgress | None]:
    """A function from a stage's name to its place in the run's game, or to None if the game has no such stage."""

    def place(stage: str) -> GameProgress | None:
        names = stages_of_game(root, recipe)
        if stage not in names:
            return None
        number = names.index(stage) + 1
        rest = _seconds(RunDir(root), recipe, names[:number], names[number:])
        own = _seconds(RunDir(root), recipe, names[:number], [stage])
        return GameProgress(number=number, stages=len(names), iterations=recipe.iterations, stage_seconds=own, later_seconds=rest)

    return place


def _seconds(run: RunDir, recipe: Recipe, before: Sequence[str], names: Sequence[str]) -> float | None:
    """The expected time of stages, each that of the last stage of its kind; None if one has no earlier stage of its kind.

    A control's training costs the operations of all iterations: about what sampling, scoring and training took of them.
    """
    took = {"pairs": 0.0}  # it only reads a file
    for name in before:
        if (record := run.finished(name)) is not None:
            took[_part(name)] = record.facts["wall_seconds"]
    if "score" in took:
        took.setdefault("score-start", took["score"])
    controls = {section.folder for section in recipe.controls}
    matched = sum(took.get(part, 0.0) for part in COMPUTED) * recipe.iterations
    seconds = [matched if _part(name) == "train" and name.partition("/")[0] in controls else took.get(_part(name)) for name in names]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None


def _part(name: str) -> str:
    return name.rpartition("/")[2]
