"""Scores of the answers in replies to held-out prompts: pass@1, pass@k, maj@k and the number of distinct answers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparring.checkers.grades import Checker, Grade, ask, require_few_failures
from sparring.console import log
from sparring.data.records import Example, FinishReason, Reply, TokenIds
from sparring.evaluation.metrics import MAJ_AT, PASS_AT


@dataclass(frozen=True)
class GradedReply:
    """A reply of a player with its grade."""

    text: str
    finish_reason: FinishReason
    grade: Grade


@dataclass(frozen=True)
class GradedRow:
    """A held-out row: its sampled replies, in the order of their replicas, and its greedy reply if there is one."""

    row_id: str
    replies: tuple[GradedReply, ...]
    greedy: GradedReply | None

    @property
    def all_replies(self) -> tuple[GradedReply, ...]:
        """The sampled replies and the greedy one."""
        return self.replies if self.greedy is None else (*self.replies, self.greedy)


def grade_rows(
    held_out: Sequence[Example],
    replies: Sequence[Reply],
    greedy: Sequence[Reply] | None,
    checker: Checker,
    decode: Callable[[TokenIds], str],
) -> list[GradedRow]:
    """Every reply with its grade, in the order of the held-out rows; those of one row are graded together.

    A warning names how many replies the checker could not grade. Raises UserError if they are many.
    """
    by_row: dict[str, list[Reply]] = defaultdict(list)
    for reply in [*sorted(replies, key=lambda reply: reply.replica), *(greedy or ())]:
        by_row[reply.row_id].append(reply)
    asked = ask(held_out, {row_id: [decode(reply.token_ids) for reply in own] for row_id, own in by_row.items()})
    found = []
    for one, grades in zip(asked, checker.grade(asked), strict=True):
        own = by_row[one.row_id]
        graded = [GradedReply(text, reply.finish_reason, g) for text, reply, g in zip(one.replies, own, grades, strict=True)]
        last = graded.pop() if greedy is not None else None
        found.append(GradedRow(one.row_id, tuple(graded), last))
    every = [reply for row in found for reply in row.all_replies]
    if failures := require_few_failures([one.text for one in every], [one.grade for one in every], checker.name):
        log.warning(f"target.checker could not grade {failures} of {len(every)} held-out replies: they count as wrong")
    return found


def failures_in(graded: Sequence[GradedRow]) -> int:
    """How many replies the checker could not grade."""
    return sum(reply.grade.failed for row in graded for reply in row.all_replies)


def answer_items(graded: Sequence[GradedRow], pass_score: float, must_end: bool, reads_answers: bool) -> dict[str, list[float]]:
    """metric -> its value for every row. exact_match is the share of a row's replies that pass (pass@1), so that its mean over rows has
    the error of a mean over prompts. must_end: a reply that was cut at the limit does not pass; reads_answers: the checker's."""

    def has_passed(reply: GradedReply) -> bool:
        is_whole = reply.finish_reason == "stop" or not must_end
        return is_whole and reply.grade.score is not None and reply.grade.score >= pass_score

    passed = [[has_passed(reply) for reply in row.replies] for row in graded]
    items = {"exact_match": [sum(row) / len(row) for row in passed]}
    if graded[0].greedy is not None:
        items["exact_match_greedy"] = [float(row.greedy is not None and has_passed(row.greedy)) for row in graded]
    k = len(graded[0].replies)
    if k > 1:
        items |= {f"{PASS_AT}{n}": [pass_at(len(row), sum(row), n) for row in passed] for n in _sizes(k)}
        if reads_answers:  # even if no reply has an answer: such a player must be comparable with the start
            items |= _answers(graded, passed, k)
    return items


def pass_at(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k replies is right, from `right` of `samples` (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_is_right(answers: Sequence[str | None], passed: Sequence[bool]) -> float:
    """1 if the answer with the most votes is right, else 0; for a tie, the share of the leading answers that are right.

    answers: that of each reply, None for a reply without a vote. 0 if no reply has a vote.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    leading = [answer for answer, count in votes.items() if count == max(votes.values())]
    right = {answer for answer, is_right in zip(answers, passed, strict=True) if is_right}
    return sum(answer in right for answer in leading) / len(leading) if leading else 0.0


def graded_columns(graded: Sequence[GradedRow]) -> dict[str, list[Any]]:
    """A table of all replies with their grades; `replica` is null for the greedy one."""
    rows = [
        {"row_id": row.row_id, "replica": replica, "text": reply.text, "finish_reason": reply.finish_reason, **vars(reply.grade)}
        for row in graded
        for replica, reply in [*enumerate(row.replies), *([(None, row.greedy)] if row.greedy else [])]
    ]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _sizes(k: int) -> list[int]:
    """The powers of two up to k, and k."""
    return sorted({*(2**n for n in range(1, k.bit_length()) if 2**n <= k), k})


def _answers(graded: Sequence[GradedRow], passed: Sequence[Sequence[bool]], k: int) -> dict[str, list[float]]:
    """Metrics of the votes; a reply that was cut at the limit has no vote."""
    voted = [[reply.grade.answer if reply.finish_reason == "stop" else None for reply in row.replies] for row in graded]
    counted = [Counter(answer for answer in row if answer is not None) for row in voted]
    return {
        f"{MAJ_AT}{k}": [majority_is_right(answers, own) for answers, own in zip(voted, passed, strict=True)],
        "vote_share": [max(votes.values(), default=0) / k for votes in counted],
        "distinct_answers": [float(len(votes)) for votes in counted],
    }
