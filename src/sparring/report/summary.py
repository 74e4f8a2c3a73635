"""summary.json, metrics.jsonl and the link to the best iteration: what scripts and people read first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.evaluation.stop import best_iteration, is_better
from sparring.rundir import read_json, write_json, write_text
from sparring.stage_names import CONTROL_EVALUATE, CONTROL_TRAIN, iteration_stage, stage_names

METRICS, SUMMARY = "metrics.jsonl", "summary.json"
TOKEN_FACTS = ("sampled_tokens", "scored_tokens", "trained_tokens")


def publish(
    root: Path, recipe: Recipe, baseline: Mapping[str, Any], iterations: Sequence[Mapping[str, Any]], reason: str | None
) -> dict[str, Any]:
    """Write the run's summary, its joined metrics and `best`; returns the summary. `reason` is None while the game goes on."""
    metric = recipe.evaluate.chosen_metric
    best = best_iteration(iterations, metric) if iterations else None
    control = root / CONTROL_EVALUATE / "scores.json"
    summary = {
        "baseline": {"name": "SFT" if recipe.sft else "start", "scores": baseline},
        "iterations": [
            {"iteration": t, "scores": scores, "counts": _facts(root, iteration_stage(t, "train")).get("counts", {})}
            for t, scores in enumerate(iterations)
        ],
        "controls": [{"name": "continued SFT", "scores": read_json(control)}] if reason and control.exists() else [],
        "best": None if best is None else _best(metric, best, baseline, iterations[best]),
        "stop_reason": reason,
        "stages": {name: cost for name in stage_names(root, len(iterations)) if (cost := _cost(root, name))},
    }
    write_json(root / SUMMARY, summary)
    _join_metrics(root, len(iterations))
    if best is not None:
        _link(root / "best", f"iterations/{best:03d}")
    return summary


def _best(metric: str, best: int, baseline: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "iteration": best,
        "metric": metric,
        "value": scores[metric]["value"],
        "baseline_value": baseline[metric]["value"],
        "beats_baseline": is_better(scores[metric], baseline[metric]),
    }


def _cost(root: Path, name: str) -> dict[str, Any]:
    facts = _facts(root, name)
    return {key: facts[key] for key in ("wall_seconds", *TOKEN_FACTS) if key in facts}


def _facts(root: Path, name: str) -> dict[str, Any]:
    done = root / name / "done.json"
    return read_json(done)["facts"] if done.exists() else {}


def _join_metrics(root: Path, iterations: int) -> None:
    """One object per optimizer step of the whole run, made anew from the stages' own files: nothing is ever doubled."""
    stages = ["sft", *(iteration_stage(t, "train") for t in range(iterations)), CONTROL_TRAIN]
    files = [root / name / METRICS for name in stages]
    write_text(root / METRICS, "".join(file.read_text(encoding="utf-8") for file in files if file.exists()))


def _link(link: Path, target: str) -> None:
    temporary = link.with_name(link.name + ".tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary, target_is_directory=True)
    os.replace(temporary, link)
