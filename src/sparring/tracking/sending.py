"""The thread that sends a run's points to its trackers and records in trackers.json what was sent.

It polls the files that the stages write. If a tracker fails, one warning is logged; its points remain in the run directory and are sent
by a later try, at the end of the run, or by the next run of the same command.

Points are one per optimizer step, on one axis over all stages of a game, made from the run directory alone. The x value of a point is
the player's number of optimizer steps. The point of a player's last step also has its scores, so it is sent when these are known; the
point of its first step also has the rates of its opponent's graded replies, if there are any. Every point is sent once and complete, and
the steps of a series increase."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from sparring.config import ControlSection, Recipe
from sparring.console import log
from sparring.errors import first_line
from sparring.policy.compute import make_accelerator
from sparring.report.summary import facts_of
from sparring.rundir import PARTIAL, RunDir, digest, read_json, write_json
from sparring.stage_names import METRICS, SCORES, SFT, START, iteration_name, iteration_of, iteration_stage
from sparring.tracking.trackers import Opened, SeriesLocation, flat, open_tracker, require_trackers

T = TypeVar("T")
MEMORY = "trackers.json"
GAME = "game"
NOT_NUMBERS = ("step", "stage")
POLL_SECONDS, RETRY_SECONDS, END_SECONDS = 2.0, 60.0, 60.0


@contextlib.contextmanager
def tracked(recipe: Recipe, run: RunDir) -> Iterator[None]:
    """Send the points of the run while the context lasts, and the rest at its end. Raises UserError for a missing tracker."""
    if recipe.track is None:
        yield
        return
    require_trackers(recipe.track)
    make_accelerator()  # Accelerate's trackers need its global state, which must be created here with the options that stages use
    sender = _Sender(recipe, run)
    ended = threading.Event()
    thread = threading.Thread(target=sender.work, args=(ended,), daemon=True, name="sparring-trackers")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(END_SECONDS)
        if thread.is_alive():
            log.warning(f"track: not all points were sent within {END_SECONDS:.0f} s; the same command sends the rest")


class _Sender:
    """Sends every series to every tracker. trackers.json has per series its identity, the hashes of its training stages' inputs, the
    newest step sent to each tracker, and the trackers whose run was closed after it."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        assert recipe.track is not None
        self.recipe, self.run, self.root, self.section = recipe, run, run.root, recipe.track
        self.memory: dict[str, Any] = read_json(run.root / MEMORY) if (run.root / MEMORY).exists() else {}
        self.channels = [_Channel(self, series, kind) for series in series_of(recipe) for kind in self.section.trackers]
        self.warned: set[str] = set()

    def work(self, ended: threading.Event) -> None:
        while not ended.wait(POLL_SECONDS):
            self.send(is_last=False)
        self.send(is_last=True)

    def send(self, is_last: bool) -> None:
        for channel in self.channels:
            channel.send(is_last)

    def only_open(self, kind: str) -> None:
        """Close the tracker's other runs, because these libraries allow one run per process."""
        for channel in self.channels:
            if channel.kind == kind:
                channel.close()

    def place(self, series: Series, identity: str) -> SeriesLocation:
        name = self.section.name or self.root.resolve().name
        shown = name if series.name == GAME else f"{name}-{series.name}"
        return SeriesLocation(self.root, series.name, self.section.project, shown, identity)

    def known(self, series: Series) -> dict[str, Any]:
        """The entry of a series; with a new identity if one of its stages now has other inputs."""
        made_from = identities(self.run, series)
        known = self.memory.get(series.name)
        if known is None or any(made_from.get(name, digest) != digest for name, digest in known["made_from"].items()):
            known = {"identity": uuid.uuid4().hex[:8], "made_from": {}, "sent": {}, "closed": []}
        known["made_from"] = {**known["made_from"], **made_from}
        self.memory[series.name] = known
        return known

    def remember(self) -> None:
        write_json(self.root / MEMORY, self.memory)


class _Channel:
    """Sends one series to one tracker."""

    def __init__(self, sender: _Sender, series: Series, kind: str) -> None:
        self.sender, self.series, self.kind = sender, series, kind
        self.identity: str | None = None
        self.opened: Opened | None = None
        self.next_try = 0.0

    def send(self, is_last: bool) -> None:
        """Send new points; after the last ones, close the tracker's run."""
        if time.monotonic() < self.next_try and not is_last:
            return
        try:
            self._send()
            if is_last:
                self.close()
        except Exception as error:  # an error of a tracker, its network or a disk must not end the game
            self._failed(error)

    def close(self) -> None:
        """Close the tracker's run, so that all points arrive; a run that was closed need not be reopened to check that."""
        if self.opened is not None:
            opened, self.opened = self.opened, None
            opened.close()
            self._note_closed(True)

    def _send(self) -> None:
        known = _retried(lambda: self.sender.known(self.series))
        if known["identity"] != self.identity:
            self.close()
            self.identity = known["identity"]
        last = self.opened.last if self.opened else known["sent"].get(self.kind, -1)
        new = self._points(last)
        if self.opened is None and (new or (last >= 0 and self.kind not in known["closed"])):
            self.sender.only_open(self.kind)
            self._note_closed(False)
            self.opened = open_tracker(self.kind, self.sender.place(self.series, known["identity"]), last, flat(self.sender.recipe))
            new = self._points(self.opened.last)
        for point in new:
            assert self.opened is not None
            self.opened.log(point.step, point.values)
        if new:
            known["sent"][self.kind] = new[-1].step
            self.sender.remember()

    def _points(self, after: int) -> list[Point]:
        return _retried(lambda: list(points(self.sender.run, self.series, after)))

    def _note_closed(self, is_closed: bool) -> None:
        known = self.sender.known(self.series)
        known["closed"] = [kind for kind in known["closed"] if kind != self.kind] + ([self.kind] if is_closed else [])
        self.sender.remember()

    def _failed(self, error: Exception) -> None:
        self.next_try = time.monotonic() + RETRY_SECONDS
        opened, self.opened = self.opened, None
        with contextlib.suppress(Exception):
            if opened is not None:
                opened.close()
        if self.kind not in self.sender.warned:
            self.sender.warned.add(self.kind)
            log.warning(f"track: {self.kind} failed ({first_line(error)}); the run continues, and sending is retried later")


def _retried(read: Callable[[], T]) -> T:
    """The result of `read`, repeated if a stage in the run directory is renamed to its final name meanwhile."""
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            return read()
    return read()


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


def points(run: RunDir, series: Series, after: int) -> Iterator[Point]:
    """The points of the series after step `after` that the run directory has so far, without stages that are to be redone."""
    root, before = run.root, _steps_behind(run.root, series.begins_after)
    for train, owner in series.rounds:
        rows = [] if train is None or train in run.redone else _lines(root, train)
        first = _scores(facts_of(root, f"{owner}/grade").get("rates", {}), "opponent")  # empty if they were not graded
        for place, line in enumerate(rows[:-1]):
            if before + place + 1 > after:
                yield Point(before + place + 1, {**_numbers(json.loads(line), series.objective), **(first if place == 0 else {})})
        if run.finished(f"{owner}/evaluate") is None or (train is not None and run.finished(train) is None):
            return
        before += len(rows)
        if before > after:
            last = _numbers(json.loads(rows[-1]), series.objective) if rows else {}
            yield Point(before, {**last, **(first if len(rows) == 1 else {}), **_scores(read_json(root / f"{owner}/evaluate" / SCORES))})


def identities(run: RunDir, series: Series) -> dict[str, str]:
    """Training stage, begun or finished -> hash of its inputs: with other inputs its points belong to another run."""
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
