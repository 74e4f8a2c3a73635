"""What a checker is asked about rows of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sparring.checkers.grades import Asked
from sparring.data.records import Example


def ask(examples: Iterable[Example], texts: Mapping[str, Sequence[str]]) -> list[Asked]:
    """One question for each example, with the replies that `texts` has by its row id."""
    found = []
    for example in examples:
        said = example.conversation
        human = said.reply if example.has_reply else None
        found.append(Asked(example.row_id, said.prompt, said.answer, human, said.columns, tuple(texts.get(example.row_id, ()))))
    return found
