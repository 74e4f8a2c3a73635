"""summary.json, metrics.jsonl and the link to the best iteration: what scripts and people read first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.rundir import read_json, replace_link, write_json, write_text
from sparring.stage_names import CONTROL, CONTROL_TRAIN, iteration_stage, stage_names

Scores = Mapping[str, Any]
METRICS, SUMMARY, REPORT = "metrics.jsonl", "summary.json", "report.html"
TOKEN_FACTS = ("sampled_tokens", "scored_tokens", "trained_tokens")


@dataclass(frozen=True)
class Best:
    """The best iteration by the recipe's metric, and whether it beats the start of the game."""

    iteration: int
    metric: str
    value: float
    baseline_value: float
    beats_baseline: bool


def publish(
    root: Path,
    start_name: str,
    baseline: Scores,
    iterations: Sequence[Scores],
    control: Scores | None,
    best: Best | None,
    reason: str | None,
) -> dict[str, Any]:
    """Write the run's summary, its joined metrics and the link `best`; returns the summary. `reason` is None while the game goes on."""
    # the control of an earlier recipe, or of fewer iterations, is still on the disk, but it is none of this game
    stages = [name for name in stage_names(root, len(iterations)) if control is not None or not name.startswith(f"{CONTROL}/")]
    summary = {
        "baseline": {"name": start_name, "scores": baseline},
        "iterations": [
            {"iteration": t, "scores": scores, "counts": _facts(root, iteration_stage(t, "train")).get("counts", {})}
            for t, scores in enumerate(iterations)
        ],
        "controls": [] if control is None else [{"name": "continued SFT", "scores": control}],
        "best": None if best is None else vars(best),
        "stop_reason": reason,
        "stages": {name: cost for name in stages if (cost := _cost(root, name))},
    }
    write_json(root / SUMMARY, summary)
    trained = ["sft", *(iteration_stage(t, "train") for t in range(len(iterations))), CONTROL_TRAIN]
    _join_metrics(root, [name for name in trained if name in stages])
    if best is not None:
        replace_link(root / "best", f"iterations/{best.iteration:03d}")
    return summary


def published_iterations(root: Path) -> int:
    """How many iterations the summary tells of."""
    return len(read_json(root / SUMMARY)["iterations"]) if (root / SUMMARY).exists() else 0


def _cost(root: Path, name: str) -> dict[str, Any]:
    facts = _facts(root, name)
    return {key: facts[key] for key in ("wall_seconds", *TOKEN_FACTS) if key in facts}


def _facts(root: Path, name: str) -> dict[str, Any]:
    done = root / name / "done.json"
    return read_json(done)["facts"] if done.exists() else {}


def _join_metrics(root: Path, stages: Sequence[str]) -> None:
    """One object per optimizer step of all stages, made anew from their own files: nothing is ever doubled."""
    files = [root / name / METRICS for name in stages]
    write_text(root / METRICS, "".join(file.read_text(encoding="utf-8") for file in files if file.exists()))
