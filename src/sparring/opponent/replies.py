"""Sampling as a resumable job: prompts in, committed shards of replies out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparring.console import progress
from sparring.data.records import Example, Reply
from sparring.data.tables import items_done, read_rows, run_shards
from sparring.opponent.protocol import Engine, Prompt, Stream


def sample_examples(
    folder: Path, examples: Sequence[Example], engine: Callable[[], Engine], stream: Stream, replicas: int, shard_rows: int, phase: str
) -> list[Reply]:
    """Draw `replicas` replies per example into shards of `shard_rows` prompts under `folder`; shards already there are kept.

    `engine` is only called when there is something left to draw, so a finished folder loads no model.
    """
    prompts = [Prompt(example.row_id, replica, example.prompt_ids) for example in examples for replica in range(replicas)]
    done = items_done(folder)
    if done < len(prompts):
        ready = engine()
        with progress(phase, len(prompts), "replies", done) as shown:

            def work(part: Sequence[Prompt]) -> dict[str, list[Any]]:
                replies = ready.sample(part, stream)
                shown.advance(len(part), tokens_per_reply=sum(len(r.token_ids) for r in replies) / len(replies))
                return as_columns(replies)

            run_shards(folder, prompts, shard_rows * replicas, work)
    return read_replies(folder)


def as_columns(replies: Sequence[Reply]) -> dict[str, list[Any]]:
    return {
        "row_id": [reply.row_id for reply in replies],
        "replica": [reply.replica for reply in replies],
        "token_ids": [list(reply.token_ids) for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
    }


def read_replies(folder: Path) -> list[Reply]:
    return [Reply(row["row_id"], row["replica"], tuple(row["token_ids"]), row["finish_reason"]) for row in read_rows(folder)]
