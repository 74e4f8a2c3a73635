"""By how much one player is better than another on the same held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

Samples = Mapping[str, Mapping[str, Any]]  # by row id


class Gain(NamedTuple):
    """How much better a score is than another model's on the same rows, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


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
    found = [samples[row_id].get(column) for row_id in ids]
    return None if None in found else found
