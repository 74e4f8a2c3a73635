"""What the graded replies of an iteration say of the opponent."""

from __future__ import annotations

from collections.abc import Mapping

from sparring.evaluation.metrics import Score, mean_score
from sparring.targets import Candidates
from sparring.targets.majority import vote_share


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
