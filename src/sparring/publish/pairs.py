"""A game's replies as data sets: preference rows for TRL, real/generated rows for the paper's code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sparring.config import Recipe
from sparring.data.prepare import read_played
from sparring.data.records import Contest, Example, Message, Reply, TokenIds
from sparring.data.tables import read_rows, write_table
from sparring.errors import UserError
from sparring.opponent.replies import read_replies
from sparring.players import Players
from sparring.stage_names import iteration_stage
from sparring.targets import TARGETS, Candidates
from sparring.targets.select import HUMAN, candidates_of, rules_of
from sparring.targets.window import select_window

# Types of columns that may be null in a whole split
TYPES = {
    "chosen_score": pa.float64(),
    "rejected_score": pa.float64(),
    "chosen_answer": pa.string(),
    "rejected_answer": pa.string(),
}


@dataclass(frozen=True)
class Graded:
    """The replies of one iteration, their grades, and the winners and losers by the target."""

    examples: Mapping[str, Example]
    candidates: Mapping[str, Candidates]
    grades: Mapping[tuple[str, int], Mapping[str, Any]]
    replies: Mapping[tuple[str, TokenIds], Reply]
    contests: Sequence[Contest]


def graded(recipe: Recipe, t: int, examples: Mapping[str, Example], replies: Sequence[Reply], rows: Sequence[Mapping[str, Any]]) -> Graded:
    """The graded replies of iteration t. rows: its table of grades."""
    candidates = candidates_of(rows, replies, list(examples.values()), recipe.target.pass_score)
    prompts = {row_id: example.prompt_ids for row_id, example in examples.items()}
    target, rules = TARGETS[recipe.target.kind], rules_of(recipe)
    window = select_window(prompts, {t: candidates}, target, rules, uses_margins=True, uses_likelihood=False)
    by_place = {(row["row_id"], row["replica"]): row for row in rows}
    by_tokens = {(reply.row_id, reply.token_ids): reply for reply in replies}
    return Graded(examples, candidates, by_place, by_tokens, window.contests)


def contest_columns(found: Graded, decode: Callable[[TokenIds], str]) -> dict[str, Any]:
    """The columns of a table with a row for every pair; empty if there are no pairs."""
    rows = [_row(found, contest, contest.winners[i], contest.losers[j], decode) for contest in found.contests for i, j in contest.pairs]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return {name: pa.array(values, TYPES[name]) if name in TYPES else values for name, values in columns.items()}


def contest_counts(found: Graded) -> dict[str, int]:
    """Numbers of pairs ("rows"), of those with a human winner and with a cut loser; of prompts with pairs, and of these without a human
    reply."""
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
    """The grade of a reply of the model, or of the human one; empty for a human one that the checker did not grade (random)."""
    reply = found.replies.get((contest.row_id, ids))
    return found.grades.get((contest.row_id, HUMAN if reply is None else reply.replica), {})


def _finish_reason(found: Graded, contest: Contest, loser: TokenIds) -> str:
    return found.replies[contest.row_id, loser].finish_reason


def _votes(candidates: Candidates) -> Counter[str | None]:
    """Answer -> number of complete replies with it."""
    return Counter(reply.answer for reply in candidates.replies if reply.is_complete and reply.answer is not None)


TableColumns = dict[str, Any]
Decode = Callable[[TokenIds], str]
Made = tuple[dict[str, int], dict[str, TableColumns]]  # counts, and a table for every shape
SHAPES = {"preference": "rows", "spin": "spin_rows"}  # shape -> its number of rows in the counts; "rows" for both without spin_rows


def write_pairs(players: Players, target: Path) -> dict[int, dict[str, int]]:
    """Write preference/iteration_T.parquet and spin/iteration_T.parquet for every iteration T that the run's summary counts.

    With the human target a row is a sampled reply with the human one, and T's counts are "rows", those "identical" to the human reply,
    token for token, and "truncated" ones. With other targets a preference row is a pair of winner and loser, with the counts of
    `contest_counts`; "spin_rows" are replies paired with a human one. A file without rows is not written.
    """
    iterations = [entry["iteration"] for entry in players.summary["iterations"]] if players.summary else []
    if not iterations:
        raise UserError("no iteration was played, so there are no generated replies", where=str(players.run.root))
    examples = {example.row_id: example for example in read_played(players.run.verified("data").path)}
    make = _of_contests if players.recipe.target.uses_grades else _of_duels
    for shape in SHAPES:
        (target / shape).mkdir(parents=True)
    counts = {}
    for t in iterations:
        counts[t], tables = make(players, t, examples, players.chat().decode)
        for shape, columns in tables.items():
            if columns and next(iter(columns.values())):
                write_table(target / shape / f"iteration_{t}.parquet", columns)
    return counts


def splits(counts: Mapping[int, Mapping[str, int]]) -> dict[str, list[int]]:
    """Shape -> the iterations that have a file of this shape."""
    return {shape: [t for t, found in counts.items() if found.get(key, found["rows"])] for shape, key in SHAPES.items()}


def _of_duels(players: Players, t: int, examples: Mapping[str, Example], decode: Decode) -> Made:
    replies = read_replies(players.run.verified(iteration_stage(t, "generate")).path)
    counts = {
        "rows": len(replies),
        "identical": sum(reply.token_ids == examples[reply.row_id].reply_ids for reply in replies),
        "truncated": sum(reply.finish_reason == "length" for reply in replies),
    }
    return counts, {"preference": preference_columns(examples, replies, decode), "spin": spin_columns(examples, replies, decode)}


def _of_contests(players: Players, t: int, examples: Mapping[str, Example], decode: Decode) -> Made:
    replies = read_replies(players.run.verified(iteration_stage(t, "generate")).path)
    found = graded(players.recipe, t, examples, replies, read_rows(players.run.verified(iteration_stage(t, "grade")).path))
    with_human = [reply for reply in replies if examples[reply.row_id].has_reply]
    counts = {**contest_counts(found), "spin_rows": len(with_human)}
    return counts, {"preference": contest_columns(found, decode), "spin": spin_columns(examples, with_human, decode)}


def preference_columns(examples: Mapping[str, Example], replies: Sequence[Reply], decode: Decode) -> TableColumns:
    """Columns with `prompt`, `chosen`, `rejected` as lists of turns: every game has a chat template, so every row is a conversation."""
    of = [examples[reply.row_id].conversation for reply in replies]
    return {
        "prompt": [list(conversation.prompt) for conversation in of],
        "chosen": [[conversation.turn] for conversation in of],
        "rejected": [[_assistant_turn(decode(reply.token_ids))] for reply in replies],
        "row_id": [reply.row_id for reply in replies],
        "replica": [reply.replica for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
    }


def spin_columns(examples: Mapping[str, Example], replies: Sequence[Reply], decode: Decode) -> TableColumns:
    """The columns `real` and `generated`, whole conversations that end in the human and the sampled reply, as in the authors' files."""
    rows = preference_columns(examples, replies, decode)
    return {
        name: [[*prompt, *reply] for prompt, reply in zip(rows["prompt"], rows[side], strict=True)]
        for name, side in (("real", "chosen"), ("generated", "rejected"))
    }


def _assistant_turn(text: str) -> Message:
    return Message(role="assistant", content=text)
