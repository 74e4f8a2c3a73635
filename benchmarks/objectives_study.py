"""Which objective keeps what it has won? A toy model that sorts digits, four iterations, one row per objective.

    python benchmarks/objectives_study.py 0 1 2                     # seeds; writes benchmarks/results/objectives_study.json
    python benchmarks/objectives_study.py 0 into=try data.max_examples=60 data.held_out=20 sft.epochs=1   # any key of the recipe

`into=NAME` plays in runs/objectives_study/NAME and writes objectives_study-NAME.json. A finished run is not played again. The start of the
game is the same for all objectives of a seed. "last - best" is the last iteration less the best one before it, seed by seed: that best
one was chosen by the same noisy score, so that an objective which merely stands still comes out a little below 0.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from common import save
from demo_study import SHARED, over_seeds

import sparring
from sparring.console import set_up_logging

RUNS = Path(__file__).parent.parent / "runs" / "objectives_study"
ROWS, DIGITS = 4000, 6
METRICS = ("exact_match", "exact_match_greedy", "nll_per_token")
RECIPE: dict[str, Any] = {
    "model": {"path": "builtin:tiny", "dtype": "float32"},
    "data": {"max_examples": 1000, "held_out": 400},
    "sft": {"lr": 3e-3, "epochs": 12, "batch_size": 32, "precision": "fp32"},
    "iterations": 4,
    "sampling": {"max_new_tokens": 16, "replies_per_prompt": 4},
    "train": {"lr": 1e-4, "epochs": 1, "batch_size": 32, "precision": "fp32"},
    "evaluate": {"answer_pattern": ".+", "greedy": True},
    "stop": {"indistinguishable": False},
    "showcase": [],
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "SPIN, beta 1": {},
    "SPIN, beta 0.1": {"beta": 0.1},
    "SPIN, beta 0.1, NLL 0.5": {"beta": 0.1, "nll_weight": 0.5},
    "SPACE": {"loss": "space"},
    "T-SPIN": {"loss": "t-spin"},
    "alpha-SPIN, all opponents": {"loss": "alpha-spin", "window": 4},
}


def study(seeds: list[int], name: str, overrides: list[str]) -> None:
    """Play every objective from every seed's start and write the table."""
    folder = RUNS / name
    data = write_rows(folder)
    summaries = {objective: [play(folder, data, seed, objective, overrides) for seed in seeds] for objective in OBJECTIVES}
    result = {
        "seeds": seeds,
        "overrides": overrides,
        "scores": {objective: {metric: scores(found, metric) for metric in METRICS} for objective, found in summaries.items()},
    }
    save("objectives_study" + (f"-{name}" if name else ""), result)
    print_markdown(result)


def write_rows(folder: Path) -> Path:
    """Distinct rows: digits to sort, and the digits sorted."""
    draw, rows = random.Random(0), {}
    while len(rows) < ROWS:
        digits = [str(draw.randrange(10)) for _ in range(DIGITS)]
        rows["sort " + "".join(digits)] = "".join(sorted(digits))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt, "completion": reply}) + "\n" for prompt, reply in rows.items()))
    return file


def play(folder: Path, data: Path, seed: int, objective: str, overrides: list[str]) -> dict[str, Any]:
    """One run; its stages before the game are links to those of the seed's first one."""
    first, root = (folder / f"seed-{seed}" / str(place) for place in (0, list(OBJECTIVES).index(objective)))
    if not root.exists() and root != first:
        root.mkdir(parents=True)
        for stage in SHARED:
            shutil.copytree(first / stage, root / stage, copy_function=os.link)
    recipe = {**RECIPE, "run_dir": str(root), "seed": seed, "objective": OBJECTIVES[objective]}
    return sparring.run({**recipe, "data": {**RECIPE["data"], "path": str(data)}}, overrides)


def scores(summaries: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Mean over seeds with its error: of the start, of every iteration, and of the last less the best before it."""
    values = [[row["scores"][metric]["value"] for row in (summary["baseline"], *summary["iterations"])] for summary in summaries]
    higher = summaries[0]["baseline"]["scores"][metric]["higher_is_better"]
    best = max if higher else min
    sign = 1 if higher else -1  # so that above 0 is better
    kept = [sign * (row[-1] - best(row[1:-1])) for row in values]
    return {"players": [over_seeds(list(column)) for column in zip(*values, strict=True)], "last_less_best_before": over_seeds(kept)}


def print_markdown(result: dict[str, Any]) -> None:
    for metric in METRICS:
        rows = {objective: found[metric] for objective, found in result["scores"].items()}
        count = len(next(iter(rows.values()))["players"]) - 1
        names = ["start", *(f"iteration {t}" for t in range(count)), "last - best"]
        print(f"\n{metric}, seeds {result['seeds']}\n\n| objective | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
        for objective, found in rows.items():
            cells = [f"{cell['mean']:.3f}" + _error(cell) for cell in found["players"]]
            kept = found["last_less_best_before"]
            print(f"| {objective} | " + " | ".join(cells) + f" | {kept['mean']:+.3f}{_error(kept)} |")


def _error(cell: dict[str, Any]) -> str:
    return "" if cell["stderr"] is None else f" ± {cell['stderr']:.3f}"


if __name__ == "__main__":
    set_up_logging(quiet="-q" in sys.argv)
    arguments = [argument for argument in sys.argv[1:] if argument != "-q"]
    numbers = [int(argument) for argument in arguments if argument.isdecimal()]
    if not numbers:
        sys.exit(__doc__)
    options = [argument for argument in arguments if not argument.isdecimal()]
    into = [option.removeprefix("into=") for option in options if option.startswith("into=")]
    study(numbers, (into or [""])[-1], [option for option in options if not option.startswith("into=")])
