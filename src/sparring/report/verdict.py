"""The outcome of a run in plain sentences, with the gain over the baseline and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sparring.config import BaselineSection
from sparring.report.run_files import Player, RunFiles, Samples
from sparring.report.tables import Row
from sparring.stage_names import evaluate_stage


class Gain(NamedTuple):
    """How much better a score is than another model's on the same rows, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


WORDS = {
    "exact_match": "exact match",
    "exact_match_greedy": "exact match of greedy replies",
    "nll_per_token": "NLL per token",
    "nll_per_reply": "NLL per reply",
}


def verdict(run: RunFiles) -> str:
    """The best iteration, its gain over the baseline with its interval, the controls beside it, and why the game stopped."""
    return " ".join(filter(None, (_best_sentence(run), _control_sentence(run), _end_sentence(run))))


def _best_sentence(run: RunFiles) -> str:
    best = run.summary["best"]
    if best is None or run.best is None:
        return "No iteration was played."
    name, n = WORDS[best["metric"]], run.best.row.scores[best["metric"]]["n"]
    found = f"{name} {best['value']:.3f} against the baseline's {best['baseline_value']:.3f} on {n} held-out prompts"
    first = "Best is" if best["beats_baseline"] else "No iteration beats the baseline; the best is"
    return f"{first} iteration {best['iteration']}: {found}{_interval_words(run, best['metric'])}."


def _interval_words(run: RunFiles, metric: str) -> str:
    assert run.best is not None
    found = gain(run.best, run.players[0], metric, run.recipe.stop.confidence)
    if found is None:
        return ""
    doubt = ", which includes none" if found.low <= 0 <= found.high else ""
    level = f"{run.recipe.stop.confidence * 100:g}%"
    return f", a gain of {found.value:+.3f} ({level} interval {found.low:+.3f} to {found.high:+.3f}{doubt})"


def _control_sentence(run: RunFiles) -> str:
    best = run.summary["best"]
    if best is None:
        return ""
    sections = {evaluate_stage(section.folder): section for section in run.recipe.baseline}
    controls = [(player.row, sections.get(player.row.stage)) for player in run.players if player.apart]
    return " ".join(_control_words(row, section, row.scores[best["metric"]]["value"]) for row, section in controls)


def _control_words(row: Row, section: BaselineSection | None, score: float) -> str:
    """Its cost is the iterations' own where the recipe gives it no epochs, and comes on top of theirs where it starts from the best."""
    is_equal = section is not None and section.epochs is None and section.start == "start"
    return f"{row.model[0].upper()}{row.model[1:]}{' at equal cost' * is_equal} reached {score:.3f}."


def _end_sentence(run: RunFiles) -> str:
    return f"The game ended - {run.summary['stop_reason']}." if run.is_over else "The game goes on."


def gain(player: Player, other: Player, metric: str, confidence: float) -> Gain | None:
    """By how much `player` is the better one in a metric, on the rows that both answered, row by row: a hard row is hard for both.

    Per token it is a ratio of sums, with the standard error of a ratio estimator. None where the samples do not hold the metric.
    """
    ids = [row_id for row_id in player.samples if row_id in other.samples]
    ours, theirs = _values(player.samples, ids, metric), _values(other.samples, ids, metric)
    weights = _values(player.samples, ids, "human_tokens") if metric == "nll_per_token" else [1.0] * len(ids)
    if ours is None or theirs is None or weights is None or len(ids) < 2:
        return None
    difference, weight = np.array(ours) - np.array(theirs), np.array(weights)
    value = difference.sum() / weight.sum()
    stderr = math.sqrt((difference - value * weight).var(ddof=1) / len(ids)) / weight.mean()
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * stderr
    return Gain(float(value), float(value - reach), float(value + reach))


def _values(samples: Samples, ids: Sequence[str], metric: str) -> list[float] | None:
    """Of every row a number of which more is better."""
    column = "human_logp" if metric.startswith("nll_") else metric
    found = [samples[row_id].get(column) for row_id in ids]
    return None if None in found else found


def human_falls(run: RunFiles) -> list[str]:
    """One line for every iteration in which the human replies became less likely: the commonest failure of this method.

    With a target that moves, in which the winners did: it need not lead to the human replies.
    """
    found = []
    moves = run.recipe.target.moves
    preferred = "winners" if moves else "human replies"
    for before, player in zip(run.played, run.played[1:], strict=False):
        old, new = before.row.scores["real_logp"]["value"], player.row.scores["real_logp"]["value"]
        step = run.facts(player.row.stage.replace("/evaluate", "/train")).get("human_logp_warning_at_step")
        if new < old and not moves:
            found.append(f"{player.name}: the log-prob of the held-out human replies fell from {old:.2f} to {new:.2f} nats.")
        if step is not None:
            found.append(f"{player.name}: by step {step} the margin grew while the {preferred} lost log-prob.")
    return found
