"""Which of the files that a user names may be opened: reading a named pipe can block forever, and a device may have no end."""

from __future__ import annotations

import os
from pathlib import Path

from sparring.errors import UserError

# of a text that is read whole, such as a recipe or a chat template; the longest known template has 20 kB
MOST_TEXT_BYTES = 2**20
NOT_REGULAR = "not a regular file but a pipe, a device or a socket"


def require_regular(path: Path, where: str, most_bytes: int | None = None) -> None:
    """Raise UserError at `where` if the path exists and is neither a regular file nor a folder, or if the file is too long.

    Folders, and paths that cannot be examined, pass: the code that opens them reports its own error.
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


def require_folder_of(file: Path | None, option: str) -> None:
    """Raise UserError if the folder of the file that an option names does not exist, before the work that would write the file."""
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError("the folder does not exist", where=f"{option} ({file})", remedy=f"create {file.absolute().parent} first")


def require_plain(folder: Path) -> None:
    """Raise UserError for anything in a folder that is neither a regular file nor a folder nor a link to one: others may have written it.

    Hidden folders are skipped: a run has none.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (os.path.join(place, name) for name in names):
            if os.path.exists(path) and not os.path.isfile(path):
                raise UserError(NOT_REGULAR, where=path, remedy="replace it by the regular file")
