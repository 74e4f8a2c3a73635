"""The ranking of a run's arms, and its verdict, which is the same in terminal, report, card and status."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from sparring.data.tables import read_rows
from sparring.report.health import MOST_CUT
from sparring.report.tables import TableRow, entries_of
from sparring.stage_names import SAMPLES, START, player_of, title_of_player

REPORT = "report.html"

Samples = Mapping[str, Mapping[str, Any]]  # by row id
ScoredPlayer = tuple[str, str, Mapping[str, Any], Samples]  # player, name, score, samples


def ranking(
    root: Path, rows: Sequence[TableRow], metric: str, confidence: float, headroom: Mapping[str, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The arms by `metric`, the best first; of equal ones the start, then the best iteration, then the earlier in the game. JSON values,
    stored in summary.json.

    Each has `player` (for `sparring export --iteration`), `name`, `value`, `n`; `behind`: the difference from the first arm, and
    `over_start`: the gain over the start, both paired by rows, with `low` and `high`; None if there is nothing to pair.
    headroom: its scores, if they were measured; those of the start at a lower temperature are among the arms.
    """
    ordered = [*rows[:1], *sorted(rows[1:], key=lambda row: not row.is_best)]
    arms = [arm for row in ordered for arm in _arms(root, row, metric)]
    if not arms:
        return []
    start = arms[0]
    cool = (headroom or {}).get("cool")
    if metric == "exact_match" and cool:  # their rows are not stored as samples, so there is nothing to pair
        arms.append((START, f"{rows[0].model} at a lower temperature", {**cool, "higher_is_better": True}, {}))
    sign = 1 if start[2]["higher_is_better"] else -1
    arms.sort(key=lambda arm: -sign * arm[2]["value"])
    return [
        {
            "player": player,
            "name": name,
            "value": score["value"],
            "n": score["n"],
            "behind": None if index == 0 else gain(arms[0][3], samples, metric, confidence),
            "over_start": None if samples is start[3] else gain(samples, start[3], metric, confidence),
        }
        for index, (player, name, score, samples) in enumerate(arms)
    ]


def _arms(root: Path, row: TableRow, metric: str) -> list[ScoredPlayer]:
    if metric not in row.scores:
        return []
    player, samples = player_of(row.stage), read_samples(root / row.stage / SAMPLES)
    found: list[ScoredPlayer] = [(player, row.model, row.scores[metric], samples)]
    greedy = f"{metric}_greedy"
    if player == START and greedy in row.scores:  # an arm without training: the start with greedy decoding
        greedy_samples = {row_id: {**sample, metric: sample.get(greedy)} for row_id, sample in samples.items()}
        found.append((player, f"{row.model}, greedy", row.scores[greedy], greedy_samples))
    return found


def read_samples(file: Path) -> Samples:
    """row id -> sample of a player's evaluation; empty if the stage stored none."""
    return {sample["row_id"]: sample for sample in read_rows(file)} if file.exists() else {}


def gain(ours: Samples, theirs: Samples, metric: str, confidence: float) -> dict[str, float] | None:
    """By how much `ours` is better than `theirs` in a metric, paired over the rows that both answered: `value`, with the bounds `low` and
    `high` of its confidence interval. NLL per token is a ratio of sums, with the standard error of a ratio estimator. None if the samples
    do not have the metric.
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
    return {"value": float(value), "low": float(value - reach), "high": float(value + reach)}


def _values(samples: Samples, ids: Sequence[str], metric: str) -> list[float] | None:
    """A value for every row, of which more is better; None if any row has none."""
    column = "human_logp" if metric.startswith("nll_") else metric
    found = [value for row_id in ids if (value := samples[row_id].get(column)) is not None]
    return found if len(found) == len(ids) else None


WORDS = {
    "exact_match": "exact match",
    "exact_match_greedy": "exact match of greedy replies",
    "nll_per_token": "NLL per token",
    "nll_per_reply": "NLL per reply",
}


def metric_words(metric: str) -> str:
    """A metric's name in texts; benchmarks keep their own names."""
    return WORDS.get(metric, metric)


def verdict(summary: Mapping[str, Any], run: str = "RUN") -> str:
    """The verdict in some sentences."""
    return " ".join(verdict_lines(summary, run))


def verdict_lines(summary: Mapping[str, Any], run: str = "RUN") -> list[str]:
    """The arms in order, what to use, the best iteration, and how the game ended. `run`: the run directory as in a command."""
    ended = "The game is not over." if summary["stop_reason"] is None else f"The game ended - {summary['stop_reason']}."
    if summary["best"] is None:
        return [f"No iteration was played. {ended}"]
    arms = summary.get("ranking") or []  # none in the summaries of earlier versions
    ranked = [_in_order(arms, summary["best"]["metric"]), _advice(arms, run, summary) + _caution(arms[0], summary)] if arms else []
    return [*ranked, f"{_best(summary['best'])} {ended}"]


def _best(best: Mapping[str, Any]) -> str:
    values = f"{metric_words(best['metric'])} {best['value']:.3f}, start {best['start_value']:.3f}"
    return f"Best iteration: {best['iteration']} ({values})." + ("" if best["beats_start"] else " No iteration beats the start.")


def _in_order(arms: list[dict[str, Any]], metric: str) -> str:
    first, *others = arms
    head = f"By {metric_words(metric)} on {first['n']} held-out prompts {first['name']} is first with {first['value']:.3f}"
    return f"{head}{''.join(f'; {_behind(arm)}' for arm in others)}."


def _behind(arm: Mapping[str, Any]) -> str:
    gap = arm["behind"]
    if gap is None:
        return f"{arm['name']} {arm['value']:.3f}"
    doubt = ", not significant" if gap["low"] <= 0 else ""
    return f"{arm['name']} {arm['value']:.3f} ({gap['value']:.3f} behind, interval {gap['low']:.3f} to {gap['high']:.3f}{doubt})"


def _advice(arms: list[dict[str, Any]], run: str, summary: Mapping[str, Any]) -> str:
    """Which model to use, and whether compute is better spent on another method."""
    first = arms[0]
    best = next((arm for arm in arms if arm["player"] == str(summary["best"]["iteration"])), None)
    export = f"`sparring export {run} DIR --iteration {first['player']}`"
    if first["player"] == START:
        return f"No trained model is above the start. {_greedily(summary) or f'Use the start: {export}.'}{_elsewhere(summary)}"
    is_control = first is not best and not first["player"].isdigit()
    if is_control:
        is_significant = best is not None and best["behind"] is not None and best["behind"]["low"] > 0
        beaten = f"A control beats the game significantly: {first['name']} is the better use of compute here. Use it"
        ahead = "A control is ahead of the game, but not significantly: more held-out rows would show whether it is better. If you use it"
        return f"{beaten if is_significant else ahead}: {export}.{_elsewhere(summary)}"
    gained = first["over_start"]
    if gained is None or gained["low"] <= 0:
        return f"Its gain over the start is not significant: more held-out rows would show whether it is real. If you use it: {export}."
    others = [arm["name"] for arm in arms[1:] if not arm["player"].isdigit() and arm["behind"] and arm["behind"]["low"] <= 0]
    doubt = f" It cannot be distinguished from {' or '.join(others)}." if others else ""
    return f"Its gain over the start is significant.{doubt} Use it: {export}."


def _greedily(summary: Mapping[str, Any]) -> str:
    """The trained model whose greedy replies are better than the start's, which the ranking has as an arm of its own; empty without one."""
    metric = f"{summary['best']['metric']}_greedy"
    values = {player: entry["scores"][metric]["value"] for player, entry in entries_of(summary).items() if metric in entry["scores"]}
    best = max(values, key=lambda player: values[player], default=START)
    if best == START:
        return ""
    gain = f"{title_of_player(best)} has {values[best]:.3f} and the start {values[START]:.3f}"
    return f"But with greedy decoding {gain}: compare them at the temperature that you will use."


def _caution(first: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """A warning if many replies of the first arm are cut; empty otherwise."""
    entry = entries_of(summary).get(first["player"])
    if entry is None or (cut := entry["scores"]["truncated"])["value"] <= MOST_CUT:
        return ""
    return f" But its replies to {round(cut['value'] * cut['n'])} of {cut['n']} prompts are cut: fix that before you use or compare it."


def _elsewhere(summary: Mapping[str, Any]) -> str:
    """What can help instead of a human target; empty after games with another one, whose summary has the rates of their grades."""
    if any("rates" in entry for entry in summary["iterations"]):
        return ""
    return " Where more SFT no longer helps, a verified or majority target can (`sparring docs which-game`)."


def higher_ranked(summary: Mapping[str, Any], player: str) -> str | None:
    """A note if an arm that is not an iteration is better than the exported player; None otherwise. Of equal ones none is better."""
    arms = summary.get("ranking") or []
    own = next((place for place, arm in enumerate(arms) if arm["player"] == player), None)
    first = next((arm for arm in arms[:own] if not arm["player"].isdigit()), None)
    if own is None or first is None or first["value"] == arms[own]["value"]:
        return None
    return f"{first['name']} is better ({first['value']:.3f} against {arms[own]['value']:.3f}): `--iteration {first['player']}` selects it"


def next_steps(root: Path, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(purpose, command or file); the export is of the first arm."""
    run = shlex.quote(str(root))
    ranked = summary.get("ranking")
    which = f" --iteration {ranked[0]['player']}" if ranked else ""
    return [
        ("look", str(root / REPORT) if (root / REPORT).exists() else f"sparring report {run}"),
        ("ask", f'sparring sample {run} "a prompt of yours"'),
        ("compare", f"sparring compare {run} ANOTHER_RUN"),
        ("export", f"sparring export {run} NEW_FOLDER{which}"),
    ]
