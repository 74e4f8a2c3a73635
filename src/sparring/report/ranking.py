"""All arms of a run in order, controls and greedy replies of the start included: what the verdict is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.data.tables import read_rows
from sparring.report.gains import Gain, Samples, gain
from sparring.report.tables import Row
from sparring.stage_names import START, evaluate_stage, iteration_of

SAMPLES = "samples.parquet"
GREEDY = {"exact_match": "exact_match_greedy"}
Arm = tuple[str, str, Mapping[str, Any], Samples]  # player, name, score, samples


def ranking(
    root: Path, rows: Sequence[Row], metric: str, confidence: float, headroom: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The arms by `metric`, the best first; of equal ones the simplest. JSON values, kept in summary.json.

    Each with `player` (what `sparring export --iteration` takes), `name`, `value`, `n`; `behind`: how far behind the first, and
    `over_start`: how much better than the start, paired by rows, each with `low` and `high`; None where there is nothing to pair.
    headroom: scores of the start's cooler replies, where they were measured.
    """
    arms = [arm for row in rows for arm in _arms(root, row, metric)]
    if not arms:
        return []
    start = arms[0]
    if metric == "exact_match" and headroom:  # their rows are not kept as samples, so that there is nothing to pair
        arms.append((START, f"{rows[0].model}, cooler", {**headroom["cool"], "higher_is_better": True}, {}))
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
