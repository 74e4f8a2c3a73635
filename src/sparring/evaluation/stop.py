"""When the game ends, and which iteration was the best. Pure functions over scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.config import Recipe
from sparring.evaluation.metrics import Score

Scores = Mapping[str, Score]
TIE_BREAK = "nll_per_token"
STILL = 0.02  # nats of mean margin: a ratio of probabilities within 2%


def best_iteration(iterations: Sequence[Scores], metric: str) -> int:
    """Index of the best value of `metric`; of equals the one with the lowest NLL per token, then the earliest."""
    return max(range(len(iterations)), key=lambda t: (_rank(iterations[t][metric]), _rank(iterations[t][TIE_BREAK]), -t))


def is_better(score: Score, than: Score) -> bool:
    return _rank(score) > _rank(than)


def stop_reason(recipe: Recipe, baseline: Scores, iterations: Sequence[Scores]) -> str | None:
    """Why the game ends after these iterations, or None while it goes on.

    1. The player cannot tell human replies from the opponent's: the lower end of the Wilson interval of its held-out duel accuracy,
       at `stop.confidence`, is not above one half (the interval contains one half, or lies below it altogether).
    2. `stop.patience` iterations in a row brought no new best value of the metric, the baseline included.
    3. The recipe's number of iterations is played.
    """
    if not iterations:
        return None
    if recipe.stop.indistinguishable and (reason := _indistinguishable(iterations[-1], recipe.stop.confidence)):
        return reason
    metric = recipe.metric
    waited = _iterations_since_best([baseline, *iterations], metric)
    if recipe.stop.patience is not None and waited >= recipe.stop.patience:
        return f"patience: {metric} has not improved for {waited} iterations"
    if len(iterations) >= recipe.iterations:
        return f"iterations: all {recipe.iterations} are played"
    return None


def _indistinguishable(scores: Scores, confidence: float) -> str | None:
    accuracy, margin = scores["duel_accuracy"], scores["duel_margin"]["value"]
    if accuracy["low"] > 0.5:
        return None
    found = f"duel accuracy {accuracy['value']:.3f}, {confidence:.0%} interval {accuracy['low']:.3f} to {accuracy['high']:.3f}"
    if accuracy["high"] < 0.5:
        return f"indistinguishable: {found}, is below one half - the player takes the opponent's replies for the human ones"
    hint = f"; with a mean margin of {margin:.3f} nats the player hardly moved, so try a larger train.lr" if abs(margin) < STILL else ""
    return f"indistinguishable: {found}, contains one half{hint}"


def _iterations_since_best(scores: Sequence[Scores], metric: str) -> int:
    values = [_rank(one[metric]) for one in scores]
    return len(values) - 1 - values.index(max(values))  # the earliest of equals: the tie-break makes no new best


def _rank(score: Score) -> float:
    """The value turned so that more is better; a number that is none ranks last."""
    value = score["value"]
    if value != value:
        return float("-inf")
    return value if score["higher_is_better"] else -value
