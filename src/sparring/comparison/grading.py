"""When two runs' scores of answers can be held against each other: they were graded by the same rule, over as many replies."""

from __future__ import annotations

from typing import Any

from sparring.config import Recipe
from sparring.own_code import is_own_code
from sparring.rundir import RunDir
from sparring.stage_names import START, evaluate_stage

BY_ANSWER = ("exact_match", "exact_match_greedy")
# what k replies to a prompt say depends on k, but for an unbiased estimate of the same number
OF_ALL_REPLIES = ("vote_share", "distinct_answers")
SAMPLED = ("pass_at_", "maj_at_")


def is_sampled(metric: str) -> bool:
    """One that names its number of replies: pass_at_8, maj_at_8."""
    return metric.startswith(SAMPLED)


def is_graded(metric: str) -> bool:
    """Whether a checker, or the answer pattern, has a say in it."""
    return metric in (*BY_ANSWER, *OF_ALL_REPLIES) or is_sampled(metric)


def grading_of(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    """How the held-out replies of a run were graded. A user's function is identified by its source text, not its path."""
    inputs = run.inputs_of(evaluate_stage(START)) or {}
    pattern = recipe.evaluate.answer_pattern
    exact = None if pattern is None else {"kind": "exact", "answer_pattern": pattern}  # of a run from before there were checkers
    checker = inputs.get("checker", exact) or {}
    return {
        "checker": {name: value for name, value in checker.items() if name not in ("path", "answer_pattern")},
        "answer_pattern": checker.get("answer_pattern"),
        "pass_score": inputs.get("pass_score", 1.0),
        "must_end": recipe.target.checker is not None,
    }


def why_missing(metric: str, recipe: Recipe) -> str:
    """Why a run has not measured a score of answers, as an addition to a sentence; "" where nothing is known of it."""
    has_answers = recipe.evaluate.answer_pattern is not None or recipe.target.checker is not None
    if is_graded(metric) and not has_answers:
        return " (it has no evaluate.answer_pattern and no target.checker)"
    if is_graded(metric) and metric not in BY_ANSWER:
        return f" (its evaluate.samples is {recipe.evaluate.samples})"
    return ""


def other_grading(metric: str, mine: tuple[RunDir, Recipe, str], theirs: tuple[RunDir, Recipe, str]) -> str | None:
    """Why a score of answers cannot be compared between two runs, each with its recipe and its label; None where it can."""
    if not is_graded(metric):
        return None
    (_, own, label), (_, other, elsewhere) = mine, theirs
    first, second = grading_of(*mine[:2]), grading_of(*theirs[:2])
    where = f"in {label} than in {elsewhere}"
    if first["checker"] != second["checker"] or first["pass_score"] != second["pass_score"]:
        names = f"{_named(own)} and {_named(other)}, by their contents and options"
        return f"is graded by another checker {where} ({names})"
    if first["answer_pattern"] != second["answer_pattern"]:
        return f"finds its answers by another evaluate.answer_pattern {where}"
    if first["must_end"] != second["must_end"]:
        strict, lax = (label, elsewhere) if first["must_end"] else (elsewhere, label)
        return f"passes replies that were cut at the limit in {lax} and not in {strict}, whose recipe has a target.checker"
    if metric in OF_ALL_REPLIES and own.evaluate.samples != other.evaluate.samples:
        return f"uses another evaluate.samples {where} ({own.evaluate.samples} and {other.evaluate.samples})"
    return None


def _named(recipe: Recipe) -> str:
    name = recipe.target.grading_checker
    return "exact" if name is None else name.rpartition("/")[2] if is_own_code(name) else name
