"""`sparring status` and `sparring watch`: the state of a run, read by another process or machine.

The run directory is only read, and may be mounted read-only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import starmap
from pathlib import Path
from typing import Any, TypeGuard

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import Recipe
from sparring.config.load import apply_override
from sparring.console import RUN_LOG, animates, counted, fitting, printable
from sparring.data.tables import items_done
from sparring.errors import UserError
from sparring.locks import Holder, holder
from sparring.progress import PLAIN_LINE_SECONDS, PROGRESS, STALE_SECONDS, Snapshot, in_one_line, live_line, read_progress
from sparring.report.outcome import metric_words, verdict
from sparring.report.summary import OF_SUMMARY, SUMMARY
from sparring.report.tables import Column, TableRow, answer_words, models_table, print_table, samples_of, score_text, with_error
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


MOST_SCORES = 8


def print_status(state: RunState, out: Console) -> None:
    """Print the state of a run, its newest scores, and the command that resumes it unless it is running or finished."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(state):
        table.add_row(name, Text(fitting(value, out)))
    out.print(table)
    if shown := list(scores(state))[-MOST_SCORES:]:
        _print_scores(shown, state.recipe.metric, state.process is ProcessState.FINISHED, out)
    if state.process not in (ProcessState.FINISHED, ProcessState.RUNNING):
        out.print(Text(resume_command(state)), soft_wrap=True)


def resume_command(state: RunState) -> str:
    """The command that resumes the run, with a condition if its process may still be running."""
    condition = "" if state.process is not ProcessState.SILENT else "if its process no longer runs, "
    return f"{condition}resume with:\n  {printable(state.command)}"


def how_it_is(state: RunState) -> str:
    """Whether a process works on the run, since when, and how the last attempt ended."""
    who, last = state.holder, state.attempts[-1] if state.attempts else {}
    written = f"last progress {_ago(state.silent_seconds)}" if state.silent_seconds is not None else "no progress so far"
    match state.process:
        case ProcessState.RUNNING if who is not None:
            note = f"; {written}" if (state.silent_seconds or 0) > STALE_SECONDS else ""
            return f"running: {who.name}, since {_since(who.since)}{note}"
        case ProcessState.SILENT if who is not None:
            return f"{who.name}, since {_since(who.since)}; {written}: it was killed, or its machine or disk cannot be reached"
        case ProcessState.KILLED if who is not None:
            return f"not running: {who.name}, since {_since(who.since)}, was killed"
        case ProcessState.FINISHED:
            return f"finished {_since(state.last_finished)}" if state.last_finished else "finished"
    ended = f" {_since(last['ended'])}" if last.get("ended") else ""
    return f"not running: the last attempt of {len(state.attempts)} ended{ended}: {last.get('outcome', 'its outcome is unknown')}"


def _lines(state: RunState) -> Iterator[tuple[str, str]]:
    yield "run", str(state.root)
    yield "state", how_it_is(state)
    yield "objective", state.recipe.objective.name
    if state.process is ProcessState.FINISHED and state.summary is not None:
        yield "outcome", verdict(state.summary, str(state.root))
        yield from _graded(state)
        return
    if state.stage is not None:
        yield "stage", f"{state.stage} ({state.finished} of {len(state.stages)} finished)"
    if state.process is ProcessState.RUNNING and state.now is not None:
        yield "progress", in_one_line(state.now)
        if sample := state.now["sample"]:
            yield "a reply", " -> ".join(sample)
    yield from _graded(state)
    if (row := last_step(state)) is not None:
        yield "last step", _step(row)
    if state.process is not ProcessState.RUNNING and state.stage is not None:
        rest = saved_progress(state)
        yield "resumes", f"with {state.stage}" + (f", from {rest}" if rest else "")


def _graded(state: RunState) -> Iterator[tuple[str, str]]:
    """The grades of the newest opponent's replies, for verified and majority targets."""
    if found := rates(state):
        values = ", ".join(f"{name.replace('_', ' ')} {score_text(rate, 3)}" for name, rate in found[1].items())
        failed = f", {counted(found[2], 'checker failure')}" if found[2] else ""
        yield "graded", f"{found[0]}: {values or 'no reply has a score or an answer'}{failed}"


def _step(row: dict[str, Any]) -> str:
    where = f"iteration {row['iteration']}" if "iteration" in row else row["stage"]
    numbers = (f"{name} {row[name]:.4g}" for name in ("loss", "margin", "accuracy") if name in row)
    return f"{where}, step {row['step'] + 1}: {', '.join(numbers)}"


def _print_scores(shown: list[tuple[str, dict[str, Any]]], metric: str, is_over: bool, out: Console) -> None:
    first = shown[0][1]
    names = {metric: metric_words(metric).replace("_", " ")}
    if samples_of(first) > 1:
        names |= {name: words for name, words in answer_words(first).items() if name != "exact_match_greedy"}
        names |= {"vote_share": "vote share"} if "vote_share" in first else {}
    names |= {"duel_margin": "duel margin", "duel_accuracy": "duel accuracy"}
    columns = [Column(header, with_error(name, 3)) for name, header in names.items()]
    print_table(models_table(f"Scores{'' if is_over else ' so far'} (± standard error)", columns, list(starmap(TableRow, shown))), out)


def _since(moment: str) -> str:
    """`2026-11-22 11:24 UTC (5 minutes ago)`."""
    try:
        then = datetime.fromisoformat(moment)
        return f"{then:%Y-%m-%d %H:%M} UTC ({_ago((datetime.now(UTC) - then).total_seconds())})"
    except (ValueError, TypeError):  # not what we write
        return moment


def _ago(seconds: float) -> str:
    return f"{timedelta(seconds=max(0, round(seconds)))} ago"


POLL_SECONDS = 0.5
# of run.log: date, time, level, message
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d+ ([A-Z]+) (.*)")


def watch(root: Path, out: Console) -> bool:
    """Show the run in `root` until no process works on it; returns whether the game is then finished."""
    state = read_state(root)
    log, pulse = LogTail(root / RUN_LOG), Pulse(root)
    print_status(state, out)
    if state.process is ProcessState.RUNNING:
        shown = _Shown(root, out)
        with shown.live or contextlib.nullcontext():
            while pulse.beats():
                shown.update(log.new_lines())
                time.sleep(POLL_SECONDS)
            shown.update(log.new_lines())
        state = read_state(root)
        _print_end(state, out)
    return state.process is ProcessState.FINISHED


class LogTail:
    """The lines that are added to a run's log from now on."""

    def __init__(self, file: Path) -> None:
        self._file, self._place = file, file.stat().st_size if file.exists() else 0

    def new_lines(self) -> Iterator[str]:
        """The new lines, without those that are for the file only, such as tracebacks."""
        with contextlib.suppress(OSError), open(self._file, "rb") as file:
            file.seek(self._place)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._place += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                found = LOG_LINE.fullmatch(line)
                if found is not None and found[2] != "DEBUG":
                    yield f"{found[1]} {printable(found[3])}"


class Pulse:
    """Whether the run's process is alive. If its lock is not visible here, its writes decide, timed by this machine's clock."""

    def __init__(self, root: Path) -> None:
        self._root, self._since = root, time.monotonic()
        self._seen = self._written()

    def beats(self) -> bool:
        """Whether the process is alive, as far as this machine can see now."""
        now, written = time.monotonic(), self._written()
        if written != self._seen:
            self._seen, self._since = written, now
        who = holder(self._root)
        if who is None or who.alive is False:
            return False
        return who.alive is True or now - self._since <= STALE_SECONDS

    def _written(self) -> tuple[int, ...]:
        files = [file for name in (PROGRESS, RUN_LOG) if (file := self._root / name).exists()]
        return tuple(file.stat().st_mtime_ns for file in files)


class _Shown:
    """Prints the new log lines, and the progress: updated in place on a terminal, as a separate line from time to time elsewhere."""

    def __init__(self, root: Path, out: Console) -> None:
        self._root, self._out = root, out
        self._now: Snapshot | None = None
        self.live = live_line(lambda: self._now, out) if animates(out) else None
        self._last_line = time.monotonic()

    def update(self, lines: Iterator[str]) -> None:
        self._now = read_progress(self._root).get("now")
        for line in lines:
            self._print(line)
        if self.live is None and self._now is not None and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._print(in_one_line(self._now))

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._out.print(Text(line), soft_wrap=not self._out.is_terminal)  # wrapped at words on a terminal only


def _print_end(state: RunState, out: Console) -> None:
    if state.process is ProcessState.FINISHED and state.summary is not None:
        out.print(Text(verdict(state.summary, str(state.root))))
    elif state.process is ProcessState.RUNNING:  # another process has already resumed it
        out.print(Text("another process has resumed the run: call sparring watch again"))
    else:
        out.print(Text(how_it_is(state)))
        out.print(Text(resume_command(state)), soft_wrap=True)
