"""What a person sees while a run works: log lines, progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("sparring")
console = Console(stderr=True, highlight=False)
PLAIN_LINE_SECONDS = 15.0


def set_up_logging(quiet: bool = False) -> None:
    """Send the program's lines to stderr: with colours on a terminal, one plain line each elsewhere."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_path=False, show_level=False, log_time_format="[%X]", markup=False, highlighter=NullHighlighter()
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    log.handlers[:] = [handler]
    log.propagate = False


def is_quiet() -> bool:
    """Whether `set_up_logging` was asked for warnings only."""
    return any(handler.level >= logging.WARNING for handler in log.handlers)


def be_silent() -> None:
    """Neither lines nor progress from this process: another one tells what it does."""
    log.handlers[:] = [logging.NullHandler()]
    log.propagate = False
    console.quiet = True


class _RunLog(logging.FileHandler):
    """Remembers the error whose traceback it has written last."""

    error: ClassVar[BaseException | None] = None

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.exc_info:
            _RunLog.error = record.exc_info[1]

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is reported once, by what met it in the work itself, not by a traceback for every line of the log."""


def is_in_log_file(error: BaseException) -> bool:
    """Whether the traceback of `error` was written to a run's log file."""
    return _RunLog.error is error


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append every log line, those of the progress included, to the run's log file while the context lasts."""
    handler = _RunLog(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class PhaseProgress:
    """Done / total, rate and time left of one phase; `advance` may carry the newest numbers."""

    def __init__(self, phase: str, total: int, unit: str, done: int) -> None:
        self.phase, self.total, self.unit, self.done, self._first = phase, total, unit, done, done
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and not console.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(None),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(phase, total=total, completed=done, numbers="")
            self._bar.start()

    def advance(self, count: int = 1, **numbers: float) -> None:
        self.done += count
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, numbers=text)
        now = time.monotonic()
        if now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            self._line(now, text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line(self, now: float, text: str) -> None:
        rate = (self.done - self._first) / max(now - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        log.info(f"{self.phase}: {self.done}/{self.total} {self.unit}, {rate:.2f}/s, {left:.0f} s left  {text}".rstrip())


@contextmanager
def progress(phase: str, total: int, unit: str, done: int = 0) -> Iterator[PhaseProgress]:
    """Show the progress of one phase; `done` is what an earlier attempt had finished."""
    shown = PhaseProgress(phase, total, unit, done)
    try:
        yield shown
    finally:
        shown.close()
