"""Ends what a killed run leaves behind: processes that outlive the one which started them, and keep its device's memory.

A process of its own waits until its input ends, as it does when the run is gone, however it went. Then it kills every process whose
environment holds the mark. Children inherit the mark with their first breath, so that none is too young to be found.
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
SWEEPS, PAUSE_SECONDS = 20, 0.1  # one that was just being started is found in a later sweep
# Python's own helper clears shared memory away and ends by itself once the others have ended
SPARED = "resource_tracker"


class Reaper:
    """Watches over this process. What is started while it marks ends with this process, and so does what that starts."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # -P: this file alone, not its folder's; in a session of its own no Ctrl-C reaches it
        command = [sys.executable, "-P", __file__, self._mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Processes started meanwhile are marked. Where that fails, those that are there already end at once."""
        os.environ[MARK] = self._mark
        try:
            yield
        except BaseException:
            self.reap()
            raise
        finally:
            del os.environ[MARK]

    def reap(self) -> None:
        """End what is marked now; returns when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def dismiss(self) -> None:
        """For one whose processes have ended by themselves."""
        self._process.kill()
        self._process.wait()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or another user's
            if process.environ().get(MARK) == mark and SPARED not in " ".join(process.cmdline()):
                yield process


def main(mark: str) -> None:
    sys.stdin.read()
    for _ in range(SWEEPS):
        for process in _marked(mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
