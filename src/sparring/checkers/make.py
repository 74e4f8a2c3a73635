"""Creates a checker from its settings."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sparring.checkers.builtin import NumberChecker, choice_checker, exact_checker
from sparring.checkers.grades import Checker
from sparring.checkers.math import MathChecker
from sparring.checkers.own import WHERE, OwnChecker
from sparring.checkers.shuffled import RandomChecker
from sparring.errors import UserError, nearest

KINDS = ("exact", "number", "choice", "math", "random")


@dataclass(frozen=True)
class CheckerSettings:
    """The settings that decide how replies are graded.

    kind: one of KINDS, or "path/to/file.py:function"
    answer_pattern: regular expression that finds the answer in a reply: its last match that is not empty, group 1 if it has one
    tolerance: for number: the absolute difference that still counts as equal
    random_like: for random: the checker whose scores are shuffled, by `seed`
    timeout_seconds: wall time of one call of a user's function, or of math
    memory_mb: what a process of such a function may hold in memory, in MiB
    workers: how many such processes there are
    """

    kind: str
    answer_pattern: str | None
    tolerance: float = 0.0
    random_like: CheckerSettings | None = None
    timeout_seconds: float = 10.0
    memory_mb: int = 2048
    seed: int = 0
    workers: int = 1


def make_checker(settings: CheckerSettings) -> Checker:
    """The checker, ready to grade. Raises UserError for everything that can be known before its first use."""
    kind = settings.kind
    if ":" not in kind and kind not in KINDS:
        near = nearest(kind, KINDS)
        remedy = f"did you mean {near}?" if near else f"one of {', '.join(KINDS)}, or path/to/file.py:function"
        raise UserError(f"there is no checker {kind!r}", where=WHERE, remedy=remedy)
    _check_tolerance(settings)
    pattern = _compiled(settings.answer_pattern)
    if kind == "random":
        return RandomChecker(make_checker(_shuffled_settings(settings)), settings.seed)
    if kind == "exact":
        return exact_checker(_required(pattern))
    if kind == "number":
        return NumberChecker(pattern, settings.tolerance)
    if kind == "choice":
        return choice_checker(pattern)
    limits = (settings.timeout_seconds, settings.memory_mb, settings.workers)
    return MathChecker(pattern, *limits) if kind == "math" else OwnChecker(kind, pattern, *limits)


def _check_tolerance(settings: CheckerSettings) -> None:
    if not (math.isfinite(settings.tolerance) and settings.tolerance >= 0):
        raise UserError(f"the tolerance {settings.tolerance} must be a number, 0 or more", where=WHERE)
    if settings.tolerance and settings.kind != "number":
        raise UserError(f"only the checker number has a tolerance; it is {settings.tolerance}", where=WHERE)


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(f"evaluate.answer_pattern {pattern!r} is not a regular expression: {error}", where=WHERE) from error


def _required(pattern: re.Pattern[str] | None) -> re.Pattern[str]:
    if pattern is None:
        remedy = "set it to a regular expression that finds the answer in a reply; '(?s).+' takes the whole reply"
        raise UserError("exact needs evaluate.answer_pattern", where=WHERE, remedy=remedy)
    return pattern


def _shuffled_settings(settings: CheckerSettings) -> CheckerSettings:
    if settings.random_like is None or settings.random_like.kind == "random":
        raise UserError("random needs another checker, whose scores it shuffles among the replies", where=WHERE)
    return settings.random_like
