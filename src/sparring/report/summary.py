"""summary.json, metrics.jsonl and the link to the best iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.report.outcome import ranking
from sparring.report.tables import Scores, headroom_of, rows_of
from sparring.rundir import DONE, read_object, replace_link, write_json, write_text
from sparring.stage_names import METRICS, SFT, START, is_used, iteration_name, iteration_stage, stage_names

SUMMARY = "summary.json"
OF_SUMMARY = ("start", "iterations", "controls", "best", "stop_reason")
COSTS = ("wall_seconds", "sampled_tokens", "scored_tokens", "trained_tokens")


def publish(
    root: Path,
    recipe: Recipe,
    start_name: str,
    start: Scores,
    iterations: Sequence[Scores],
    controls: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    reason: str | None,
) -> dict[str, Any]:
    """Write the run's summary, its joined metrics and the link `best`; returns the summary.

    controls: each with its name, stage, from_iteration and scores. best: the best iteration with its metric, value, start_value, and
    whether it beats_start. `reason` is None while the game is not over.
    """
    # stages of a control of an earlier recipe, or of more iterations, may still be on the disk, but are not part of this game
    folders = [control["stage"] for control in controls]
    stages = [name for name in stage_names(root, len(iterations), folders) if is_used(name, recipe)]
    summary = {
        "start": {"name": start_name, "scores": start, **_held_out_failures(root, START)},
        "iterations": [
            {
                "iteration": t,
                "scores": scores,
                "counts": _counts(root, recipe, t),
                **_held_out_failures(root, iteration_name(t)),
                **({"rates": facts_of(root, iteration_stage(t, "grade")).get("rates", {})} if recipe.target.uses_grades else {}),
            }
            for t, scores in enumerate(iterations)
        ],
        "controls": [{**control, **_held_out_failures(root, control["stage"])} for control in controls],
        **_headroom(root, recipe),
        "best": best,
        "stop_reason": reason,
        "stages": {name: cost for name in stages if (cost := _cost(root, name))},
    }
    headroom = summary.get("headroom", {}).get("scores")
    rows = list(rows_of(summary))
    summary["ranking"] = [] if best is None else ranking(root, rows, best["metric"], recipe.stop.confidence, headroom)
    write_json(root / SUMMARY, summary)
    played = [iteration_stage(t, "train") for t in range(len(iterations))]
    _join_metrics(root, [SFT, *played, *(f"{folder}/train" for folder in folders)])
    if best is not None:
        replace_link(root / "best", iteration_name(best["iteration"]))
    return summary


def read_summary(root: Path) -> dict[str, Any] | None:
    """The run's summary; None if it has none yet."""
    return read_object(root / SUMMARY, *OF_SUMMARY) if (root / SUMMARY).exists() else None


def facts_of(root: Path, stage: str) -> dict[str, Any]:
    """The facts of a finished stage; empty if there is no such stage."""
    done = root / stage / DONE
    return read_object(done, "facts")["facts"] if done.exists() else {}


def _cost(root: Path, name: str) -> dict[str, Any]:
    facts = facts_of(root, name)
    return {key: facts[key] for key in COSTS if key in facts}


def _counts(root: Path, recipe: Recipe, t: int) -> dict[str, int]:
    """Counts of the window of iteration t; with graded replies also of those that the checker could not grade."""
    counts = facts_of(root, iteration_stage(t, "train")).get("counts", {})
    if not recipe.target.uses_grades:
        return counts
    window = range(max(0, t - recipe.objective.window + 1), t + 1)
    return {**counts, "checker_failures": sum(facts_of(root, iteration_stage(i, "grade")).get("failures", 0) for i in window)}


def _held_out_failures(root: Path, owner: str) -> dict[str, int]:
    """How many held-out replies of a player the checker could not grade; nothing if it graded all."""
    failures = facts_of(root, f"{owner}/evaluate").get("failures")
    return {"held_out_failures": failures} if failures else {}


def _headroom(root: Path, recipe: Recipe) -> dict[str, Any]:
    found = headroom_of(root) if recipe.shows_headroom else None
    return {"headroom": found} if found else {}


def _join_metrics(root: Path, stages: Sequence[str]) -> None:
    """Write metrics.jsonl, one object per optimizer step of all stages, again from their files, so that there are no duplicates."""
    files = [root / name / METRICS for name in stages]
    write_text(root / METRICS, "".join(file.read_text(encoding="utf-8") for file in files if file.exists()))
