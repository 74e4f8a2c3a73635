"""Questions of several turns for a judge, in the shape of MT-Bench (FastChat's JSON lines): from a file or a Hub id."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from sparring.config import DataSection
from sparring.data.arrow import hub_dataset
from sparring.data.rows import BadRows
from sparring.data.sources import local_files, open_table
from sparring.data.turns import without_surrogates
from sparring.errors import UserError

OPTION, REFERENCES_OPTION = "--questions", "--references"
# temperature of the answers by category, as MT-Bench has them (FastChat, llm_judge/common.py); 0.7 for the rest
TEMPERATURES = {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1, "writing": 0.7}
OTHER_TEMPERATURE = 0.7
ID_COLUMNS = ("question_id", "prompt_id", "id")
TURN_COLUMNS = ("turns", "prompt", "prompts")


@dataclass(frozen=True)
class Question:
    """The user's turns, and for some questions an answer to each that the judge may compare with."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()

    @property
    def temperature(self) -> float:
        """The sampling temperature of answers in the question's category."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


def read_questions(path: str, references: str | None = None, limit: int | None = None) -> list[Question]:
    """All questions, or the first `limit` of every category. Raises UserError with the first row that is not a question."""
    answers = {} if references is None else _references(references)
    found = [_question(row, where, answers) for where, row in _rows(path, OPTION)]
    kept: list[Question] = []
    if not found:
        raise UserError("holds no question", where=f"{OPTION} {path}")
    doubled, count = Counter(question.id for question in found).most_common(1)[0]
    if count > 1:
        raise UserError(f"two questions have the id {doubled!r}", where=f"{OPTION} {path}")
    if answers and answers.keys().isdisjoint(question.id for question in found):
        raise UserError(f"none of its {len(answers)} ids is the id of a question", where=f"{REFERENCES_OPTION} {references}")
    seen: Counter[str] = Counter()
    for question in found:
        seen[question.category] += 1
        if limit is None or seen[question.category] <= limit:
            kept.append(question)
    return kept


def _rows(path: str, option: str) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        section = DataSection(path=path)
        if local_files(section) is not None:
            table = open_table(section, 0, BadRows())
            return list(table.read(table.columns))
        dataset, source = hub_dataset(section)
    except UserError as error:
        raise UserError(error.what, where=f"{option} {path}", remedy="give a .jsonl file in FastChat's shape, or a Hub id") from error
    return [(f"{source}, row {number}", row) for number, row in enumerate(dataset, 1)]


def _question(row: Mapping[str, Any], where: str, answers: Mapping[str, Sequence[str]]) -> Question:
    id_ = next((without_surrogates(str(row[name])) for name in ID_COLUMNS if row.get(name) is not None), None)
    turns = next((row[name] for name in TURN_COLUMNS if row.get(name)), None)
    if id_ is None or not _is_texts(turns):
        raise UserError(
            "this is no question: it needs an id (question_id) and turns, a list of texts",
            where=where,
            remedy='for example {"question_id": 1, "category": "writing", "turns": ["Write a poem.", "Make it rhyme."]}',
        )
    own = row.get("reference")
    references: Sequence[str] = answers.get(id_) or (own if _is_texts(own) else ())
    category = without_surrogates(str(row.get("category") or "other"))
    if re.fullmatch(r"turn-\d+", category):
        raise UserError(f"a category cannot be called {category!r}: so are the scores of a turn", where=where, remedy="rename it")
    return Question(id_, category, _clean(turns), _clean(references[: len(turns)]))


def _references(path: str) -> dict[str, list[str]]:
    """question id -> reference answers, in FastChat's shape of answers: `choices[0].turns`."""
    found = {}
    for where, row in _rows(path, REFERENCES_OPTION):
        choices = row.get("choices")
        turns = choices[0].get("turns") if isinstance(choices, Sequence) and choices and isinstance(choices[0], Mapping) else None
        if row.get("question_id") is None or not _is_texts(turns):
            raise UserError("this is no reference: it needs question_id and choices[0].turns", where=f"{REFERENCES_OPTION}: {where}")
        found[without_surrogates(str(row["question_id"]))] = list(turns)
    return found


def _clean(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(without_surrogates, texts))


def _is_texts(value: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0 and all(isinstance(text, str) for text in value)
