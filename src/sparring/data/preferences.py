"""Labelled preference pairs, `prompt` / `chosen` / `rejected`, as duels: the chosen reply takes the place of the human one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import DataSection, PairsSection
from sparring.data.chat import Chat
from sparring.data.conversations import Loaded, is_empty, load, none_left, to_conversation, tokenised
from sparring.data.records import Conversation, Duel, PromptSet
from sparring.data.shapes import PAIR_SHAPE, BadRows, Row
from sparring.data.sources import open_table
from sparring.data.tables import read_rows as read_table
from sparring.data.tables import write_table
from sparring.data.turns import FIX_ROW, ROLES, Cells, Reading, are_turns, unpacked
from sparring.errors import UserError

# outcomes of the pairs; `read` is the sum of those that follow it
PAIR_COUNTS = ("read", "empty", "duplicates", "same_reply", "too_long", "prompt_held_out", "not_in_subset", "untrained", "bad", "pairs")


@dataclass(frozen=True)
class Pair:
    """Two replies to the same turns, and their place in the source."""

    where: str
    chosen: Conversation
    rejected: Conversation

    @property
    def row_id(self) -> str:
        """Hash of the row ids of both conversations."""
        return hashlib.sha256(f"{self.chosen.row_id}/{self.rejected.row_id}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PreparedPairs:
    """`counts`: PAIR_COUNTS. `notices`: the decisions, one sentence each."""

    duels: list[Duel]
    counts: dict[str, int]
    notices: list[str]


def load_pairs(section: PairsSection, data: DataSection) -> Loaded[Pair]:
    """Every row as a pair, without those whose chosen or rejected reply is not to be trained on.

    Raises UserError with file and line or row for an unreadable one, unless `data.on_bad_row` drops it.
    """
    bad = BadRows(data.on_bad_row == "drop")
    table = open_table(section, 0, bad)
    for name in (*PAIR_SHAPE.required, *section.columns):
        if (own := section.columns.get(name, name)) not in table.columns:
            what = f"preference pairs need a column {own!r}; the columns are: {', '.join(table.columns)}"
            remedy = f"name your own in {section.option}.columns, for example {{{name}: my_{name}}}"
            raise UserError(what, where=table.source, remedy=remedy)
    return load(section, data, table, bad, PAIR_SHAPE, _pair)


def prepare_pairs(section: PairsSection, limits: DataSection, chat: Chat, seed: int, held_out: PromptSet) -> PreparedPairs:
    """The pairs as duels with one losing reply, tokenised like all other rows, within the lengths that `limits` allows.

    held_out: prompts for evaluation; their pairs are left out. Raises UserError if no pair is left.
    """
    loaded = load_pairs(section, limits)
    counts = {name: loaded.counts.get(name, 0) for name in PAIR_COUNTS}
    tokenise = partial(_tokenised, limits=limits, chat=chat, held_out=held_out)
    duels = tokenised(_distinct(loaded.rows, counts), section.max_examples, seed, tokenise, counts, loaded.bad)
    counts["pairs"] = len(duels)
    if not duels:
        raise none_left("pair is left to train on", counts, f"{section.option} ({section.named})")
    return PreparedPairs(duels, counts, [*loaded.notices, *loaded.bad.notices])


def write_pairs(path: Path, duels: Sequence[Duel]) -> None:
    """Write the duels' token ids to a parquet file; of the generated replies only the first, as `rejected_ids`."""
    columns: dict[str, list[Any]] = {
        "row_id": [duel.row_id for duel in duels],
        "prompt_ids": [list(duel.prompt_ids) for duel in duels],
        "chosen_ids": [list(duel.real_ids) for duel in duels],
        "rejected_ids": [list(duel.generated_ids[0]) for duel in duels],
    }
    write_table(path, columns)


def read_pairs(path: Path) -> list[Duel]:
    """Read the pairs of `write_pairs`."""
    return [
        Duel(row["row_id"], 0, tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), (tuple(row["rejected_ids"]),))
        for row in read_table(path)
    ]


def _pair(row: Row, reading: Reading, where: str) -> Pair | None:
    own = {name: reading.columns.get(name, name) for name in ("prompt", "chosen", "rejected")}
    row = {**row, **{name: unpacked(row.get(name), reading) for name in own.values()}}
    prompt, chosen = row[own["prompt"]], row[own["chosen"]]
    is_whole = _holds_prompt(prompt, chosen)
    better, worse = (_side(row, reading, name, is_whole, where) for name in ("chosen", "rejected"))
    if better is None or worse is None:
        return None
    if better.prompt != worse.prompt:
        raise UserError("chosen and rejected do not answer the same turns", where=where, remedy=FIX_ROW)
    asked = [turn["content"] for turn in better.prompt]
    if is_whole and isinstance(prompt, str) and prompt not in asked:
        raise UserError("prompt is none of the turns of chosen", where=where, remedy="fix the row, or leave the prompt out")
    return Pair(where, better, worse)


def _holds_prompt(prompt: Any, chosen: Any) -> bool:
    """Whether the replies are whole conversations: there is no prompt, or they begin with a turn that is not the assistant's."""
    if prompt is None:
        return True
    if not are_turns(chosen) or not isinstance(chosen[0], dict):
        return False
    if isinstance(prompt, list):
        return chosen[: len(prompt)] == prompt
    return ROLES.get(str(chosen[0].get("role", chosen[0].get("from"))).lower()) in ("system", "user")


def _side(row: Row, reading: Reading, name: str, is_whole: bool, where: str) -> Conversation | None:
    """One reply with its turns. is_whole: the column holds the whole conversation, not only the reply to the prompt."""
    own = reading.columns.get(name, name)
    context = {standard: column for standard, column in reading.columns.items() if standard in ("system", "history")}
    if not is_whole:
        columns = {"prompt": reading.columns.get("prompt", "prompt"), "completion": own, **context}
        return to_conversation(row, "prompt_completion", replace(reading, columns=columns), where)
    if isinstance(row.get(own), str):
        remedy = "give a column prompt: plain texts do not say where the prompt ends"
        raise UserError(f"{name} is plain text and the row has no prompt", where=where, remedy=remedy)
    if Cells(row, reading, where).history():
        raise UserError(f"the row has a history, but {name} already holds the whole conversation", where=where, remedy=FIX_ROW)
    return to_conversation(row, "messages", replace(reading, columns={"messages": own, **context}), where)


def _distinct(pairs: Sequence[Pair], counts: dict[str, int]) -> dict[str, Pair]:
    """The pairs by their ids. Drops pairs without information: an empty prompt or chosen reply, two equal replies, duplicates."""
    kept: dict[str, Pair] = {}
    for pair in pairs:
        if is_empty(pair.chosen):
            counts["empty"] += 1
        elif pair.chosen.turn == pair.rejected.turn:
            counts["same_reply"] += 1
        elif pair.row_id in kept:
            counts["duplicates"] += 1
        else:
            kept[pair.row_id] = pair
    return kept


def _tokenised(pair: Pair, limits: DataSection, chat: Chat, held_out: PromptSet) -> Duel | str:
    """The duel, or what drops it: one of PAIR_COUNTS."""
    (prompt, chosen), (_, rejected) = (chat.encode(side, where=pair.where) for side in (pair.chosen, pair.rejected))
    if held_out.has(pair.chosen, prompt):
        return "prompt_held_out"
    longest = limits.max_reply_tokens
    if len(prompt) > limits.max_prompt_tokens or (limits.too_long == "drop" and max(len(chosen), len(rejected)) > longest):
        return "too_long"
    chosen, rejected = chosen[:longest], rejected[:longest]  # a reply that is cut has no end-of-turn token
    return Duel(pair.row_id, 0, prompt, chosen, (rejected,)) if chosen != rejected else "same_reply"
