"""Files that a person names: what may be opened. Reading a named pipe waits for ever, and a device may have no end."""

from __future__ import annotations

import os
from pathlib import Path

from sparring.errors import UserError

# of texts that are read whole: recipes, chat templates; the longest known template has 20 kB
MOST_TEXT_BYTES = 2**20
NOT_REGULAR = "not a regular file but a pipe, a device or a socket"


def require_regular(path: Path, where: str, most_bytes: int | None = None) -> None:
    """Raise UserError, naming `where`, for a path that leads to anything but a regular file, a folder or nothing, and for a file too long.

    Folders and what cannot be looked at are left to those who open them, for their own words.
    """
    try:
        if not path.exists() or path.is_dir():
            return
        is_regular, size = path.is_file(), path.stat().st_size
    except OSError:
        return
    if not is_regular:
        raise UserError(NOT_REGULAR, where=where, remedy="write it to a file and give that")
    if most_bytes is not None and size > most_bytes:
        raise UserError(f"{size:,} bytes; the limit for such a file is {most_bytes:,}", where=where)


def require_plain(folder: Path) -> None:
    """Raise UserError for anything in a folder that is neither a regular file nor a folder nor a link to one: it may come from elsewhere.

    Hidden folders are not looked into: they are none of a run's.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(place, name) for name in names):
            if os.path.exists(path) and not os.path.isfile(path):
                raise UserError(NOT_REGULAR, where=path, remedy="delete it, and put the file in its place")
