"""The option letter that a reply chooses, A to J. Never a letter in running text: "A dog" chooses nothing."""

from __future__ import annotations

import re

_MARKS = r"[*_$\s]*+"  # bold, mathematics, blanks
# Letters that are words as well (a, I, any small one) count only where the line or the sentence ends behind them.
_BARE = r"(?:[B-HJ](?![\w'\u2019])|[A-Ja-j](?=[*_$]*+(?:[.,;:!)\]]|\s*+$|[ \t]*+\n)))"
_SAID = re.compile(
    rf"\b(?i:answer){_MARKS}(?:"
    rf"(?:is\b|[:=]){_MARKS}:?+{_MARKS}(?:(?i:option|choice)\b{_MARKS})?+(?:\((?P<closed>[A-Ja-j])\)|(?P<bare>{_BARE}))"
    r"|\((?P<alone>[A-Ja-j])\))"
)
_AT_START = re.compile(rf"{_MARKS}(?:\(([A-Ja-j])\)|([A-Ja-j])\)|([A-Ja-j])[.:](?!\w)|([A-Ja-j]){_MARKS}\Z)")


def chosen_letter(text: str) -> str | None:
    """The letter, as a capital, of the last "answer is (B)" or "answer: B", else `leading_letter`."""
    said = [match["closed"] or match["bare"] or match["alone"] for match in _SAID.finditer(text)]
    return said[-1].upper() if said else leading_letter(text)


def leading_letter(text: str) -> str | None:
    """The letter, as a capital, of "(B)", "B)", "B." or "B:" at the very start of a text, or of a text that is the letter alone."""
    found = _AT_START.match(text)
    return next(letter for letter in found.groups() if letter).upper() if found else None
