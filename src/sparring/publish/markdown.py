"""Names and words of others in Markdown: shown as they are, and read as nothing else."""

from __future__ import annotations

import re

from sparring.report.untrusted import shortened

LONGEST = 300  # characters of a name or a sentence on a card
LONGEST_TEXT = 5000  # of several sentences, such as the verdict on all arms of a run


def one_line(text: str, longest: int = LONGEST) -> str:
    """Text of which nothing is unseen, in one line; in a card's metadata a line of its own could end them."""
    return shortened(" ".join(text.split()), longest).replace("\n", " ")


def words(text: str, longest: int = LONGEST) -> str:
    """Text within a line, a table's cell or a heading: no link, image, tag, code or further cell comes of it."""
    # an underscore within a word, as metrics have them, means nothing in Markdown
    return re.sub(r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line(text, longest))


def code_span(text: str, in_table: bool = False) -> str:
    """Text as code; in a table a bar would end the cell in spite of that."""
    shown = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    padding = " " if "`" in shown else ""
    return f"{fence}{padding}{shown.replace('|', chr(92) + '|') if in_table else shown}{padding}{fence}"
