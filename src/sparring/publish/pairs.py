"""A game's replies as data sets that others load: preference rows for TRL, real/generated rows for the SPIN authors' code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.data.prepare import read_examples
from sparring.data.records import Example, Message, Reply, TokenIds
from sparring.data.tables import write_table
from sparring.errors import UserError
from sparring.opponent.replies import read_replies
from sparring.players import Players
from sparring.stage_names import iteration_stage

Columns = dict[str, list[Any]]


def write_pairs(players: Players, target: Path) -> dict[int, dict[str, int]]:
    """Write preference/iteration_T.parquet and spin/iteration_T.parquet for every iteration T that the run's summary counts.

    A row is one sampled reply beside the human one to the same training prompt. Returns iteration -> counts of "rows", "identical"
    (to the human reply, token for token) and "truncated" ones.
    """
    iterations = [entry["iteration"] for entry in players.summary["iterations"]] if players.summary else []
    if not iterations:
        raise UserError("no iteration was played, so there are no generated replies", where=str(players.run.root))
    examples = {example.row_id: example for example in read_examples(players.run.verified("data").path / "train.parquet")}
    decode = players.chat().decode
    counts = {}
    for shape in SHAPES:
        (target / shape).mkdir(parents=True)
    for t in iterations:
        replies = read_replies(players.run.verified(iteration_stage(t, "generate")).path)
        for shape, columns in SHAPES.items():
            write_table(target / shape / f"iteration_{t}.parquet", columns(examples, replies, decode))
        counts[t] = {
            "rows": len(replies),
            "identical": sum(reply.token_ids == examples[reply.row_id].reply_ids for reply in replies),
            "truncated": sum(reply.finish_reason == "length" for reply in replies),
        }
    return counts


def preference_columns(examples: Mapping[str, Example], replies: Sequence[Reply], decode: Callable[[TokenIds], str]) -> Columns:
    """`prompt`, `chosen`, `rejected` as lists of turns. Every game is played under a chat template, so that every row is a conversation."""
    of = [examples[reply.row_id].conversation for reply in replies]
    return {
        "prompt": [list(conversation.prompt) for conversation in of],
        "chosen": [[conversation.turn] for conversation in of],
        "rejected": [[_said(decode(reply.token_ids))] for reply in replies],
        "row_id": [reply.row_id for reply in replies],
        "replica": [reply.replica for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
    }


def spin_columns(examples: Mapping[str, Example], replies: Sequence[Reply], decode: Callable[[TokenIds], str]) -> Columns:
    """`real` and `generated`, whole conversations each, which end in the two replies; nothing else, as in the authors' own files."""
    rows = preference_columns(examples, replies, decode)
    return {
        name: [[*prompt, *reply] for prompt, reply in zip(rows["prompt"], rows[side], strict=True)]
        for name, side in (("real", "chosen"), ("generated", "rejected"))
    }


SHAPES = {"preference": preference_columns, "spin": spin_columns}


def _said(text: str) -> Message:
    return Message(role="assistant", content=text)
