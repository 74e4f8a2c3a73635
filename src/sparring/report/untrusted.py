"""Make text of a model, a data set or a path safe to display: nothing in it may hide or reorder the text around it."""

from __future__ import annotations

import re

CUT_AT = 20_000
# control characters but for tab and newline, lone surrogates, marks of writing direction, byte order mark and line separators
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


def visible(text: str) -> str:
    """`text` with its unseen characters written out, as [U+202E]; CRLF is a plain newline."""
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def shortened(text: str, limit: int = CUT_AT) -> str:
    """`text` made visible, cut after `limit` characters with a note of how many there were."""
    if len(text) <= limit:
        return visible(text)
    return f"{visible(text[:limit])}\n[cut by the report: {limit:,} of {len(text):,} characters]"
