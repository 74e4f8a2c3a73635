"""The table of metrics with a value for every held-out row: how each is computed, and which direction is better.

A score is the mean of such values. Those of a checker's grades are computed in answers.py, from all replies to a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparring.data.records import Example, Reply, is_empty
from sparring.evaluation.metrics import wins


@dataclass(frozen=True)
class MeasuredRow:
    """A held-out row with what was measured of a player: its first sampled reply, as tokens and as text, and the log-probs that
    `Measured.logps` describes. `stop_ids`: the tokens that end a turn."""

    example: Example
    reply: Reply
    text: str
    logps: Mapping[str, float]
    stop_ids: frozenset[int]


@dataclass(frozen=True)
class RowMetric:
    """of: the value of a row; None for all rows of a player where it is not defined. higher_is_better: None if neither is."""

    of: Callable[[MeasuredRow], float | None]
    higher_is_better: bool | None


def duel_margin(row: MeasuredRow) -> float | None:
    """r(y) - r(y') in nats of the player against a fresh reply of its opponent; None for the start, which has no opponent."""
    logps = row.logps
    if "player_real" not in logps:
        return None
    return (logps["player_real"] - logps["opponent_real"]) - (logps["player_generated"] - logps["opponent_generated"])


def duel_accuracy(row: MeasuredRow) -> float | None:
    """Whether the margin is positive, a tie counting half."""
    margin = duel_margin(row)
    return None if margin is None else wins([margin])[0]


ROW_METRICS = {
    "nll_per_reply": RowMetric(lambda row: -row.logps["real"], higher_is_better=False),
    "duel_margin": RowMetric(duel_margin, higher_is_better=True),
    "duel_accuracy": RowMetric(duel_accuracy, higher_is_better=True),
    "real_logp": RowMetric(lambda row: row.logps["real"], higher_is_better=True),
    "generated_logp": RowMetric(lambda row: row.logps["own"], higher_is_better=None),
    "reply_tokens": RowMetric(lambda row: len(row.reply.token_ids), higher_is_better=None),
    "human_reply_tokens": RowMetric(lambda row: len(row.example.reply_ids), higher_is_better=None),
    "truncated": RowMetric(lambda row: row.reply.finish_reason == "length", higher_is_better=False),
    "identical": RowMetric(lambda row: row.reply.token_ids == row.example.reply_ids, higher_is_better=None),
    "empty": RowMetric(lambda row: is_empty(row.reply.token_ids, row.stop_ids), higher_is_better=False),
}


def all_metrics() -> dict[str, bool | None]:
    """Which direction is better of every metric with a value per held-out row, those of grades included; None if neither is."""
    own = {name: metric.higher_is_better for name, metric in ROW_METRICS.items()}
    return {"exact_match": True, "exact_match_greedy": True, **own, "vote_share": None, "distinct_answers": None}


def higher_is_better(metric: str) -> bool | None:
    """For one of `all_metrics`, or one with a number of replies in its name, such as pass_at_8 and maj_at_8."""
    return True if metric.startswith(("pass_at_", "maj_at_")) else all_metrics()[metric]
