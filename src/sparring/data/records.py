"""The data between stages: typed records, joined by row id and never by position."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

TokenIds = tuple[int, ...]
FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """`reasoning_content`: the assistant's reasoning before its text, if a row stores it separately."""

    role: str
    content: str
    reasoning_content: NotRequired[str]


def make_message(role: str, content: str, reasoning: str | None = None) -> Message:
    """The turn as chat templates take it, with `reasoning_content` if there is any."""
    message = Message(role=role, content=content)
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


@dataclass(frozen=True)
class Conversation:
    """One row before tokenisation: everything up to the last assistant turn, and that turn."""

    prompt: tuple[Message, ...]
    reply: str  # "" for a prompt without a reply
    answer: str | None = field(default=None, compare=False)  # the text of the row's answer column
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)  # further columns for a checker's function
    reasoning: str = ""  # the assistant's, before the reply, if the row stores it separately

    @property
    def turn(self) -> Message:
        """The reply as the assistant's turn."""
        return make_message("assistant", self.reply, self.reasoning)

    @property
    def text(self) -> str:
        """The reply for display, after its reasoning."""
        return f"{self.reasoning}\n\n{self.reply}" if self.reasoning else self.reply

    @property
    def prompt_key(self) -> str:
        """Hash of the prompt alone, which decides the train / held-out split."""
        return _digest([list(_parts(message)) for message in self.prompt])

    @property
    def prompt_words(self) -> str:
        """Hash of the words of every turn, without blank turns: equal for prompts with the same words and other white space."""
        turns = [[" ".join(part.split()) for part in _parts(message)] for message in self.prompt]
        return _digest([turn for turn in turns if any(turn[1:])])

    @property
    def row_id(self) -> str:
        """Hash of prompt and reply: the same row has the same id in every subset and every run."""
        return _digest([self.prompt_key, *list(_parts(self.turn))[1:]])[:16]


@dataclass(frozen=True)
class Example:
    """One tokenised row."""

    row_id: str
    conversation: Conversation
    prompt_ids: TokenIds  # exactly the prefix under which replies are sampled and scored
    reply_ids: TokenIds  # empty for a prompt without a human reply

    @property
    def has_reply(self) -> bool:
        """Whether the row has a human reply."""
        return bool(self.reply_ids)


@dataclass(frozen=True)
class Reply:
    """One sampled reply. `finish_reason` is "length" when it was cut at the limit; it then has no end-of-turn token.

    `logps`: the engine's log-prob of every token, of the model's plain distribution (temperature 1, whole vocabulary), if requested;
    they are compared with the scorer's and not stored.
    """

    row_id: str
    replica: int
    token_ids: TokenIds
    finish_reason: FinishReason
    logps: tuple[float, ...] | None = field(default=None, compare=False)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Reply:
        """From a row of a shard of replies."""
        return cls(row["row_id"], row["replica"], tuple(row["token_ids"]), row["finish_reason"])


@dataclass(frozen=True)
class Duel:
    """The human reply against the opponent's k replies to the same prompt (a tree with k + 1 branches)."""

    row_id: str
    source_iteration: int
    prompt_ids: TokenIds
    real_ids: TokenIds
    generated_ids: tuple[TokenIds, ...]

    @property
    def duel_id(self) -> str:
        """Row id and source iteration: unique within a game."""
        return f"{self.row_id}@{self.source_iteration}"

    @property
    def is_all_identical(self) -> bool:
        """Every reply of the opponent equals the human one."""
        return all(ids == self.real_ids for ids in self.generated_ids)

    @property
    def has_no_margin(self) -> bool:
        """All replies are the same: a loss on margins between them has an exactly zero gradient."""
        return self.is_all_identical


@dataclass(frozen=True)
class Triplet(Duel):
    """A duel of T-SPIN: the k replies of the opponent, paired with k replies of the start of the game to the same prompt."""

    start_ids: tuple[TokenIds, ...]

    @property
    def has_no_margin(self) -> bool:
        """All replies, those of the start included, equal the human one."""
        return self.is_all_identical and all(ids == self.real_ids for ids in self.start_ids)


@dataclass(frozen=True)
class Contest:
    """The replies to one prompt that win and those that lose: a tree with one branch each, winners first."""

    row_id: str
    source_iteration: int
    prompt_ids: TokenIds
    winners: tuple[TokenIds, ...]
    losers: tuple[TokenIds, ...]
    pairs: tuple[tuple[int, int], ...]  # (index of the winner, of the loser); without pairs there are only winners, for their likelihood
    weight: float  # multiplies the loss of the whole contest

    @property
    def duel_id(self) -> str:
        """Row id and source iteration: unique within a game."""
        return f"{self.row_id}@{self.source_iteration}"


class PromptSet:
    """Prompts that are recognised in other rows: by their token ids, which different texts can render to (a template that trims blanks),
    and by their words."""

    def __init__(self, examples: Iterable[Example]) -> None:
        found = [(example.prompt_ids, example.conversation.prompt_words) for example in examples]
        self.ids, self.words = {ids for ids, _ in found}, {words for _, words in found}

    def has(self, conversation: Conversation, ids: TokenIds) -> bool:
        """Whether the conversation's prompt is one of them. ids: its tokens."""
        return ids in self.ids or conversation.prompt_words in self.words


def is_empty(ids: TokenIds, stop_ids: frozenset[int]) -> bool:
    """Whether the reply is only the end-of-turn token."""
    return all(token in stop_ids for token in ids)


def _parts(message: Message) -> Iterator[str]:
    """The texts that a turn's hash covers; a turn without reasoning has no third one, so that row ids equal those of earlier versions."""
    yield from (message["role"], message["content"])
    if "reasoning_content" in message:
        yield message["reasoning_content"]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()
