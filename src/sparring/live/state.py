"""The state of a run, read from its directory: the process that runs it, its stage, the newest numbers, the command to resume."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeGuard

from sparring.config import Recipe
from sparring.config.load import apply_override
from sparring.data.tables import items_done
from sparring.errors import UserError
from sparring.locks import Holder, holder
from sparring.progress import PROGRESS, STALE_SECONDS, Snapshot, read_progress
from sparring.report.summary import OF_SUMMARY, SUMMARY
from sparring.rundir import DONE, MANIFEST, PARTIAL, RECIPE, RunDir, read_object
from sparring.stage_names import METRICS, SCORES, START, iteration_name, recipe_of_game, stages_of_game, title_of

TAIL_BYTES = 2**16


class ProcessState(Enum):
    """Whether a process works on the run, and how its last attempt ended if none does."""

    RUNNING = "running"
    SILENT = "silent"  # a process of another machine: its lock is not visible here, and it has written nothing for a while
    KILLED = "killed"
    STOPPED = "stopped"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunState:
    """`stage`: the one in progress or the next one; None if all of `stages` are finished. `silent_seconds`: since the run's process last
    wrote its progress file. `last_finished`: when the newest stage finished; an attempt that finds nothing to do ends later."""

    root: Path
    recipe: Recipe
    holder: Holder | None
    silent_seconds: float | None
    stage: str | None
    finished: int
    stages: list[str]
    last_finished: str | None
    now: Snapshot | None
    command: str
    summary: dict[str, Any] | None
    attempts: list[dict[str, Any]]

    @property
    def process(self) -> ProcessState:
        """Derived from the lock, the age of the progress file, and the summary."""
        if self.holder is not None and self.holder.alive is not False:
            is_stale = self.silent_seconds is None or self.silent_seconds > STALE_SECONDS
            return ProcessState.SILENT if self.holder.alive is None and is_stale else ProcessState.RUNNING
        if self.stage is None and self.summary is not None and self.summary["stop_reason"] is not None:
            return ProcessState.FINISHED
        return ProcessState.STOPPED if self.holder is None else ProcessState.KILLED


def read_state(root: Path) -> RunState:
    """The state of the run in `root`. Raises UserError if that is not a run directory."""
    recipe = recipe_of_game(root)
    run = RunDir(root)
    summary = _object_or_none(root / SUMMARY, *OF_SUMMARY)
    names = stages_of_game(root, recipe)
    held, missing = holder(root), [name for name in names if not run.finished(name)]
    # an attempt that was refused may have left a part of a stage that was to replace a finished one
    in_progress = missing if held is None else names
    begun = next((name for name in in_progress if (root / (name + PARTIAL)).exists()), None)
    ended = summary is not None and summary["stop_reason"] is not None
    written = read_progress(root)
    return RunState(
        root=root,
        recipe=recipe,
        holder=held,
        silent_seconds=_silent_seconds(root),
        stage=begun or (None if ended else next(iter(missing), None)),
        finished=len(names) - len(missing),
        stages=names,
        last_finished=_last_finished(root, names),
        now=written.get("now"),
        command=_command(root, recipe, written),
        summary=summary,
        attempts=(_object_or_none(root / MANIFEST, "attempts") or {"attempts": []})["attempts"],
    )


def last_step(state: RunState) -> dict[str, Any] | None:
    """The newest line of metrics."""
    names = [f"{name}{ending}" for name in reversed(state.stages) for ending in (PARTIAL, "")]
    rows = (_last_line(state.root / name / METRICS) for name in names)
    return next((row for row in rows if row is not None), None)


def scores(state: RunState) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, scores) of every evaluated player, in the order of the game."""
    titles = {owner: title_of(owner) for owner in (START, *_iterations(state.root))}
    titles |= {section.folder: section.title for section in state.recipe.controls}
    for owner, title in titles.items():
        found = _object_or_none(state.root / f"{owner}/evaluate" / SCORES)
        if found is not None:
            yield title, found


def rates(state: RunState) -> tuple[str, dict[str, Any], int] | None:
    """(title, rates, failures of the checker) of the newest iteration with graded replies, for verified and majority targets."""
    for owner in reversed(_iterations(state.root)) if state.recipe.target.uses_grades else ():
        done = _object_or_none(state.root / owner / "grade" / DONE, "facts")
        if done is not None:
            return title_of(owner), done["facts"].get("rates", {}), done["facts"].get("failures", 0)
    return None


def _iterations(root: Path) -> list[str]:
    return [iteration_name(t) for t in range(len(list((root / "iterations").glob("[0-9]*"))))]


def saved_progress(state: RunState) -> str | None:
    """The part of the stage in progress that resuming does not recompute, in words; None if there is none."""
    if state.stage is None:
        return None
    try:
        return _kept(state.stage, state.root / (state.stage + PARTIAL))
    except FileNotFoundError:  # the run renamed or deleted something while we looked
        return None


def _kept(stage: str, folder: Path) -> str | None:
    steps = [read_object(file, "step")["step"] for file in folder.glob("checkpoint-*/step.json")]
    if steps:
        return f"its checkpoint after {max(steps)} steps"
    items = sum(items_done(place) for place in (folder, folder / "replies", folder / "cool", folder / "greedy"))
    unit = {"score": "batches", "score-start": "batches", "grade": "prompts"}.get(stage.rpartition("/")[2], "replies")
    return f"its first {items} {unit}" if items else None


def _last_finished(root: Path, stages: list[str]) -> str | None:
    done = (_object_or_none(root / name / DONE, "finished") for name in stages)
    return max((found["finished"] for found in done if found), default=None)


def _silent_seconds(root: Path) -> float | None:
    """Seconds since the file was written, by this machine's clock and the file's."""
    try:
        return max(0.0, time.time() - (root / PROGRESS).stat().st_mtime)
    except OSError:
        return None


def _command(root: Path, recipe: Recipe, written: dict[str, Any]) -> str:
    typed, folder = written.get("command"), written.get("folder")
    if _is_ours(typed) and isinstance(folder, str | None):
        return typed if folder is None or folder == os.getcwd() else f"cd {shlex.quote(folder)} && {typed}"
    own = Path(recipe.run_dir)
    elsewhere = [] if own.exists() and own.samefile(root) else [f"run_dir={root}"]
    return shlex.join(["sparring", "run", str(root / RECIPE), *elsewhere])


def _is_ours(typed: Any) -> TypeGuard[str]:
    """Whether the command is safe to paste: the file comes with the run directory, and a shell would execute anything in it.

    It must have the form that `sparring run` writes: quoted argument by argument, with a recipe file and overrides that parse.
    """
    if not isinstance(typed, str):
        return False
    try:
        arguments = shlex.split(typed)
        for override in arguments[3:]:
            apply_override({}, override)
    except (ValueError, UserError):
        return False
    is_run = arguments[:2] == ["sparring", "run"] and len(arguments) > 2 and not arguments[2].startswith("-")
    return is_run and shlex.join(arguments) == typed and typed.isprintable()


def _last_line(file: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError), open(file, "rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL_BYTES))
        whole, _, _ = opened.read().rpartition(b"\n")  # the run may be writing the next line
        if whole:
            with contextlib.suppress(ValueError, RecursionError):  # truncated or changed by hand: the run reports it when it resumes
                found = json.loads(whole.rpartition(b"\n")[2])
                return found if isinstance(found, dict) else None
    return None


def _object_or_none(file: Path, *keys: str) -> dict[str, Any] | None:
    """As `read_object`; None if the file does not exist, since the run may create, replace or delete it meanwhile."""
    try:
        return read_object(file, *keys)
    except OSError:
        return None
