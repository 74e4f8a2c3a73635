"""One writer per run directory: lock files that the system releases when their holder dies, and who holds one now."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from sparring.errors import UserError

LOCK, RANKS_LOCK = ".lock", ".lock-ranks"
BUSY = (errno.EAGAIN, errno.EACCES)
# `holder` takes the lock for a moment to see whether it is free; a writer that finds it taken tries again
TRIES, PAUSE_SECONDS = 5, 0.02


@dataclass(frozen=True)
class Holder:
    """The process that wrote its name into a lock file. `alive`: None if it is on another machine, so that this cannot be known."""

    name: str
    since: str
    alive: bool | None


@contextlib.contextmanager
def hold(root: Path, name: str) -> Iterator[int]:
    """Hold the lock file `name` of the run in `root`, or raise UserError that names who holds it.

    Gives the file's descriptor: a process that inherits it holds the lock as well, until it ends.
    """
    with _open(root, name) as file:
        _lock(file, root)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC).isoformat(timespec='seconds')}")
        file.flush()
        try:
            yield file.fileno()
        finally:
            file.truncate(0)  # a name that is left in the file is that of a killed process


def holder(root: Path) -> Holder | None:
    """The process that works in the run directory; with `alive` False, one that was killed and not resumed since. Writes nothing."""
    found = [one for name in (LOCK, RANKS_LOCK) if (one := _holder_of(root / name)) is not None]
    return next((one for one in found if one.alive is not False), found[0] if found else None)


def _holder_of(path: Path) -> Holder | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            is_held, text = _is_held(file), file.read().strip()
    except OSError:
        return None
    if not text and not is_held:
        return None
    named = re.fullmatch(r"(process \d+ on (.*)), since (\S+)", text)
    name, host, since = named.groups() if named else ("an unknown process", None, "an unknown time")
    # for another machine only a held lock is evidence: a mounted file system may keep every machine's locks for itself
    return Holder(name, since, is_held or (False if host == socket.gethostname() else None))


def _is_held(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in BUSY  # else a file system without locks
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _lock(file: TextIO, root: Path) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in BUSY:
                raise
        if attempt < TRIES:
            time.sleep(PAUSE_SECONDS)
    file.seek(0)
    raise UserError(
        f"another process works in this run directory: {file.read().strip() or 'unknown holder'}",
        where=str(root),
        remedy="wait for it, stop it, or give this run its own run_dir",
    )


def _open(root: Path, name: str) -> TextIO:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return open(root / name, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(
            f"cannot create the run directory or write in it: {error.strerror}", where=f"run_dir ({root})", remedy="choose another"
        ) from None
