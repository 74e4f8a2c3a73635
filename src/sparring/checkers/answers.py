"""The answer that a pattern finds in a text."""

from __future__ import annotations

import re


def find_answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The last match in a reply (its group 1 if the pattern has one), stripped; None without one.

    Empty matches do not count: `.*` has one at the end of every text, and all replies would agree.
    """
    found = [(match.group(1 if pattern.groups else 0) or "").strip() for match in pattern.finditer(text)]
    return next((answer for answer in reversed(found) if answer), None)
