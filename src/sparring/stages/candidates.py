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


def rates(found: Mapping[str, Candidates]) -> dict[str, list[float]]:
    """Per prompt, in the order of their ids: the share of replies that passed, of the prompts in which any was judged; the share of votes
    for the leading answer; how many different answers there are."""
    ordered = [found[row_id] for row_id in sorted(found)]
    judged = [one for one in ordered if any(reply.passed is not None for reply in one.replies)]
    values = {"pass_rate": [_passed(one) for one in judged]} if judged else {}
    if any(reply.answer is not None for one in ordered for reply in one.replies):
        values["vote_share"] = [vote_share(one.replies) for one in ordered]
        values["distinct_answers"] = [float(len({r.answer for r in one.replies if r.is_complete} - {None})) for one in ordered]
    return values


def _passed(one: Candidates) -> float:
    return sum(reply.passed is True and reply.is_complete for reply in one.replies) / len(one.replies)


def rate_scores(values: Mapping[str, Sequence[float]]) -> dict[str, Score]:
    """Means over prompts with their errors."""
    return {name: mean_score(found, True if name == "pass_rate" else None) for name, found in values.items()}
