"""Creates a checker from its settings or from a recipe: built in, a user's own function in separate processes, or a random one."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from sparring.checkers.builtin import NumberChecker, TextChecker, chosen_letter, leading_letter, read_text
from sparring.checkers.grades import Checker, Grade, GradingRequest, ask, find_answer, require_few_failures
from sparring.checkers.math import MathChecker
from sparring.checkers.pool import Pool, Result
from sparring.checkers.worker import SIGNATURES, Item
from sparring.config import Recipe
from sparring.config.sections import BUILT_IN_CHECKERS
from sparring.data.records import Example, Reply, TokenIds
from sparring.errors import UserError, nearest
from sparring.own_code import OwnCode

WHERE = "target.checker"
TRIED = 16  # replies: a function that fails on all of the first so many is not called again


class OwnChecker(Checker):
    """Grades by `path/to/file.py:function`. The answer of a grade is what the pattern finds, where there is one.

    Raises UserError when the file or the function cannot be loaded.
    """

    def __init__(self, name: str, pattern: re.Pattern[str] | None, seconds: float, memory_mb: int, workers: int) -> None:
        code = OwnCode.read(name, WHERE)
        self.name, self._pattern = name, pattern
        self.reads_answers = pattern is not None
        self.fingerprint: dict[str, Any] = {
            "kind": "own",
            "path": code.path,
            "function": code.function,
            "sha256": code.sha256,
            "answer_pattern": pattern.pattern if pattern else None,
        }
        self._pool = Pool({"own": {"path": code.path, "source": code.source, "name": code.function}}, seconds, memory_mb, workers)
        if trouble := self._pool.load():
            raise code.explained(trouble, f"a checker is {SIGNATURES}", self._pool.remedy(trouble))

    def grade(self, asked: Sequence[GradingRequest]) -> list[list[Grade]]:
        """Raises UserError if none of the first TRIED replies can be graded: with a time-out for each reply, all would take days."""
        items: list[Item] = []
        for one in asked:
            columns = {**one.columns, "answer": one.answer, "human_reply": one.human, "row_id": one.row_id}
            items += [{"prompt": list(one.prompt), "completion": reply, "columns": columns} for reply in one.replies]
        first = self._grades(items[:TRIED])
        self.works = self.works or not all(grade.failed for grade in first)
        if len(first) == TRIED and not self.works:
            require_few_failures([item["completion"] for item in items[:TRIED]], first, self.name)
        grades = iter([*first, *self._grades(items[TRIED:])])
        return [[next(grades) for _ in one.replies] for one in asked]

    def close(self) -> None:
        self._pool.close()

    def _grades(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item["completion"], result) for item, result in zip(items, self._pool.answer(items), strict=True)]

    def _grade(self, reply: str, result: Result) -> Grade:
        if "failed" in result:
            return Grade(None, None, result["failed"], failed=True)
        answer = find_answer(self._pattern, reply) if self._pattern else None
        score = result["score"]
        return Grade(score, answer, "no score given" if score is None else f"scored {score:g}")


class RandomChecker(Checker):
    """Shuffles the scores of one call among its replies, so that the pass rate stays the same.

    Replies without a score or an answer, and those that were cut at the limit and cannot win, keep their grade: winners are as many as
    before. The shuffle depends on the seed and the rows, not on their order.
    """

    name = "random"
    shuffles = True

    def __init__(self, like: Checker, seed: int) -> None:
        self._like, self._seed = like, seed
        self.reads_answers = like.reads_answers
        self.fingerprint: dict[str, Any] = {"kind": "random", "seed": seed, "of": like.fingerprint, "cut": "not shuffled"}

    def grade(self, asked: Sequence[GradingRequest]) -> list[list[Grade]]:
        grades = self._like.grade(asked)
        scored = [(p, r) for p, prompt in enumerate(grades) for r, grade in enumerate(prompt) if grade.score is not None]
        whole = [(p, r) for p, r in scored if r not in asked[p].cut]
        slots = [(p, r) for p, r in whole if grades[p][r].answer is not None or not self.reads_answers]
        by_name = sorted(slots, key=lambda slot: (asked[slot[0]].row_id, slot[1], self._random_key(asked, slot)))
        by_chance = sorted(slots, key=lambda slot: self._random_key(asked, slot))
        shuffled = [list(prompt) for prompt in grades]
        for (p, r), (q, s) in zip(by_name, by_chance, strict=True):
            shuffled[p][r] = replace(grades[p][r], score=grades[q][s].score, reason="assigned at random")
        return shuffled

    def expected(self, asked: GradingRequest) -> str | None:
        return self._like.expected(asked)

    def close(self) -> None:
        self._like.close()

    def _random_key(self, asked: Sequence[GradingRequest], slot: tuple[int, int]) -> str:
        prompt, reply = slot
        words = [self._seed, asked[prompt].row_id, reply, asked[prompt].replies[reply]]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()


@dataclass(frozen=True)
class CheckerSettings:
    """The settings that decide how replies are graded."""

    kind: str  # one of BUILT_IN_CHECKERS, or "path/to/file.py:function"
    answer_pattern: str | None  # finds the answer in a reply: its last match that is not empty, group 1 if it has one
    tolerance: float = 0.0  # for number: the absolute difference that still counts as equal
    random_like: CheckerSettings | None = None  # for random: the checker whose scores are shuffled, by `seed`
    timeout_seconds: float = 10.0  # wall time of one call of a user's function, or of math
    memory_mb: int = 2048  # what a process of such a function may hold in memory, in MiB
    seed: int = 0
    workers: int = 1  # how many such processes there are


def make_checker(settings: CheckerSettings) -> Checker:
    """The checker, ready to grade. Raises UserError for everything that can be known before its first use."""
    kind, like = settings.kind, settings.random_like
    if ":" not in kind and kind not in BUILT_IN_CHECKERS:
        near = nearest(kind, BUILT_IN_CHECKERS)
        remedy = f"did you mean {near}?" if near else f"one of {', '.join(BUILT_IN_CHECKERS)}, or path/to/file.py:function"
        raise UserError(f"there is no checker {kind!r}", where=WHERE, remedy=remedy)
    if not (math.isfinite(settings.tolerance) and settings.tolerance >= 0):
        raise UserError(f"the tolerance {settings.tolerance} must be a number, 0 or more", where=WHERE)
    if settings.tolerance and kind != "number":
        raise UserError(f"only the checker number has a tolerance; it is {settings.tolerance}", where=WHERE)
    pattern = _compiled(settings.answer_pattern)
    if kind == "random":
        if like is None or like.kind == "random":
            raise UserError("random needs another checker, whose scores it shuffles among the replies", where=WHERE)
        return RandomChecker(make_checker(like), settings.seed)
    if kind == "exact":
        if pattern is None:
            remedy = "set it to a regular expression that finds the answer in a reply; '(?s).+' takes the whole reply"
            raise UserError("exact needs evaluate.answer_pattern", where=WHERE, remedy=remedy)
        return TextChecker("exact", read_text, pattern)
    if kind == "number":
        return NumberChecker(pattern, settings.tolerance)
    if kind == "choice":
        # what a pattern finds must start with the letter as an option; a whole reply may say that its answer is the letter
        return TextChecker("choice", leading_letter if pattern else chosen_letter, pattern)
    limits = (settings.timeout_seconds, settings.memory_mb, settings.workers)
    return MathChecker(pattern, *limits) if kind == "math" else OwnChecker(kind, pattern, *limits)


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(f"evaluate.answer_pattern {pattern!r} is not a regular expression: {error}", where=WHERE) from error


def open_checker(recipe: Recipe, name: str | None) -> closing[Checker]:
    """The checker called `name` with the recipe's options; closed on exit. Raises UserError if it is unknown or cannot be loaded."""
    return closing(make_checker(checker_settings(recipe, name)))


def held_out_checker(recipe: Recipe) -> AbstractContextManager[Checker | None]:
    """The checker of held-out replies: the recipe's checker, else the answer pattern; None if there is neither."""
    name = recipe.target.grading_checker
    if name is None and recipe.evaluate.answer_pattern is None:
        return nullcontext()
    return open_checker(recipe, name)


def checker_settings(recipe: Recipe, name: str | None) -> CheckerSettings:
    """The recipe's options for the checker called `name`; None is the checker `exact` with `evaluate.answer_pattern`."""
    target = recipe.target
    return CheckerSettings(
        kind=name or "exact",
        answer_pattern=recipe.evaluate.answer_pattern,
        tolerance=target.tolerance if name == "number" else 0.0,
        random_like=checker_settings(recipe, target.random_like) if name == "random" else None,
        timeout_seconds=target.timeout_seconds,
        memory_mb=target.memory_mb,
        seed=recipe.seed,
        workers=target.workers,
    )


def asked_of(
    examples: Sequence[Example], replies: Sequence[Reply], decode: Callable[[TokenIds], str], with_human: bool
) -> list[GradingRequest]:
    """The inputs of a checker, one per prompt in the order of the examples: the human reply first, if there is one and `with_human`,
    then the replies in the order of their replicas."""
    texts: dict[str, list[str]] = defaultdict(list)
    cut: dict[str, set[int]] = defaultdict(set)
    if with_human:
        texts |= {example.row_id: [example.conversation.reply] for example in examples if example.has_reply}
    for reply in sorted(replies, key=lambda reply: reply.replica):
        if reply.finish_reason == "length":
            cut[reply.row_id].add(len(texts[reply.row_id]))
        texts[reply.row_id].append(decode(reply.token_ids))
    return [replace(one, cut=frozenset(cut[one.row_id])) for one in ask(examples, texts)]
