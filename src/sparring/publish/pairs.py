"""A game's replies as data sets: preference rows for TRL, real/generated rows for the paper's code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

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
SHAPES = {"preference": "rows", "spin": "spin_rows"}  # shape -> its number of rows in the counts; "rows" for both without spin_rows
Decode = Callable[[TokenIds], str]
PairRow = dict[str, Any]
Made = tuple[dict[str, int], dict[str, list[PairRow]]]  # counts, and the rows of every shape


def write_pairs(players: Players, target: Path) -> dict[int, dict[str, int]]:
    """Write preference/iteration_T.parquet and spin/iteration_T.parquet for every iteration T that the run's summary counts.

    With the human target a row is a sampled reply with the human one, and T's counts are "rows", those "identical" to the human reply,
    token for token, and "truncated" ones. With other targets a preference row is a pair of winner and loser, with the counts of
    `_of_contests`; "spin_rows" are replies paired with a human one. A file without rows is not written.
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
        replies = read_replies(players.run.verified(iteration_stage(t, "generate")).path)
        counts[t], tables = make(players, t, examples, replies, players.chat().decode)
        for shape, rows in tables.items():
            if rows:
                columns = {name: [row[name] for row in rows] for name in rows[0]}
                typed = {name: pa.array(columns[name], type) for name, type in TYPES.items() if name in columns}
                write_table(target / shape / f"iteration_{t}.parquet", {**columns, **typed})
    return counts


def splits(counts: Mapping[int, Mapping[str, int]]) -> dict[str, list[int]]:
    """Shape -> the iterations that have a file of this shape."""
    return {shape: [t for t, found in counts.items() if found.get(key, found["rows"])] for shape, key in SHAPES.items()}


def _of_duels(_: Players, t: int, examples: Mapping[str, Example], replies: list[Reply], decode: Decode) -> Made:
    rows = [_duel_row(examples[reply.row_id], reply, decode) for reply in replies]
    counts = {
        "rows": len(rows),
        "identical": sum(reply.token_ids == examples[reply.row_id].reply_ids for reply in replies),
        "truncated": sum(reply.finish_reason == "length" for reply in replies),
    }
    return counts, {"preference": rows, "spin": [_spin_row(row) for row in rows]}


def _duel_row(example: Example, reply: Reply, decode: Decode) -> PairRow:
    """`prompt`, `chosen`, `rejected` as lists of turns: every game has a chat template, so every row is a conversation."""
    return {
        "prompt": list(example.conversation.prompt),
        "chosen": [example.conversation.turn],
        "rejected": [_assistant_turn(decode(reply.token_ids))],
        "row_id": reply.row_id,
        "replica": reply.replica,
        "finish_reason": reply.finish_reason,
    }


def _spin_row(duel: PairRow) -> PairRow:
    """`real` and `generated`, whole conversations that end in the human and the sampled reply, as in the authors' files."""
    return {"real": [*duel["prompt"], *duel["chosen"]], "generated": [*duel["prompt"], *duel["rejected"]]}


def _assistant_turn(text: str) -> Message:
    return Message(role="assistant", content=text)


@dataclass(frozen=True)
class Graded:
    """The replies of one iteration with their grades."""

    examples: Mapping[str, Example]
    candidates: Mapping[str, Candidates]
    grades: Mapping[tuple[str, int], Mapping[str, Any]]
    replies: Mapping[tuple[str, TokenIds], Reply]


def _of_contests(players: Players, t: int, examples: Mapping[str, Example], replies: list[Reply], decode: Decode) -> Made:
    """Counts: pairs ("rows"), those with a human winner and with a cut loser; prompts with pairs, and those of them without a human
    reply."""
    target, grades = players.recipe.target, read_rows(players.run.verified(iteration_stage(t, "grade")).path)
    candidates = candidates_of(grades, replies, list(examples.values()), target.pass_score)
    prompts = {row_id: example.prompt_ids for row_id, example in examples.items()}
    rules = rules_of(players.recipe)
    contests = select_window(prompts, {t: candidates}, TARGETS[target.kind], rules, uses_margins=True, uses_likelihood=False).contests
    by_place = {(row["row_id"], row["replica"]): row for row in grades}
    found = Graded(examples, candidates, by_place, {(reply.row_id, reply.token_ids): reply for reply in replies})
    rows = [_pair_row(found, contest, contest.winners[i], contest.losers[j], decode) for contest in contests for i, j in contest.pairs]
    with_human = [reply for reply in replies if examples[reply.row_id].has_reply]
    counts = {
        "rows": len(rows),
        "chosen_human": sum(row["chosen_by"] == "human" for row in rows),
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "prompts": len(contests),
        "unanswered": sum(not examples[contest.row_id].has_reply for contest in contests),
        "spin_rows": len(with_human),
    }
    return counts, {"preference": rows, "spin": [_spin_row(_duel_row(examples[reply.row_id], reply, decode)) for reply in with_human]}


def _pair_row(found: Graded, contest: Contest, winner: TokenIds, loser: TokenIds, decode: Decode) -> PairRow:
    example, candidates = found.examples[contest.row_id], found.candidates[contest.row_id].replies
    won, lost = (_grade(found, contest, ids) for ids in (winner, loser))
    votes: Counter[str | None] = Counter(reply.answer for reply in candidates if reply.is_complete and reply.answer is not None)
    is_human, finish_reason = winner == example.reply_ids, found.replies[contest.row_id, loser].finish_reason
    return {
        "prompt": list(example.conversation.prompt),
        "chosen": [example.conversation.turn if is_human else _assistant_turn(decode(winner))],
        "rejected": [_assistant_turn(decode(loser))],
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


def _grade(found: Graded, contest: Contest, ids: TokenIds) -> Mapping[str, Any]:
    """The grade of a reply of the model, or of the human one; empty for a human one that the checker did not grade (random)."""
    reply = found.replies.get((contest.row_id, ids))
    return found.grades.get((contest.row_id, HUMAN if reply is None else reply.replica), {})
