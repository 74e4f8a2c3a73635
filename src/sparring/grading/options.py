"""The checker that a command's options name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sparring.checkers.grades import Checker
from sparring.checkers.make import CheckerSettings, make_checker
from sparring.config import Recipe
from sparring.errors import UserError
from sparring.stages.checking import checker_settings

PATTERN = "--pattern"


@contextlib.contextmanager
def checker_of(settings: CheckerSettings, option: str) -> Iterator[Checker]:
    """The checker, closed at the end. `option`: what named it. Raises UserError, in words of the options, where it cannot be had, and
    if a user's function fails on everything."""
    words = {"target.checker": option, "evaluate.answer_pattern": PATTERN}
    with in_words_of(words), contextlib.closing(make_checker(settings)) as checker:
        yield checker


def settings_for(recipe: Recipe | None, name: str | None, pattern: str | None, option: str) -> CheckerSettings:
    """A checker with the options of a recipe, where there is one.

    name: None for the one that grades the held-out replies of the recipe; pattern: None for the recipe's, empty for none; option: what gave
    the name. Raises UserError for the control `random`.
    """
    if name == "random":
        raise UserError("random shuffles the scores of another checker, as a control for games; it cannot grade", where=option)
    of_recipe = recipe and checker_settings(recipe, name or recipe.target.grading_checker)
    settings = of_recipe or CheckerSettings(name or "exact", None)
    return settings if pattern is None else replace(settings, answer_pattern=pattern or None)


@contextlib.contextmanager
def in_words_of(options: Mapping[str, str]) -> Iterator[None]:
    """A UserError that names keys of a recipe names the command's options instead. `options`: key -> option."""
    try:
        yield
    except UserError as error:
        parts = {"what": error.what, "where": error.where, "remedy": error.remedy}
        for key, option in options.items():
            parts = {name: text and text.replace(key, option) for name, text in parts.items()}
        raise UserError(parts["what"] or "", where=parts["where"], remedy=parts["remedy"]) from None


def described(fingerprint: Mapping[str, Any]) -> str:
    """A checker in words: its name and what it goes by."""
    kind = fingerprint["kind"]
    if kind == "own":
        kind = f"{fingerprint['path']}:{fingerprint['function']} (sha256 {fingerprint['sha256'][:12]})"
    pattern, tolerance = fingerprint.get("answer_pattern"), fingerprint.get("tolerance")
    return kind + (f", pattern {pattern!r}" if pattern is not None else "") + (f", tolerance {tolerance:g}" if tolerance else "")
