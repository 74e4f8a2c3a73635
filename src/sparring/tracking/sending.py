"""The thread that sends a run's points to its trackers and records in trackers.json what was sent.

It polls the files that the stages write. If a tracker fails, one warning is logged; its points remain in the run directory and are sent
by a later try, at the end of the run, or by the next run of the same command.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sparring.config import Recipe
from sparring.console import log
from sparring.errors import first_line
from sparring.policy.compute import make_accelerator
from sparring.rundir import read_json, write_json
from sparring.tracking.points import GAME, Point, Series, identities, points, series_of
from sparring.tracking.trackers import Opened, SeriesLocation, flat, open_tracker, require_trackers

T = TypeVar("T")
MEMORY = "trackers.json"
POLL_SECONDS, RETRY_SECONDS, END_SECONDS = 2.0, 60.0, 60.0


@contextlib.contextmanager
def tracked(recipe: Recipe, root: Path) -> Iterator[None]:
    """Send the points of the run in `root` while the context lasts, and the rest at its end. Raises UserError for a missing tracker."""
    if recipe.track is None:
        yield
        return
    require_trackers(recipe.track)
    make_accelerator()  # Accelerate's trackers need its global state, which must be created here with the options that stages use
    sender = _Sender(recipe, root)
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

    def __init__(self, recipe: Recipe, root: Path) -> None:
        assert recipe.track is not None
        self.recipe, self.root, self.section = recipe, root, recipe.track
        self.memory: dict[str, Any] = read_json(root / MEMORY) if (root / MEMORY).exists() else {}
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
        made_from = identities(self.root, series)
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
        return _retried(lambda: list(points(self.sender.root, self.series, after)))

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
