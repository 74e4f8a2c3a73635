"""Text of a model, a data set or a path, made safe to display: it cannot hide or reorder the text around it, and Markdown shows it as
plain text.
"""

from __future__ import annotations

import re

CUT_AT = 20_000
# control characters except tab and newline, lone surrogates, marks of writing direction, byte order mark and line separators
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")


def visible(text: str) -> str:
    """`text` with its invisible characters written out, such as [U+202E]; CRLF becomes a plain newline."""
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text.replace("\r\n", "\n"))


def shortened(text: str, limit: int = CUT_AT) -> str:
    """`text` made visible, cut after `limit` characters with a note of how many there were."""
    if len(text) <= limit:
        return visible(text)
    return f"{visible(text[:limit])}\n[cut by the report: {limit:,} of {len(text):,} characters]"


LONGEST = 300  # characters of a name or a sentence on a card
LONGEST_TEXT = 5000  # of several sentences, such as the verdict on all arms of a run


def one_line(text: str, longest: int = LONGEST) -> str:
    """Text on one line, without invisible characters; in a card's metadata a line break could end the metadata."""
    return shortened(" ".join(text.split()), longest).replace("\n", " ")


def words(text: str, longest: int = LONGEST) -> str:
    """Text for a line, a table's cell or a heading, escaped so that it cannot become a link, image, tag, code or further cell."""
    # an underscore within a word, as metrics have them, means nothing in Markdown
    return re.sub(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line(text, longest))


def code_span(text: str, in_table: bool = False) -> str:
    """Text as code; in a table bars are escaped, because they would end the cell even within code."""
    shown = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    padding = " " if "`" in shown else ""
    return f"{fence}{padding}{shown.replace('|', chr(92) + '|') if in_table else shown}{padding}{fence}"
