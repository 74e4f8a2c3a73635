"""A game's replies as data sets that others load: preference rows for TRL, real/generated rows for the SPIN authors' code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.data.prepare import read_played
from sparring.data.records import Example, Message, Reply, TokenIds
from sparring.data.tables import read_rows, write_table
from sparring.errors import UserError
from sparring.opponent.replies import read_replies
from sparring.players import Players
from sparring.publish.contests import contest_columns, contest_counts, graded
from sparring.stage_names import iteration_stage

Columns = dict[str, Any]
Decode = Callable[[TokenIds], str]
Made = tuple[dict[str, int], dict[str, Columns]]  # counts, and a table for every shape
SHAPES = {"preference": "rows", "spin": "spin_rows"}  # shape -> its rows in the counts; of one count both have as many


def write_pairs(players: Players, target: Path) -> dict[int, dict[str, int]]:
    """Write preference/iteration_T.parquet and spin/iteration_T.parquet for every iteration T that the run's summary counts.

    Where the human reply always wins, a row is one sampled reply and it, and T's counts are its "rows", those "identical" to the human
    reply, token for token, and "truncated" ones. With another target a preference row is a pair of winner and loser, with the counts
    of `contest_counts`; "spin_rows" are replies paired with a human one, for the shape that needs one. A file without rows is not written.
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
    """Shape -> the iterations that have a file of it."""
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
    beside_human = [reply for reply in replies if examples[reply.row_id].has_reply]
    counts = {**contest_counts(found), "spin_rows": len(beside_human)}
    return counts, {"preference": contest_columns(found, decode), "spin": spin_columns(examples, beside_human, decode)}


def preference_columns(examples: Mapping[str, Example], replies: Sequence[Reply], decode: Decode) -> Columns:
    """`prompt`, `chosen`, `rejected` as lists of turns. Every game is played under a chat template, so that every row is a conversation."""
    of = [examples[reply.row_id].conversation for reply in replies]
    return {
        "prompt": [list(conversation.prompt) for conversation in of],
        "chosen": [[conversation.turn] for conversation in of],
        "rejected": [[_assistant_turn(decode(reply.token_ids))] for reply in replies],
        "row_id": [reply.row_id for reply in replies],
        "replica": [reply.replica for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
    }


def spin_columns(examples: Mapping[str, Example], replies: Sequence[Reply], decode: Decode) -> Columns:
    """`real` and `generated`, whole conversations each, which end in the two replies; nothing else, as in the authors' own files."""
    rows = preference_columns(examples, replies, decode)
    return {
        name: [[*prompt, *reply] for prompt, reply in zip(rows["prompt"], rows[side], strict=True)]
        for name, side in (("real", "chosen"), ("generated", "rejected"))
    }


def _assistant_turn(text: str) -> Message:
    return Message(role="assistant", content=text)
