"""Kills the orphans of a killed run: processes that outlive their parent and keep its device's memory.

A separate process waits for the end of its input, which comes when the run ends in any way. Then it kills every process whose
environment holds the mark. Children inherit the mark when they are created, so all of them are found.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import psutil

MARK = "SPARRING_ENDS_WITH"
SWEEPS, PAUSE_SECONDS = 20, 0.1  # a process that is just being started is found in a later sweep
# Python's resource tracker frees shared memory and ends after the others
SPARED = "resource_tracker"


class Reaper:
    """Watches this process. Processes started under `marking`, and their descendants, end with this process."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # -P: does not import from this folder; a separate session receives no Ctrl-C
        command = [sys.executable, "-P", __file__, self._mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Mark processes that are started in this context. If it fails, those already started are killed at once."""
        os.environ[MARK] = self._mark
        try:
            yield
        except BaseException:
            self.reap()
            raise
        finally:
            del os.environ[MARK]

    def reap(self) -> None:
        """Kill the marked processes; returns after they have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def dismiss(self) -> None:
        """Stop watching, after the processes have ended."""
        self._process.kill()
        self._process.wait()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            if process.environ().get(MARK) == mark and SPARED not in " ".join(process.cmdline()):
                yield process


def main(mark: str) -> None:
    """Wait until stdin closes, then kill the processes with this mark in several sweeps."""
    sys.stdin.read()
    for _ in range(SWEEPS):
        for process in _marked(mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
