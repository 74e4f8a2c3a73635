"""When the game ends, and which iteration was the best. Pure functions over scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparring.config import Recipe
from sparring.evaluation.metrics import Score

Scores = Mapping[str, Score]


def best_iteration(iterations: Sequence[Scores], metric: str) -> int:
    """Index of the best value of `metric`; the earliest of equals."""
    return max(range(len(iterations)), key=lambda t: (_rank(iterations[t][metric]), -t))


def is_better(score: Score, than: Score) -> bool:
    return _rank(score) > _rank(than)


def stop_reason(recipe: Recipe, baseline: Scores, iterations: Sequence[Scores]) -> str | None:
    """Why the game ends after these iterations, or None while it goes on.

    1. The player cannot tell human replies from the opponent's: the lower end of the Wilson interval of its held-out duel accuracy,
       at `stop.confidence`, is not above one half.
    2. `stop.patience` iterations in a row brought no new best value of the metric, the baseline included.
    3. The recipe's number of iterations is played.
    """
    if not iterations:
        return None
    accuracy = iterations[-1].get("duel_accuracy")
    if recipe.stop.indistinguishable and accuracy is not None and accuracy["low"] <= 0.5:
        return (
            f"indistinguishable: duel accuracy {accuracy['value']:.3f}, {recipe.stop.confidence:.0%} interval "
            f"{accuracy['low']:.3f} to {accuracy['high']:.3f} reaches one half"
        )
    metric = recipe.evaluate.chosen_metric
    waited = _iterations_since_best([baseline, *iterations], metric)
    if recipe.stop.patience is not None and waited >= recipe.stop.patience:
        return f"patience: {metric} has not improved for {waited} iterations"
    if len(iterations) >= recipe.iterations:
        return f"iterations: all {recipe.iterations} are played"
    return None


def _iterations_since_best(scores: Sequence[Scores], metric: str) -> int:
    return len(scores) - 1 - best_iteration(scores, metric)


def _rank(score: Score) -> float:
    """The value turned so that more is better; a number that is none ranks last."""
    value = score["value"]
    if value != value:
        return float("-inf")
    return value if score["higher_is_better"] else -value
