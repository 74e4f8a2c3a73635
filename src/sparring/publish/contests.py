"""The winners and losers of a game with a verified or majority target, as preference rows: only pairs that were trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparring.config import Recipe
from sparring.data.records import Contest, Example, Message, Reply, TokenIds
from sparring.targets import TARGETS, Candidates
from sparring.targets.select import HUMAN, candidates_of, rules_of
from sparring.targets.window import select_window

# Columns that may be null throughout a split keep their type all the same.
TYPES = {
    "chosen_score": pa.float64(),
    "rejected_score": pa.float64(),
    "chosen_answer": pa.string(),
    "rejected_answer": pa.string(),
}


@dataclass(frozen=True)
class Graded:
    """The replies of one iteration, their grades, and what the target has made of them."""

    examples: Mapping[str, Example]
    candidates: Mapping[str, Candidates]
    grades: Mapping[tuple[str, int], Mapping[str, Any]]
    replies: Mapping[tuple[str, TokenIds], Reply]
    contests: Sequence[Contest]


def graded(recipe: Recipe, t: int, examples: Mapping[str, Example], replies: Sequence[Reply], rows: Sequence[Mapping[str, Any]]) -> Graded:
    """rows: the table of grades of iteration t."""
    candidates = candidates_of(rows, replies, list(examples.values()), recipe.target.pass_score)
    prompts = {row_id: example.prompt_ids for row_id, example in examples.items()}
    target, rules = TARGETS[recipe.target.kind], rules_of(recipe)
    window = select_window(prompts, {t: candidates}, target, rules, uses_margins=True, uses_likelihood=False)
    by_place = {(row["row_id"], row["replica"]): row for row in rows}
    by_tokens = {(reply.row_id, reply.token_ids): reply for reply in replies}
    return Graded(examples, candidates, by_place, by_tokens, window.contests)


def contest_columns(found: Graded, decode: Callable[[TokenIds], str]) -> dict[str, Any]:
    """A row for every pair; empty columns where there is none."""
    rows = [_row(found, contest, contest.winners[i], contest.losers[j], decode) for contest in found.contests for i, j in contest.pairs]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return {name: pa.array(values, TYPES[name]) if name in TYPES else values for name, values in columns.items()}


def contest_counts(found: Graded) -> dict[str, int]:
    """Pairs ("rows"), those that a human reply has won and those with a cut loser; prompts with pairs, and those without a human reply."""
    pairs = [(contest, contest.winners[i], contest.losers[j]) for contest in found.contests for i, j in contest.pairs]
    return {
        "rows": len(pairs),
        "chosen_human": sum(_is_human(found, contest, winner) for contest, winner, _ in pairs),
        "truncated": sum(_finish_reason(found, contest, loser) == "length" for contest, _, loser in pairs),
        "prompts": len(found.contests),
        "unanswered": sum(not found.examples[contest.row_id].has_reply for contest in found.contests),
    }


def _row(found: Graded, contest: Contest, winner: TokenIds, loser: TokenIds, decode: Callable[[TokenIds], str]) -> dict[str, Any]:
    conversation = found.examples[contest.row_id].conversation
    won, lost = (_grade(found, contest, ids) for ids in (winner, loser))
    votes = _votes(found.candidates[contest.row_id])
    is_human, finish_reason = _is_human(found, contest, winner), _finish_reason(found, contest, loser)
    return {
        "prompt": list(conversation.prompt),
        "chosen": [conversation.turn if is_human else Message(role="assistant", content=decode(winner))],
        "rejected": [Message(role="assistant", content=decode(loser))],
        "row_id": contest.row_id,
        "iteration": contest.source_iteration,
        "chosen_by": "human" if is_human else "model",
        "chosen_score": won.get("score"),
        "rejected_score": lost.get("score"),
        "chosen_answer": won.get("answer"),
        "rejected_answer": lost.get("answer"),
        "chosen_votes": votes[won.get("answer")],
        "rejected_votes": votes[lost.get("answer")] if finish_reason == "stop" else 0,
        "weight": contest.weight,
        "finish_reason": finish_reason,
    }


def _is_human(found: Graded, contest: Contest, winner: TokenIds) -> bool:
    return winner == found.examples[contest.row_id].reply_ids


def _grade(found: Graded, contest: Contest, ids: TokenIds) -> Mapping[str, Any]:
    """The grade of a reply of the model, or of the human one, which the random checker does not grade."""
    reply = found.replies.get((contest.row_id, ids))
    return found.grades.get((contest.row_id, HUMAN if reply is None else reply.replica), {})


def _finish_reason(found: Graded, contest: Contest, loser: TokenIds) -> str:
    return found.replies[contest.row_id, loser].finish_reason


def _votes(candidates: Candidates) -> Counter[str | None]:
    """Answer -> replies that ended their turn and give it."""
    return Counter(reply.answer for reply in candidates.replies if reply.is_complete and reply.answer is not None)
