"""Sampling as a resumable job: prompts in, committed shards of replies out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparring.data.records import Example, Reply, TokenIds
from sparring.data.tables import items_done, read_rows, run_parts
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.policy.ranks import from_main
from sparring.progress import PhaseProgress, progress
from sparring.rundir import read_json, write_json

CHECK = "logp_check.json"
Check = Callable[[Sequence[Prompt], Sequence[Reply]], dict[str, Any]]


def sample_examples(
    folder: Path,
    examples: Sequence[Example],
    engine: Callable[[], Engine],
    stream: Stream,
    replicas: int,
    shard_rows: int,
    phase: str,
    check: Check | None = None,
    decode: Callable[[TokenIds], str] | None = None,
) -> list[Reply]:
    """Sample `replicas` replies per example into shards of `shard_rows` prompts under `folder`; finished shards are kept.

    `engine` is only called if something is left to sample, so a finished folder loads no model. `check` gets the first shard of every
    attempt, with the engine's log-probs, before it is committed; its result of the first attempt is stored in CHECK. With `decode` a
    reply is shown from time to time.
    """
    prompts = [Prompt(example.row_id, replica, example.prompt_ids) for example in examples for replica in range(replicas)]
    done = from_main(lambda: items_done(folder))
    if done < len(prompts):
        ready = engine()
        with progress(phase, len(prompts), "replies", done) as shown:

            def work(parts: Sequence[Sequence[Prompt]]) -> Iterator[tuple[int, dict[str, list[Any]]]]:
                for number, replies in ready.sample_parts(parts, stream, logps=check is not None):
                    if check is not None and number == 0:
                        from_main(partial(_check_first, folder, check, parts[0], replies))
                    shown.advance(len(replies), tokens_per_reply=sum(len(r.token_ids) for r in replies) / len(replies))
                    if decode is not None and shown.wants_sample:
                        _show(shown, examples, replies[0], decode)
                    yield number, as_columns(replies)

            run_parts(folder, prompts, shard_rows * replicas, work, from_main)
    return from_main(lambda: read_replies(folder))


def _show(shown: PhaseProgress, examples: Sequence[Example], reply: Reply, decode: Callable[[TokenIds], str]) -> None:
    asked = next(example for example in examples if example.row_id == reply.row_id)
    shown.sample(asked.conversation.prompt[-1]["content"], decode(reply.token_ids))


def checked_facts(folder: Path) -> dict[str, Any]:
    """The result of the check of the engine's log-probs, as a stage's facts."""
    return {"logp_check": read_json(folder / CHECK)} if (folder / CHECK).exists() else {}


def _check_first(folder: Path, check: Check, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> None:
    """Check the first shard of an attempt. A killed and resumed run stores the same result as an uninterrupted one."""
    found = check(prompts, replies)
    if not (folder / CHECK).exists():
        write_json(folder / CHECK, found)


def as_columns(replies: Sequence[Reply]) -> dict[str, list[Any]]:
    """The replies as columns of a shard; `logps` are not stored."""
    return {
        "row_id": [reply.row_id for reply in replies],
        "replica": [reply.replica for reply in replies],
        "token_ids": [list(reply.token_ids) for reply in replies],
        "finish_reason": [reply.finish_reason for reply in replies],
    }


def read_replies(folder: Path) -> list[Reply]:
    """All replies of a folder of shards."""
    return [Reply.of_row(row) for row in read_rows(folder)]
