"""Ctrl-C and a batch system's SIGTERM: both end a run in the same way, whatever code they arrive in."""

from __future__ import annotations

import signal
from types import FrameType

_received: list[int] = []


def stop_on_signals() -> None:
    """Both raise KeyboardInterrupt from now on. A SIGINT that is ignored, as in a job in the background, stays so."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def were_received() -> bool:
    """Foreign code that calls Python from C may turn a KeyboardInterrupt into an error of its own; this still tells."""
    return bool(_received)


def _stop(number: int, _: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt
