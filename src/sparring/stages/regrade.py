"""A changed checker: all replies that were graded before are graded by it before anything else is recomputed."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

from sparring.checkers.make import open_checker
from sparring.console import log
from sparring.progress import at_stage
from sparring.rundir import StageRecord
from sparring.stage_names import iteration_stage
from sparring.stages.context import RunContext
from sparring.stages.generate import window_at
from sparring.stages.grade import grading
from sparring.stages.run_stage import StageWork, fingerprint
from sparring.stages.train import require_same_winners


def regrade(context: RunContext) -> None:
    """Replace the grades of the finished iterations if the checker has changed: all of them, or none.

    Raises UserError, and keeps all former grades, if the checker fails on too many replies, or if an iteration whose training was begun
    would have other winners. What was graded until then is not graded again by a run that redoes this training.
    """
    recipe = context.recipe
    iterations = list(takewhile(lambda t: _is_graded(context, t), range(recipe.iterations)))
    if not recipe.target.uses_grades or not iterations:
        return
    folders: dict[int, Path] = {}
    facts: dict[int, dict[str, Any]] = {}
    with open_checker(recipe, recipe.target.checker) as checker:
        works = {t: grading(context, t, checker) for t in iterations}
        for t, work in works.items():
            begun = _begin(context, t, work)
            if begun is not None:
                folders[t] = begun
                with at_stage(iteration_stage(t, "grade")):
                    facts[t] = work(begun)
            if folders:
                require_same_winners(context, window_at(context, t, folders), t)
        for t in folders:
            context.run.commit(iteration_stage(t, "grade"), fingerprint(works[t]), facts[t])


def _is_graded(context: RunContext, t: int) -> bool:
    return all(context.run.finished(iteration_stage(t, part)) for part in ("generate", "grade"))


def _begin(context: RunContext, t: int, work: StageWork) -> Path | None:
    """The folder for new grades of iteration t; None if its grades are of this checker."""
    name, inputs = iteration_stage(t, "grade"), fingerprint(work)
    changes = context.run.changes(name, inputs)
    if not changes:
        return None
    log.info(f"recomputing {name}: {'; '.join(changes)}")
    begun = context.run.begin(name, inputs, replaces=True)
    return None if isinstance(begun, StageRecord) else begun
