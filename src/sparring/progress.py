"""How far the work is: one line that changes in place on a terminal, plain lines elsewhere, and progress.json for other processes.

The file is for display only: resuming does not read it. Its modification time shows that the process is alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from sparring.console import animates, console, is_quiet, log, printable, quoted

PROGRESS = "progress.json"
PLAIN_LINE_SECONDS, SAMPLE_SECONDS = 15.0, 60.0
REFRESH_SECONDS, BEAT_SECONDS = 1.0, 5.0
# A process that is alive has written by then, even while ranks start and on a slow network drive
STALE_SECONDS = 60.0
BAR_WIDTH = 40


class GameProgress(TypedDict):
    """The place of a stage in its game, from 1; and the expected time of it and all later ones, None while there is no estimate."""

    number: int
    stages: int
    iterations: int
    stage_seconds: float | None
    later_seconds: float | None


class Snapshot(TypedDict):
    """One phase at one moment. `numbers`: the newest ones; `rate` per second, 0 where nothing is done yet; memory in bytes.
    `game`: None where the work is no part of one."""

    phase: str
    unit: str
    done: int
    total: int
    rate: float
    numbers: dict[str, float]
    memory: tuple[str, int]
    sample: tuple[str, str] | None
    game: GameProgress | None


FindGameProgress = Callable[[str], GameProgress | None]


# ---------------------------------------------------------------------------------------------- in one line


def in_one_line(now: Snapshot, width: int | None = None) -> str:
    """Place in the game, phase, done/total, time left of it and of the game, numbers, rate, memory. A part that no longer fits into
    `width` characters is left out."""
    done, total, rate = now["done"], now["total"], now["rate"]
    place, size = now["memory"]
    game, left = now.get("game"), []
    if rate > 0 and done < total:
        left.append(f"{_clock((total - done) / rate)} left")
    if (of_game := _game_seconds(now)) is not None:
        left.append(f"{_clock(of_game)} of the game")
    numbers = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in now["numbers"].items()]
    parts = [f"{done}/{total} {now['unit']}", *left, *numbers, *([f"{rate:.3g}/s"] if rate > 0 else []), f"{place} {size / 1e9:.1f} GB"]
    place_in_game = f"[{game['number']}/{game['stages']}] " if game else ""
    line = f"{place_in_game}{_phase(now['phase'], game)} {parts[0]}"
    for part in parts[1:]:
        if width is None or len(line) + 2 + len(part) <= width:
            line += f"  {part}"
    return line if width is None else line[:width]


def _phase(phase: str, game: GameProgress | None) -> str:
    """`iteration 1 of 3: training`."""
    found = re.match(r"iteration \d+(?=:)", phase)
    of = f" of {game['iterations']}" if found and game else ""
    return printable(f"{found[0]}{of}{phase[found.end() :]}" if found else phase)


def _game_seconds(now: Snapshot) -> float | None:
    """Time left of the whole game: of this phase by its own rate, of the stage by the last stage of its kind until there is a rate."""
    game = now.get("game")
    if not game or game["later_seconds"] is None:
        return None
    of_stage = (now["total"] - now["done"]) / now["rate"] if now["rate"] > 0 else game["stage_seconds"]
    return None if of_stage is None else game["later_seconds"] + of_stage


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 1e9))))


def live_line(newest: Callable[[], Snapshot | None], terminal: Console) -> Live:
    """Shows the line of `newest()` on `terminal` until it is stopped, and then removes it."""
    return Live(get_renderable=lambda: _with_bar(newest(), terminal), console=terminal, refresh_per_second=4, transient=True)


def _with_bar(now: Snapshot | None, terminal: Console) -> RenderableType:
    """The line, with a bar if there is room; nothing while there is none."""
    if now is None:
        return Group()
    text = Text(in_one_line(now, terminal.width - 1), no_wrap=True, overflow="crop", end="")
    width = min(BAR_WIDTH, terminal.width - 3 - len(text))
    if width >= 8 and now["total"]:
        full = round(width * now["done"] / now["total"])
        done, left = ("#", "-") if terminal.options.ascii_only else ("\u2501", "\u2500")
        text.append("  ").append(done * full, style="green").append(left * (width - full), style="dim")
    return text


# ---------------------------------------------------------------------------------------------- one phase


class PhaseProgress:
    """Progress of one phase; `advance` may carry the newest numbers, `sample` shows a reply now and then."""

    def __init__(self, phase: str, total: int, unit: str, done: int) -> None:
        self.phase, self.total, self.unit, self.done, self._first = phase, total, unit, done, done
        self._numbers: dict[str, float] = {}
        self._sample: tuple[str, str] | None = None
        self._game = _now.place(_now.stage) if _now.place and _now.stage else None
        self._memory = memory()
        self._start = self._last_line = self._measured = time.monotonic()
        self._next_sample = 0.0
        self._live: Live | None = None
        if animates(console) and not console.quiet and not is_quiet():
            self._live = live_line(self.snapshot, console)
            self._live.start()

    def __str__(self) -> str:
        """`iterations/000/train 3/6 steps`: tests stop a stage by it, in `advance`."""
        return f"{_now.stage} {self.done}/{self.total} {self.unit}"

    def advance(self, count: int = 1, **numbers: float) -> None:
        """Count finished units; `numbers` replace those shown. Logs a line, at most one every PLAIN_LINE_SECONDS."""
        self.done += count
        self._numbers = numbers
        now = time.monotonic()
        if now - self._measured >= REFRESH_SECONDS:
            self._measured, self._memory = now, memory()
        if now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            # next to a live line, this goes only to the log file
            (log.info if self._live is None else log.debug)(in_one_line(self.snapshot()))

    @property
    def wants_sample(self) -> bool:
        """Whether it is time for another reply to be shown: the first at once, then one a minute."""
        return time.monotonic() >= self._next_sample

    def sample(self, prompt: str, reply: str) -> None:
        """Show a prompt with a reply to it, both shortened."""
        self._next_sample = time.monotonic() + SAMPLE_SECONDS
        self._sample = quoted(prompt), quoted(reply)
        log.info(f"{self.phase}: {self._sample[0]} -> {self._sample[1]}")

    def snapshot(self) -> Snapshot:
        """The state now; `rate` is units per second since this attempt began."""
        seconds = time.monotonic() - self._start
        return Snapshot(
            phase=self.phase,
            unit=self.unit,
            done=self.done,
            total=self.total,
            rate=(self.done - self._first) / seconds if seconds > 0 else 0.0,
            numbers=self._numbers,
            memory=self._memory,
            sample=self._sample,
            game=self._game,
        )

    def close(self) -> None:
        """Stop the progress line."""
        if self._live is not None:
            self._live.stop()


@contextlib.contextmanager
def progress(phase: str, total: int, unit: str, done: int = 0) -> Iterator[PhaseProgress]:
    """Show the progress of one phase; `done` is what an earlier attempt had finished."""
    _now.phase = shown = PhaseProgress(phase, total, unit, done)
    try:
        yield shown
    finally:
        _now.phase = None
        shown.close()


def memory() -> tuple[str, int]:
    """(where, bytes) that this process holds: on its GPU where it computes on one, else in main memory."""
    torch = sys.modules.get("torch")  # a process that only shows progress should not load it
    if torch is not None and torch.cuda.is_initialized():
        return "GPU", torch.cuda.memory_reserved()
    return "RAM", psutil.Process().memory_info().rss


# ---------------------------------------------------------------------------------------------- the file


class _Now:
    """What this process works on: one thing at a time."""

    stage: str | None = None
    phase: PhaseProgress | None = None
    is_in_ranks = False
    place: FindGameProgress | None = None


_now = _Now()


@contextlib.contextmanager
def at_stage(name: str, in_ranks: bool = False) -> Iterator[None]:
    """Name the stage in progress while the context lasts; `in_ranks`: other processes compute it and write the file, this one only updates
    the file's time."""
    before = _now.stage, _now.is_in_ranks
    _now.stage, _now.is_in_ranks = name, in_ranks
    try:
        yield
    finally:
        _now.stage, _now.is_in_ranks = before


@contextlib.contextmanager
def written_to(root: Path, command: str | None = None, place: FindGameProgress | None = None) -> Iterator[None]:
    """Keep progress.json in the run directory fresh while the context lasts.

    command: the command that resumes the run in this folder, if known; place: the position of a stage in the game.
    """
    _now.place = place
    typed = {"command": command, "folder": os.getcwd() if command else None}
    ended = threading.Event()
    writer = threading.Thread(target=_keep_fresh, args=(root / PROGRESS, typed, ended), daemon=True, name="sparring-progress")
    writer.start()
    try:
        yield
    finally:
        _now.place = None
        ended.set()
        writer.join(REFRESH_SECONDS)


def read_progress(root: Path) -> dict[str, Any]:
    """The file's content; empty where there is none, or nothing that makes sense."""
    try:
        found = json.loads((root / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep_fresh(file: Path, typed: dict[str, Any], ended: threading.Event) -> None:
    """Write when something has changed, once a second at most, and every few seconds anyway."""
    before, last = None, 0.0
    while not ended.wait(REFRESH_SECONDS if before else 0.0):
        phase = _now.phase
        content = {**typed, "stage": _now.stage, "now": phase and phase.snapshot()}
        shown = (content["stage"], phase and (phase.phase, phase.done, phase.total))
        if shown != before or time.monotonic() - last >= BEAT_SECONDS:
            before, last = shown, time.monotonic()
            _write(file, content)
    if not _now.is_in_ranks:
        _write(file, {**typed, "stage": None, "now": None})


def _write(file: Path, content: dict[str, Any]) -> None:
    """Write atomically, without fsync: the file is of no use after a power cut. A full disk is reported by the stage that cannot write."""
    with contextlib.suppress(OSError):
        if _now.is_in_ranks:
            os.utime(file)
            return
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(json.dumps({**content, "written": time.time()}) + "\n", encoding="utf-8")
        temporary.rename(file)
