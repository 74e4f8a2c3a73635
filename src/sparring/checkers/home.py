"""The folder of a pool's processes, which is their HOME and TMPDIR.

Its owner holds a lock on it, which the system releases however the owner ends. If it was killed, its processes remove the folder; if they
were killed too, the next pool on this machine does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from sparring.interrupts import signals_deferred

PREFIX = "sparring-checker-home-"


class Home:
    """A new empty folder below the temporary one, removed by `remove` or when this process ends; folders of dead owners are removed too."""

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self.path, lock = _make()
        self._finalizer = weakref.finalize(self, _remove, self.path, lock)  # also at the end of the interpreter

    def remove(self) -> None:
        """Remove the folder with everything in it. May be called twice."""
        self._finalizer()


def _make() -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # a file system without locks: no other pool can take it for abandoned either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # else another pool took it for abandoned before it had its lock
                return path, lock
            os.close(lock)


def _remove(path: Path, lock: int) -> None:
    with signals_deferred():  # a second SIGTERM would leave a part of it
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of dead owners: those of this user that no process holds a lock on."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # removed meanwhile, another user's, a link, or locked by its owner
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
