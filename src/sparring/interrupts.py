"""Ctrl-C and a batch system's SIGTERM: both end a run in the same way, whatever code they arrive in."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

RETRY_SECONDS = 0.02
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # the last one raises an interrupt again that Python had to ignore
_received: list[int] = []


def stop_on_signals() -> None:
    """From now on both raise KeyboardInterrupt. If SIGINT is ignored, as in a background job, it stays ignored."""
    sys.unraisablehook = _raise_again
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def were_received() -> bool:
    """Whether an interrupt arrived: C code that calls Python may turn a KeyboardInterrupt into another error."""
    return bool(_received)


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer signals until the context ends, for a few lines that must not be interrupted, such as the last write of a file."""
    if threading.current_thread() is not threading.main_thread():  # signals arrive in the main thread alone
        yield
        return
    came: list[int] = []
    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught in came:
            signal.raise_signal(caught)


def ignore_signals() -> None:
    """Ignore Ctrl-C once everything is saved and reported: while the interpreter shuts down it would only show a traceback."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(number: int, _: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _raise_again(found: Any) -> None:
    """Raise an interrupt again that was raised in a finaliser or a callback of a fork: Python only reports it there, and continues."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)  # not at once: that would be within this hook, and lost as well
    else:
        sys.__unraisablehook__(found)
