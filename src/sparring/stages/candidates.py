"""The graded replies of an iteration as a target sees them, and what they say of the opponent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sparring.config import Recipe
from sparring.data.tables import read_rows
from sparring.evaluation.metrics import Score, mean_score
from sparring.opponent.replies import read_replies
from sparring.stage_names import iteration_stage
from sparring.stages.grade import HUMAN
from sparring.stages.ground import Ground
from sparring.targets import Candidate, Candidates, Rules
from sparring.targets.majority import vote_share


def rules_of(recipe: Recipe) -> Rules:
    """The part of `target` that a selection depends on."""
    return Rules(**{name: getattr(recipe.target, name) for name in Rules.__dataclass_fields__})


def candidates_at(ground: Ground, t: int) -> dict[str, Candidates]:
    """row id -> the graded replies of iteration t."""
    root, score = ground.run.root, ground.recipe.target.pass_score
    replies = {(reply.row_id, reply.replica): reply for reply in read_replies(root / iteration_stage(t, "generate"))}
    examples = {example.row_id: example for example in ground.played_examples}
    humans: dict[str, Candidate] = {}
    others: dict[str, list[Candidate]] = defaultdict(list)
    for row in read_rows(root / iteration_stage(t, "grade")):
        passed = None if row["score"] is None else row["score"] >= score
        if row["replica"] == HUMAN:
            humans[row["row_id"]] = Candidate(examples[row["row_id"]].reply_ids, row["text"], True, passed, row["answer"])
        else:
            reply = replies[row["row_id"], row["replica"]]
            is_complete = reply.finish_reason == "stop"
            others[row["row_id"]].append(Candidate(reply.token_ids, row["text"], is_complete, passed, row["answer"]))
    for row_id, example in examples.items():  # a checker that deals passes at random grades no human reply
        if example.has_reply and row_id not in humans:
            humans[row_id] = Candidate(example.reply_ids, example.conversation.reply)
    return {row_id: Candidates(tuple(others[row_id]), humans.get(row_id)) for row_id in examples}


def rates(kind: str, found: Mapping[str, Candidates]) -> dict[str, list[float]]:
    """Per prompt, in the order of their ids: the share of replies that passed where they were judged, of votes for the leading answer, and
    how many different answers there are."""
    ordered = [found[row_id] for row_id in sorted(found)]
    judged = [one for one in ordered if any(reply.passed is not None for reply in one.replies)]
    values = {"pass_rate": [_passed(one) for one in judged]} if kind == "verified" or judged else {}
    if any(reply.answer is not None for one in ordered for reply in one.replies):
        values["vote_share"] = [vote_share(one.replies) for one in ordered]
        values["distinct_answers"] = [float(len({r.answer for r in one.replies if r.is_complete} - {None})) for one in ordered]
    return values


def _passed(one: Candidates) -> float:
    return sum(reply.passed is True and reply.is_complete for reply in one.replies) / len(one.replies)


def rate_scores(values: Mapping[str, Sequence[float]]) -> dict[str, Score]:
    """Means over prompts with their errors."""
    better = {"pass_rate": True, "vote_share": None, "distinct_answers": None}
    return {name: mean_score(found, better[name]) for name, found in values.items() if found}
