"""Ctrl-C and SIGTERM where Python itself would lose them."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOST = {
    "a callback at a fork": "os.register_at_fork(after_in_parent=interrupted)\nif os.fork() == 0:\n    os._exit(0)",
    "a finaliser": "class Held:\n    def __del__(self): interrupted()\nheld = Held()\ndel held",
}


@pytest.mark.parametrize("where", LOST)
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_python_ignores_comes_again(where: str, number: str) -> None:
    script = f"""
import os, signal, time
from sparring import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
def interrupted():
    os.kill(os.getpid(), signal.{number})
    for _ in range(1000): pass
interrupts.stop_on_signals()
try:
    exec({LOST[where]!r})
    time.sleep(30)
    print("lost")
except KeyboardInterrupt:
    interrupts.ignore_signals()
    print("stopped", interrupts.were_received())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped True\n" and done.stderr == "", (done.stdout, done.stderr)


def test_other_errors_that_python_ignores_are_shown() -> None:
    script = "from sparring import interrupts\ninterrupts.stop_on_signals()\nclass Held:\n    def __del__(self): 1 / 0\nHeld()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "ZeroDivisionError" in done.stderr
