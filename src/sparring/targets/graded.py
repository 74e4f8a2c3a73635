"""Convert a table of grades to the input of a target: the candidates of every prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparring.config import Recipe
from sparring.data.records import Example, Reply
from sparring.targets.select import Candidate, Candidates, Rules

HUMAN = -1  # replica of the human reply in a table of grades


def rules_of(recipe: Recipe) -> Rules:
    """The options of `target` that a selection depends on."""
    return Rules(**{name: getattr(recipe.target, name) for name in Rules.__dataclass_fields__})


def candidates_of(
    rows: Iterable[Mapping[str, Any]], replies: Sequence[Reply], examples: Sequence[Example], pass_score: float
) -> dict[str, Candidates]:
    """row id -> its graded replies, in the order of the examples. rows: a table of grades, in which HUMAN is the replica of human ones."""
    by_place = {(reply.row_id, reply.replica): reply for reply in replies}
    # the random checker grades no human reply
    humans = {e.row_id: Candidate(e.reply_ids, e.conversation.reply) for e in examples if e.has_reply}
    others: dict[str, list[Candidate]] = defaultdict(list)
    for row in rows:
        row_id, grade = row["row_id"], (None if row["score"] is None else row["score"] >= pass_score, row["answer"])
        if row["replica"] == HUMAN:
            humans[row_id] = Candidate(humans[row_id].token_ids, row["text"], True, *grade)
        else:
            reply = by_place[row_id, row["replica"]]
            others[row_id].append(Candidate(reply.token_ids, row["text"], reply.finish_reason == "stop", *grade))
    return {example.row_id: Candidates(tuple(others[example.row_id]), humans.get(example.row_id)) for example in examples}
