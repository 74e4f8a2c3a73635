"""Whether an iteration has anything to learn from: checked after sampling and before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparring.config import Recipe
from sparring.console import log
from sparring.errors import UserError
from sparring.evaluation.stop import COLLAPSE_PATIENCE, Scores, agrees_on_errors
from sparring.stages.context import RunContext, counts_text
from sparring.stages.grade import candidates_at, rates
from sparring.targets.select import OUTCOMES
from sparring.targets.window import Window


def nothing_to_learn(context: RunContext, window: Window, t: int) -> str | None:
    """Why the game ends before iteration t is trained, or None. Raises UserError if the first iteration has no winner or no loser, or if
    no reply could be graded: only human replies would be trained on."""
    if window.indistinguishable:
        return "indistinguishable: every reply of the opponent equals the human one"
    if not context.recipe.target.uses_grades:
        return None
    if not window.duels or window.counts["unjudged"] == window.counts["prompts"]:
        return _no_contest(context, window, t)
    return _plateau(context, t) if t and context.recipe.stop.plateau else None


def warn_of_collapse(recipe: Recipe, start: Scores, iterations: Sequence[Scores]) -> None:
    """Warn if the majority agrees more often and is right less often."""
    if not agrees_on_errors(recipe, start, iterations):
        return
    (before, after), (votes, now) = (
        [scores[name]["value"] for scores in (start, iterations[-1])] for name in ("exact_match", "vote_share")
    )
    log.warning(
        f"the majority agrees on errors: the share of votes for the leading answer rose from {votes:.3f} to {now:.3f} since the start, and "
        f"exact_match fell from {before:.3f} to {after:.3f}; the game ends after {recipe.stop.patience or COLLAPSE_PATIENCE} iterations "
        "without a new best"
    )


def _no_contest(context: RunContext, window: Window, t: int) -> str:
    counts = {name: window.counts[name] for name in OUTCOMES if window.counts[name]}
    no_losers = set(counts) == {"all_pass"}
    if t:
        return f"nothing to learn: {'no reply loses any more' if no_losers else f'no prompt has winners and losers: {counts_text(counts)}'}"
    if no_losers:
        remedy = "objective.loss: sft, or objective.nll_weight above 0, learns from winners alone; or take harder prompts"
    else:
        remedy = f"read the replies with `sparring grade {context.run.root}`; {_remedy(counts)}"
    raise UserError(
        f"no prompt has winners and losers: {counts_text(counts)}", where=f"target.kind {context.recipe.target.kind}", remedy=remedy
    )


def _remedy(counts: dict[str, int]) -> str:
    advice = {
        "none_pass": "try easier prompts, more sampling.replies_per_prompt, or another target.checker",
        "ties": "more sampling.replies_per_prompt make ties rare",
        "few_votes": "lower target.min_votes, or sample more replies",
        "unjudged": "no answer was found: correct evaluate.answer_pattern, target.checker or data.prompts.answer",
    }
    return advice.get(max(counts, key=lambda name: counts[name]), "objective.loss: sft learns from winners alone")


def _plateau(context: RunContext, t: int) -> str | None:
    """Whether the pass rate (majority: the share of votes) has stopped rising since the last iteration, paired over the same prompts."""
    name = "vote_share" if context.recipe.target.kind == "majority" else "pass_rate"
    before, now = (rates(candidates_at(context, i)).get(name, {}) for i in (t - 1, t))
    both = [row_id for row_id in now if row_id in before]  # a user's function may give no score in one of them
    if len(both) < 2:
        return None
    rise = np.array([now[row_id] - before[row_id] for row_id in both])
    stderr = float(rise.std(ddof=1)) / math.sqrt(len(rise))
    if rise.mean() > stderr:
        return None
    words = "share of votes for the leading answer" if name == "vote_share" else "pass rate"
    return f"plateau: the {words} of the training prompts rose by {rise.mean():+.3f}, its standard error is {stderr:.3f}"
