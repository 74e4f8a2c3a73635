"""What a killed process has started ends with it, from its first moment on, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from sparring.opponent.vllm_engine import MARK, Reaper

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(300)"]
# one that starts another in a session of its own, as vLLM's engine does with its workers; and a third that is not marked
PARENT = f"""
import subprocess, sys, time
from sparring.opponent.vllm_engine import Reaper
sleep = {SLEEP}
reaper = Reaper()
with reaper.marking():
    subprocess.Popen([sys.executable, "-S", "-c", f"import subprocess; subprocess.run({{sleep}}, start_new_session=True)"])
print(subprocess.Popen(sleep).pid, flush=True)
time.sleep(300)
"""


def wait_until(reached: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_killed_process_started_ends_with_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    stranger = psutil.Process(int(parent.stdout.readline()))
    family = psutil.Process(parent.pid)
    try:
        wait_until(lambda: len(family.children(recursive=True)) == 4)  # the reaper, the marked two, the stranger
        others = [process for process in family.children(recursive=True) if process != stranger]
        assert all(map(is_alive, others))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not any(map(is_alive, others)))
        assert is_alive(stranger)
    finally:
        stranger.kill()


def test_a_start_that_fails_leaves_nothing() -> None:
    with pytest.raises(RuntimeError), Reaper().marking():
        started = subprocess.Popen(SLEEP)
        raise RuntimeError
    assert started.wait(0.1) == -signal.SIGKILL and MARK not in os.environ


def test_dismissed_it_ends_nothing() -> None:
    reaper = Reaper()
    with reaper.marking():
        started = subprocess.Popen(SLEEP)
    reaper.dismiss()
    assert started.poll() is None
    started.kill()
    started.wait()
