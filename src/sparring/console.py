"""Log lines on a terminal, in a pipe and in the run's log file, and how text is made printable there."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from sparring.errors import without_secrets

log = logging.getLogger("sparring")


def _make_harmless(record: logging.LogRecord) -> bool:
    """A log filter that removes secrets and control characters, also from tracebacks."""
    record.msg, record.args = printable(without_secrets(record.getMessage())), ()
    if record.exc_info and not record.exc_text:
        record.exc_text = printable(without_secrets(logging.Formatter().formatException(record.exc_info)))
    return True


log.addFilter(_make_harmless)
console = Console(stderr=True, highlight=False)
RUN_LOG = "run.log"


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
    """No log lines and no progress from this process: another one reports."""
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
        """A full disk is reported once, by the stage that cannot write, not by a traceback for every line of the log."""


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


def animates(terminal: Console) -> bool:
    """Whether a line can be updated in place: on a real terminal that can move its cursor, and not in the log of a CI job."""
    return terminal.is_interactive and not terminal.is_dumb_terminal and terminal.file.isatty() and "CI" not in os.environ


def printable(text: str) -> str:
    """A model's text without terminal control characters."""
    return "".join(char if char == "\n" or char.isprintable() else "�" for char in text)


def fitting(text: str, terminal: Console) -> str:
    """`text` without control characters, and with `+-` for `±` if the terminal's encoding has no such sign."""
    try:
        "±".encode(terminal.encoding)
    except (UnicodeEncodeError, LookupError):
        text = text.replace("±", "+-")
    return printable(text)


def counted(count: float, noun: str) -> str:
    """`1 step`, `12 steps`, `0.5 epochs`."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:.3g}"
    return f"{number} {noun}" + ("" if count == 1 else "s")


def quoted(text: str, length: int = 70) -> str:
    """The beginning of a model's text, in one line."""
    words = " ".join(printable(text[: 20 * length]).split())
    return f'"{words}"' if len(words) <= length else f'"{words[: length - 3]}..."'
