"""Decisions from scores alone: what could be gained from a start, when the game ends, and which iteration was the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sparring.config import Recipe
from sparring.evaluation.metrics import Score

TOO_WEAK = 0.05  # pass@1 below which a model was seen to learn nothing from its own replies
NOTEWORTHY = 0.05  # a gain of pass@k that is worth measuring on more prompts if it is within its error

PlayerScores = Mapping[str, Score]


def advice(scores: PlayerScores, k: int) -> str:
    """One sentence: what a lower temperature gains, what targets can reach, and whether more SFT is the better use of compute."""
    now = scores["pass_at_1"]
    found = [f"The start answers {now['value']:.1%} of held-out prompts correctly"]
    free = max((scores[name] for name in ("cool", "greedy") if name in scores), key=lambda score: score["value"])
    if _exceeds(free, now):
        found.append(f"{free['value']:.1%} at a lower temperature (without training)")
    if k > 1 and "majority" in scores:
        found.append(f"{scores['majority']['value']:.1%} by the majority of {k} replies")
    if k > 1:
        best = f"{scores['any']['value']:.1%} if any of {k} replies counts"
        hot = " at this temperature" if _is_too_hot(scores, now, free) else ""
        found.append(f"and {best}, which is the upper bound for a verified target in one iteration{hot}")
    return f"{', '.join(found)}; {_conclusion(scores, now, free)}."


def _conclusion(scores: PlayerScores, now: Score, free: Score) -> str:
    before, after = scores.get("nll"), scores.get("nll_after")
    if before is not None and after is not None and _exceeds(before, after):
        return f"more SFT still lowers its NLL, from {before['value']:.3f} to {after['value']:.3f}, and is the better use of compute"
    if now["value"] < TOO_WEAK:
        return f"too few of its own replies are right to learn from them: {_remedy(free, probed=after is not None)}"
    if "any" not in scores:
        return "what targets can gain is measured only with several replies to a prompt; set evaluate.samples"
    single = "a reply at a lower temperature" if _exceeds(free, now) else "a single reply"
    best = free if _exceeds(free, now) else now
    if "majority" in scores and _exceeds(scores["majority"], best):
        return "majority and verified targets can both help"
    if _exceeds(scores["any"], best):
        return f"{_of_majority(scores, best, single)} verified target can help"
    if scores["any"]["value"] - best["value"] >= NOTEWORTHY:
        return f"no target is certain to help: the difference is within its error on {now['n']} prompts; raise data.held_out to measure it"
    if _is_too_hot(scores, now, free):
        more_sft = ", or fine-tune it further" if after is None else ""
        return f"no target can gain much over a reply at a lower temperature: lower sampling.temperature{more_sft}"
    return "no target can gain much here"


def _of_majority(scores: PlayerScores, best: Score, single: str) -> str:
    """How a sentence on verified targets begins, if the majority is not better by more than its error."""
    if "majority" not in scores:
        return "a"
    if scores["majority"]["value"] - best["value"] >= NOTEWORTHY:
        within = f"by less than its error on {best['n']} prompts"
        return f"the majority is better than {single} only {within}, so a majority target may not help, but a"
    return f"the majority is no better than {single}, so only a"


def _is_too_hot(scores: PlayerScores, now: Score, free: Score) -> bool:
    """Whether single replies at a lower temperature are better than one, and as good as the best of k, at the game's temperature."""
    return _exceeds(free, now) and not _exceeds(scores["any"], free)


def _remedy(free: Score, probed: bool) -> str:
    """The remedy for a start whose replies are too rarely right. probed: a short continued SFT was tried, and its NLL did not fall."""
    if free["value"] >= TOO_WEAK:
        return "lower sampling.temperature first"
    return "use more rows or easier prompts, since more SFT does not lower its NLL" if probed else "fine-tune it further first"


def _exceeds(score: Score, other: Score) -> bool:
    """Whether `score` is above `other` by more than the error of both."""
    return score["value"] - other["value"] > math.hypot(score["stderr"] or 0.0, other["stderr"] or 0.0)


TIE_BREAK = "nll_per_token"
COLLAPSE_PATIENCE = 2  # iterations without a new best, if a majority agrees on errors and the recipe sets no patience
STILL = 0.02  # nats of mean margin: a ratio of probabilities within 2%


def best_iteration(iterations: Sequence[PlayerScores], metric: str) -> int:
    """Index of the best value of `metric`; ties go to the lowest NLL per token, then to the earliest."""
    return max(range(len(iterations)), key=lambda t: (_rank(iterations[t][metric]), _rank(iterations[t][TIE_BREAK]), -t))


def is_better(score: Score, than: Score) -> bool:
    """Whether the first score is strictly better; NaN is worse than any number."""
    return _rank(score) > _rank(than)


def stop_reason(recipe: Recipe, start: PlayerScores, iterations: Sequence[PlayerScores], graded_votes: Sequence[float] = ()) -> str | None:
    """Why the game ends after these iterations, or None if it continues. graded_votes: as for `vote_shares`.

    1. The player cannot distinguish human replies from the opponent's: the lower end of the Wilson interval of its held-out duel accuracy,
       at `stop.confidence`, is not above one half (the interval contains one half, or is below it altogether).
       Checked only for the human target: with another target the player need not approach the human replies.
    2. With a verified or majority target, pass@k or the distinct answers a prompt fell below a share of the start's.
    3. `stop.patience` iterations in a row brought no new best value of the metric, the start included.
    4. The recipe's number of iterations is played.
    """
    if not iterations:
        return None
    if recipe.target.uses_grades:
        reason = _lost_diversity(recipe, start, iterations[-1])
    else:
        reason = _indistinguishable(iterations[-1], recipe.stop.confidence) if recipe.stop.indistinguishable else None
    if reason:
        return reason
    metric = recipe.metric
    waited = _iterations_since_best([start, *iterations], metric)
    patience = recipe.stop.patience or (COLLAPSE_PATIENCE if agrees_on_errors(recipe, start, iterations, graded_votes) else None)
    if patience is not None and waited >= patience:
        return f"patience: {metric} has not improved for {waited} iterations"
    if len(iterations) >= recipe.iterations:
        return "iterations: " + (f"all {recipe.iterations} are played" if recipe.iterations > 1 else "the only one is played")
    return None


def vote_shares(start: PlayerScores, last: PlayerScores, graded_votes: Sequence[float]) -> tuple[float, float] | None:
    """(at the start, now) the share of votes for the leading answer: of the held-out replies, or if they are too few to vote, of the
    training replies. None without votes.

    graded_votes: the shares of the training replies of every iteration's opponent; the first opponent is the start.
    """
    if "vote_share" in last:
        return start["vote_share"]["value"], last["vote_share"]["value"]
    return (graded_votes[0], graded_votes[-1]) if graded_votes else None


def agrees_on_errors(recipe: Recipe, start: PlayerScores, iterations: Sequence[PlayerScores], graded_votes: Sequence[float] = ()) -> bool:
    """Whether votes for the leading answer rise while held-out accuracy falls, by more than its error: how majority targets collapse."""
    last = iterations[-1]
    shares = vote_shares(start, last, graded_votes)
    if not recipe.target.counts_votes or shares is None:
        return False
    before, now = shares
    fall = start["exact_match"]["value"] - last["exact_match"]["value"]
    errors = [scores["exact_match"]["stderr"] or 0.0 for scores in (start, last)]
    return now > before and fall > math.hypot(*errors)


def _lost_diversity(recipe: Recipe, start: PlayerScores, scores: PlayerScores) -> str | None:
    limits = {f"pass_at_{recipe.evaluate.samples}": recipe.stop.min_pass_at_k, "distinct_answers": recipe.stop.min_distinct}
    for name, limit in limits.items():
        if limit is None or name not in scores:
            continue
        ours, first = scores[name], start[name]
        error = math.hypot(ours["stderr"] or 0.0, limit * (first["stderr"] or 0.0))
        if limit * first["value"] - ours["value"] > error:
            return (
                f"diversity: {name} {ours['value']:.3f} is less than {limit:g} of the start's {first['value']:.3f}, by more than its error"
            )
    return None


def _indistinguishable(scores: PlayerScores, confidence: float) -> str | None:
    accuracy, margin = scores["duel_accuracy"], scores["duel_margin"]["value"]
    if accuracy["low"] > 0.5:
        return None
    found = f"duel accuracy {accuracy['value']:.3f}, {confidence:.0%} interval {accuracy['low']:.3f} to {accuracy['high']:.3f}"
    if accuracy["high"] < 0.5:
        return f"indistinguishable: {found}, is below one half - the player prefers the opponent's replies to the human ones"
    hint = f"; with a mean margin of {margin:.3f} nats the player hardly moved, so try a larger train.lr" if abs(margin) < STILL else ""
    return f"indistinguishable: {found}, contains one half{hint}"


def _iterations_since_best(scores: Sequence[PlayerScores], metric: str) -> int:
    values = [_rank(one[metric]) for one in scores]
    return len(values) - 1 - values.index(max(values))  # the earliest of equal values: a tie is not a new best


def _rank(score: Score) -> float:
    """The value with its sign set so that more is better; NaN ranks last."""
    value = score["value"]
    if value != value:
        return float("-inf")
    return value if score["higher_is_better"] else -value
