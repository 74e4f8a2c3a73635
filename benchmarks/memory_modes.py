"""Peak memory of a training in each way of docs/memory.md, measured on a small model and compared with `sparring plan`.

    python benchmarks/memory_modes.py [key=value ...]

keys: model=llama-64m, or another of common.py's random ones; duels=12 tokens=1024 (of a micro-batch) checkpointing=true

Random token ids and weights, bfloat16, AdamW where the way says nothing else. Every training is a process of its own, of which the peak
resident memory is read; so it needs Linux and a CPU. QLoRA has no row: it runs on CUDA alone. Prints a table and writes
benchmarks/results/memory_modes.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from common import duels_of, options_of, print_origin, random_model, random_pairs, save

DEFAULTS = {"model": "llama-64m", "duels": "12", "tokens": "1024", "checkpointing": "true"}
STEP = 6  # duels


def recipe_of(mode: str, model: Path, options: dict[str, str]) -> Any:
    from memory_table import MODES

    from sparring.config import load_recipe

    common = [f"train.micro_batch_tokens={options['tokens']}", f"train.gradient_checkpointing={options['checkpointing']}"]
    train = {"optimizer": "adamw", "batch_size": STEP, "lr": 1e-6, "epochs": 1, "precision": "bf16"}
    return load_recipe({"run_dir": "run", "model": {"path": str(model)}, "data": {"path": "x"}, "train": train}, [*common, *MODES[mode]])


def child(mode: str, model: str, pairs: str, told: str) -> None:
    """Train, and print the process's peak."""
    import sparring.one_stage  # noqa: F401  as a run does
    from sparring.training.fit import fit
    from sparring.training.plan import make_plan
    from sparring.training.tasks import SpinTask

    settings = recipe_of(mode, Path(model), json.loads(told)).train
    duels = duels_of(json.loads(Path(pairs).read_text(encoding="utf-8")))
    task = SpinTask(duels, {duel.duel_id: [0.0, 0.0] for duel in duels}, 1.0, "logistic")
    plan = make_plan(settings, len(duels), lr=settings.lr, epochs=1, seed=0, name="train")
    with tempfile.TemporaryDirectory() as stage:
        fit(Path(stage), Path(model), task, plan, settings, phase="train", labels={})
    # not getrusage's maximum: a process begins with that of the one that started it
    print("PEAK", int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)


def planned(mode: str, model: Path, pairs: Path, options: dict[str, str]) -> float:
    from sparring.planning import memory
    from sparring.planning.lengths import Lengths
    from sparring.planning.shape import find_shape
    from sparring.policy.footprint import Parallel

    recipe = recipe_of(mode, model, options)
    rows = json.loads(pairs.read_text(encoding="utf-8"))
    counts = [[len(row[name]) for row in rows] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    lengths = Lengths(len(rows), 1, *map(fmean, counts), *map(max, counts), source="made up")
    return memory.training(find_shape(recipe.model), recipe.train, lengths, 2, int(options["tokens"]), "cpu", Parallel()).total


def measured(mode: str, model: Path, pairs: Path, options: dict[str, str]) -> int:
    command = [sys.executable, __file__, "child", mode, str(model), str(pairs), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.rpartition("PEAK ")[2])


def main(options: dict[str, str]) -> None:
    from memory_table import MODES

    pairs, model = random_pairs(int(options["duels"])), random_model(options["model"])
    print_origin()
    print("| trained | planned, GB | measured, GB | |\n|---|---|---|---|")
    results = {}
    for mode in MODES:
        if "QLoRA" in mode:
            continue
        expected, found = planned(mode, model, pairs, options), measured(mode, model, pairs, options)
        print(f"| {mode} | {expected / 1e9:.2f} | {found / 1e9:.2f} | {expected / found - 1:+.0%} |", flush=True)
        results[mode] = {"planned_gb": round(expected / 1e9, 3), "measured_gb": round(found / 1e9, 3)}
    save("memory_modes", {"options": options, "results": results})


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["child"] else main(options_of(DEFAULTS, sys.argv[1:]))
