"""The graded replies of an iteration as a target sees them, and what they say of the opponent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparring.config import Recipe
from sparring.data.records import Example, Reply
from sparring.evaluation.metrics import Score, mean_score
from sparring.targets import Candidate, Candidates, Rules
from sparring.targets.majority import vote_share

HUMAN = -1  # replica of the human reply in a table of grades


def rules_of(recipe: Recipe) -> Rules:
    """The part of `target` that a selection depends on."""
    return Rules(**{name: getattr(recipe.target, name) for name in Rules.__dataclass_fields__})


def candidates_of(
    rows: Iterable[Mapping[str, Any]], replies: Sequence[Reply], examples: Sequence[Example], pass_score: float
) -> dict[str, Candidates]:
    """row id -> its graded replies, in the order of the examples. rows: a table of grades, in which HUMAN is the replica of human ones."""
    by_place = {(reply.row_id, reply.replica): reply for reply in replies}
    # a checker that deals passes at random grades no human reply
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


def rates(found: Mapping[str, Candidates]) -> dict[str, dict[str, float]]:
    """For each prompt, by its id: the share of replies that passed, of the prompts in which any was judged; the share of votes for the
    leading answer; how many different answers there are."""
    judged = {row_id: one for row_id, one in found.items() if any(reply.passed is not None for reply in one.replies)}
    values = {"pass_rate": {row_id: _passed(one) for row_id, one in judged.items()}} if judged else {}
    if any(reply.answer is not None for one in found.values() for reply in one.replies):
        values["vote_share"] = {row_id: vote_share(one.replies) for row_id, one in found.items()}
        values["distinct_answers"] = {row_id: float(len(_answers(one))) for row_id, one in found.items()}
    return values


def _answers(one: Candidates) -> set[str]:
    return {reply.answer for reply in one.replies if reply.is_complete and reply.answer is not None}


def _passed(one: Candidates) -> float:
    return sum(reply.passed is True and reply.is_complete for reply in one.replies) / len(one.replies)


def rate_scores(values: Mapping[str, Mapping[str, float]]) -> dict[str, Score]:
    """Means over prompts with their errors."""
    return {name: mean_score(list(found.values()), True if name == "pass_rate" else None) for name, found in values.items()}
