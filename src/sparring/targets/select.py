"""Input and output of a target, what all targets share, and a table of grades as the candidates of every prompt."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal, get_args

from sparring.config import Recipe
from sparring.data.records import Example, Reply, TokenIds

HUMAN = -1  # replica of the human reply in a table of grades
HumanPart = Literal["fallback", "never", "mix", "only"]
# Outcome of a prompt: some replies win and others lose; only the human reply wins, and others lose; some win and none loses; no generated
# reply wins, for four reasons, and none loses to the human one
Outcome = Literal["decided", "human_wins", "all_pass", "none_pass", "ties", "few_votes", "unjudged"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)

# Replies that take no part: they repeat a winner or a loser; over max_winners; over max_losers
LEFT_OUT = ("replies_repeated", "winners_left_out", "losers_left_out")


@dataclass(frozen=True)
class Candidate:
    """A reply and its grade."""

    token_ids: TokenIds
    text: str = ""
    is_complete: bool = True  # it ended its turn and was not cut at the limit
    passed: bool | None = None  # None if it was not graded
    answer: str | None = None  # None if none was found

    @property
    def has_passed(self) -> bool:
        """Whether it is complete and the checker passed it."""
        return self.is_complete and self.passed is True

    @property
    def has_vote(self) -> bool:
        """Whether it is complete and has an answer."""
        return self.is_complete and self.answer is not None


@dataclass(frozen=True)
class Candidates:
    """All replies to one prompt, and the human reply if there is one."""

    replies: tuple[Candidate, ...]
    human: Candidate | None = None


@dataclass(frozen=True)
class Rules:
    """The options of `target` that a selection depends on; described in the recipe's `target` section."""

    human: HumanPart = "fallback"
    max_winners: int = 4
    max_losers: int = 4
    losers: Literal["all", "answered"] = "all"
    near_duplicates: float | None = None
    min_votes: float = 0.5
    weigh_votes: bool = True


@dataclass(frozen=True)
class Selection:
    """Distinct winners, the human reply first if it wins, and distinct losers."""

    winners: tuple[Candidate, ...]
    losers: tuple[Candidate, ...]
    outcome: Outcome
    weight: float = 1.0  # of the prompt's loss
    left_out: Mapping[str, int] = field(default_factory=dict)  # numbers of replies, by the names of LEFT_OUT


Target = Callable[[Candidates, Rules], Selection]


def decide(
    candidates: Candidates, rules: Rules, winners: Sequence[Candidate], losers: Sequence[Candidate], otherwise: Outcome, weight: float = 1.0
) -> Selection:
    """The selection from the replies that may win and those that lose, and the role of the human reply.

    otherwise: the outcome if no generated reply may win, unless some lose to the human one. The result does not depend on the order or
    length of the replies: if there are too many, those with the lowest hashes of their text are selected.
    """
    human = candidates.human
    may_win = [] if rules.human == "only" else [one for one in winners if one.is_complete]
    has_part = rules.human in ("mix", "only") or (rules.human == "fallback" and not may_win)
    first = [human] if human is not None and has_part else []
    won, repeated, won_left_out = _distinct(may_win, first, rules.max_winners, rules.near_duplicates)
    may_lose = [one for one in losers if rules.losers == "all" or one.has_vote]
    others = [one for one in may_lose if not any(_repeats(one, winner) for winner in won)]
    lost, repeated_too, lost_left_out = _distinct(others, [], rules.max_losers)
    counts = (repeated + repeated_too + len(may_lose) - len(others), won_left_out, lost_left_out)
    passes = any(one.is_complete for one in winners)
    outcome = _outcome(won, lost, bool(first), passes, otherwise)
    return Selection(tuple(won), tuple(lost), outcome, weight, dict(zip(LEFT_OUT, counts, strict=True)))


def _outcome(winners: Sequence[Candidate], losers: Sequence[Candidate], has_human: bool, passes: bool, otherwise: Outcome) -> Outcome:
    """has_human: the human reply is among the winners; passes: a generated reply may win, even if `human: only` lets none."""
    if winners and losers:
        return "human_wins" if has_human and len(winners) == 1 else "decided"
    return "all_pass" if winners and passes else otherwise


def _distinct(
    found: Sequence[Candidate], first: Sequence[Candidate], most: int, near: float | None = None
) -> tuple[list[Candidate], int, int]:
    """(`first`, then those of `found` that do not repeat an earlier one; at most `most` together; how many repeat one; how many others
    are left out). Those that are left out are not compared for near duplicates."""
    kept, repeated, left_out = list(first), 0, 0
    for one in sorted(found, key=lambda one: (hashlib.sha256(one.text.encode("utf-8", "surrogatepass")).hexdigest(), one.token_ids)):
        has_room = len(kept) < most
        if any(_repeats(one, other, near if has_room else None) for other in kept):
            repeated += 1
        elif has_room:
            kept.append(one)
        else:
            left_out += 1
    return kept, repeated, left_out


def _repeats(one: Candidate, other: Candidate, near: float | None = None) -> bool:
    if one.text == other.text or one.token_ids == other.token_ids:  # a chat template may have trimmed the human text
        return True
    if near is None:
        return False
    a, b = sorted((one.text, other.text))  # the ratio depends on the order
    return SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio() >= near


def rules_of(recipe: Recipe) -> Rules:
    """The options of `target` that a selection depends on."""
    return Rules(**{name: getattr(recipe.target, name) for name in Rules.__dataclass_fields__})


def candidates_of(
    rows: Iterable[Mapping[str, Any]], replies: Sequence[Reply], examples: Sequence[Example], pass_score: float
) -> dict[str, Candidates]:
    """row id -> its graded replies, in the order of the examples. rows: a table of grades, where human replies have the replica HUMAN."""
    by_place = {(reply.row_id, reply.replica): reply for reply in replies}
    # the random checker grades no human reply
    humans = {e.row_id: Candidate(e.reply_ids, e.conversation.reply) for e in examples if e.has_reply}
    others: dict[str, list[Candidate]] = defaultdict(list)
    for row in rows:
        row_id, grade = row["row_id"], (None if row["score"] is None else row["score"] >= pass_score, row["answer"])
        if row["replica"] == HUMAN:
            humans[row_id] = Candidate(humans[row_id].token_ids, row["text"], True, *grade)
        else:
            reply = by_place[row_id, row["replica"]]
            others[row_id].append(Candidate(reply.token_ids, row["text"], reply.finish_reason == "stop", *grade))
    return {example.row_id: Candidates(tuple(others[example.row_id]), humans.get(example.row_id)) for example in examples}
