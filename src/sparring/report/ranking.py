"""All arms of a run in order, controls and greedy replies of the start included: what the verdict is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from sparring.data.tables import read_rows
from sparring.report.tables import Row
from sparring.stage_names import START, evaluate_stage, iteration_of

SAMPLES = "samples.parquet"
GREEDY = {"exact_match": "exact_match_greedy"}
Samples = Mapping[str, Mapping[str, Any]]  # by row id
Arm = tuple[str, str, Mapping[str, Any], Samples]  # player, name, score, samples


class Gain(NamedTuple):
    """How much better a score is than another model's on the same rows, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


def ranking(
    root: Path, rows: Sequence[Row], metric: str, confidence: float, headroom: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The arms by `metric`, the best first; of equal ones the simplest. JSON values, kept in summary.json.

    Each with `player` (what `sparring export --iteration` takes), `name`, `value`, `n`; `behind`: how far behind the first, and
    `over_start`: how much better than the start, paired by rows, each with `low` and `high`; None where there is nothing to pair.
    headroom: scores of the start's replies at a lower temperature, if they were measured.
    """
    arms = [arm for row in rows for arm in _arms(root, row, metric)]
    if not arms:
        return []
    start = arms[0]
    if metric == "exact_match" and headroom:  # their rows are not kept as samples, so that there is nothing to pair
        arms.append((START, f"{rows[0].model} at a lower temperature", {**headroom["cool"], "higher_is_better": True}, {}))
    sign = 1 if start[2]["higher_is_better"] else -1
    arms.sort(key=lambda arm: -sign * arm[2]["value"])
    return [
        {
            "player": player,
            "name": name,
            "value": score["value"],
            "n": score["n"],
            "behind": None if index == 0 else _as_json(gain(arms[0][3], samples, metric, confidence)),
            "over_start": None if samples is start[3] else _as_json(gain(samples, start[3], metric, confidence)),
        }
        for index, (player, name, score, samples) in enumerate(arms)
    ]


def _arms(root: Path, row: Row, metric: str) -> list[Arm]:
    if metric not in row.scores:
        return []
    player, samples = player_of(row), read_samples(root / row.stage / SAMPLES)
    found: list[Arm] = [(player, row.model, row.scores[metric], samples)]
    greedy = GREEDY.get(metric, "")
    if player == START and greedy in row.scores:  # no training at all: the same model, asked for its likeliest reply
        cooler = {row_id: {**sample, metric: sample.get(greedy)} for row_id, sample in samples.items()}
        found.append((player, f"{row.model}, greedy", row.scores[greedy], cooler))
    return found


def player_of(row: Row) -> str:
    """What `sparring export --iteration` takes for it."""
    t = iteration_of(row.stage)
    return row.stage.removesuffix(evaluate_stage("")) if t is None else str(t)


def read_samples(file: Path) -> Samples:
    """Of a player's evaluation, by row; none of a stage that kept none."""
    return {sample["row_id"]: sample for sample in read_rows(file)} if file.exists() else {}


def _as_json(found: Gain | None) -> dict[str, float] | None:
    return None if found is None else found._asdict()


def gain(ours: Samples, theirs: Samples, metric: str, confidence: float) -> Gain | None:
    """By how much the first is the better one in a metric, on the rows that both answered, row by row: a hard row is hard for both.

    Per token it is a ratio of sums, with the standard error of a ratio estimator. None where the samples do not hold the metric.
    """
    ids = [row_id for row_id in ours if row_id in theirs]
    first, second = _values(ours, ids, metric), _values(theirs, ids, metric)
    weights = _values(ours, ids, "human_tokens") if metric == "nll_per_token" else [1.0] * len(ids)
    if first is None or second is None or weights is None or len(ids) < 2:
        return None
    difference, weight = np.array(first) - np.array(second), np.array(weights)
    value = difference.sum() / weight.sum()
    stderr = math.sqrt((difference - value * weight).var(ddof=1) / len(ids)) / weight.mean()
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * stderr
    return Gain(float(value), float(value - reach), float(value + reach))


def _values(samples: Samples, ids: Sequence[str], metric: str) -> list[float] | None:
    """Of every row a number of which more is better."""
    column = "human_logp" if metric.startswith("nll_") else metric
    found = [value for row_id in ids if (value := samples[row_id].get(column)) is not None]
    return found if len(found) == len(ids) else None
