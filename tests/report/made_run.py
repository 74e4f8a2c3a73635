"""A run directory written by hand: what a game leaves for its report, without a game."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparring.config import load_recipe, to_yaml
from sparring.data.tables import write_table
from sparring.evaluation.metrics import accuracy_score, auc_score, mean_score, ratio_score
from sparring.report.summary import publish
from sparring.rundir import write_json, write_text
from sparring.stage_names import START, iteration_stage

CONTROL = "continued-sft"
WORDS = "the bus train ferry tram runs from harbour to station every ten minutes and walking is free".split()
Text = Callable[[int, int], str]  # of a row and a player, the human being player -1


def some_words(row: int, player: int) -> str:
    rng = random.Random(row * 100 + player)
    return " ".join(rng.choices(WORDS, k=4 + (row * 7 + player * 3) % 9))


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "run_dir": "runs/made",
        "model": {"path": "builtin:tiny"},
        "data": {"path": "builtin:tasks", "max_examples": 96, "held_out": 12},
        "iterations": 2,
        "evaluate": {"answer_pattern": "[a-z]+$", "metric": "exact_match"},
        "controls": CONTROL,
        "showcase": ["List the popular forms of transportation in Southampton."],
        **changes,
    }


def make_run(root: Path, rows: int = 12, text: Text = some_words, stop_reason: str | None = "iterations: all 2 are played") -> Path:
    """The start, two iterations and the control over `rows` held-out prompts; None as the reason is a game under way."""
    root.mkdir(parents=True, exist_ok=True)
    made = load_recipe(recipe(sft={"epochs": 1}))
    write_text(root / "recipe.yaml", to_yaml(made))
    owners = [f"{START}/evaluate", iteration_stage(0, "evaluate"), iteration_stage(1, "evaluate"), f"{CONTROL}/evaluate"]
    start, first, second, control = (_evaluated(root / stage, rows, player, text) for player, stage in enumerate(owners))
    for name in ("sft", *(iteration_stage(t, "train") for t in range(2)), f"{CONTROL}/train"):
        _trained(root, name)
    _done(root / "data", {"counts": {"read": 4000, "train": 84, "held_out": rows}, "wall_seconds": 0.2})
    values = {"value": second["exact_match"]["value"], "start_value": start["exact_match"]["value"], "beats_start": True}
    best = {"iteration": 1, "metric": "exact_match", **values}
    shown = {"name": "continued SFT", "stage": CONTROL, "from_iteration": None, "scores": control}
    publish(root, made, "SFT", start, [first, second], [shown] if stop_reason else [], best, stop_reason)
    libraries = {"torch": "2.13.0", "transformers": "5.19.0"}
    attempt = {"sparring": "0.1.0", "python": "3.11.7", "libraries": libraries, "hardware": {"machine": "x86_64", "cpus": 2}}
    attempt |= {"started": "2026-11-22T11:24:20+00:00", "ended": None, "outcome": "running or killed"}
    write_json(root / "manifest.json", {"attempts": [attempt]})
    return root


def _evaluated(folder: Path, rows: int, player: int, text: Text) -> dict[str, Any]:
    """samples.parquet and showcase.json of a player that gets better with its number; returns its scores."""
    folder.mkdir(parents=True)
    rng = random.Random(player)
    human = [20 + row % 7 for row in range(rows)]
    columns: dict[str, list[Any]] = {
        "row_id": [f"{row:04x}" for row in range(rows)],
        "prompt": [f"Question {row}: {text(row, -2)}" for row in range(rows)],
        "human": [text(row, -1) for row in range(rows)],
        "reply": [text(row, player) for row in range(rows)],
        "greedy": [None] * rows,
        "finish_reason": ["length" if (row + player) % 5 == 0 else "stop" for row in range(rows)],
        "human_logp": [-40.0 - row % 5 + player * (1 if row % 3 else -1) for row in range(rows)],
        "reply_logp": [-30.0 - rng.random() * 9 for _ in range(rows)],
        "human_tokens": human,
        "reply_tokens": [10 + rng.randrange(40) for _ in range(rows)],
        "identical": [row % 6 == 5 and player > 0 for row in range(rows)],
        "exact_match": [float(row % 4 < player) for row in range(rows)],
        **({"duel_margin": [rng.gauss(0.5, 1) for _ in range(rows)]} if player else {}),
    }
    write_table(folder / "samples.parquet", columns)
    write_json(folder / "showcase.json", [{"prompt": recipe()["showcase"][0], "reply": text(0, player)}])
    return _scores(columns)


def _scores(columns: dict[str, list[Any]]) -> dict[str, Any]:
    nll = [-logp for logp in columns["human_logp"]]
    margins = columns.get("duel_margin")
    return {
        "exact_match": mean_score(columns["exact_match"], True),
        "nll_per_token": ratio_score(nll, columns["human_tokens"], False),
        "real_logp": mean_score(columns["human_logp"], True),
        "generated_logp": mean_score(columns["reply_logp"]),
        "reply_tokens": mean_score(columns["reply_tokens"]),
        "human_reply_tokens": mean_score(columns["human_tokens"]),
        "truncated": mean_score([float(reason == "length") for reason in columns["finish_reason"]], False),
        "identical": mean_score([float(same) for same in columns["identical"]]),
        "empty": mean_score([0.0] * len(nll), False),
        "length_auc": auc_score(columns["human_tokens"], columns["reply_tokens"]),
        **({"duel_margin": mean_score(margins, True), "duel_accuracy": accuracy_score(margins, 0.95)} if margins else {}),
    }


def _trained(root: Path, name: str) -> None:
    """Five steps of a training stage, and for a self-play iteration the numbers of its duels."""
    common = [{"step": n, "loss": 0.69 - 0.01 * n, "real_logp": -40.0 + n, "grad_norm": 2.0 + n, "lr": 1e-4 / (n + 1)} for n in range(5)]
    facts: dict[str, Any] = {"wall_seconds": 12.5, "trained_tokens": 5000}
    if name.startswith("iterations/"):
        t = int(name.split("/")[1])
        duel = [{"margin": 0.1 * n, "accuracy": 0.5 + 0.05 * n, "reward_real": 0.05 * n, "reward_generated": -0.05 * n} for n in range(5)]
        steps = [{"iteration": t, **row, "generated_logp": -60.0, **more} for row, more in zip(common, duel, strict=True)]
        facts |= {"counts": {"duels": 84, "replies": 168, "replies_identical": 3}}
        _done(root / iteration_stage(t, "generate"), {"wall_seconds": 30.0, "sampled_tokens": 9000})
    else:
        steps = [{"stage": name, **row} for row in common]
    _done(root / name, facts)
    write_text(root / name / "metrics.jsonl", "".join(f"{json.dumps(step)}\n" for step in steps))


def _done(folder: Path, facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "done.json", {"inputs": {}, "outputs": {}, "facts": facts, "stamps": {}})
