"""The error type for problems that the user can fix, as opposed to faults of the program."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable

from sparring.secrecy import without_secrets


class UserError(Exception):
    """Bad input. The command line prints it without a traceback and exits with code 2.

    `what` says what is wrong with its value and the rule, `where` names the file, row or recipe key,
    `remedy` says what to do next. No secret gets into any of them.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = without_secrets(what)
        self.where, self.remedy = (text and without_secrets(text) for text in (where, remedy))
        lines = [f"{self.where}: {self.what}" if where else self.what]
        if remedy:
            lines.append(f"  -> {self.remedy}")
        super().__init__("\n".join(lines))


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid name that has `word` as a part, as continued-sft has sft, or the closest in spelling; None when nothing is close."""
    names = list(valid)
    matches = [name for name in names if word and word in re.split(r"[^a-z0-9]+", name)] or difflib.get_close_matches(word, names, 1, 0.5)
    return matches[0] if matches else None


def first_line(error: BaseException) -> str:
    """Short text of a library's error: its first line, at most 300 characters, or its type's name; a heading takes the next one too."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    return (f"{first} {more[0].strip()}" if first.endswith(":") and more else first)[:300]


def is_installed(package: str) -> bool:
    """A folder of that name is not one: Python would import it too, as an empty package."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
