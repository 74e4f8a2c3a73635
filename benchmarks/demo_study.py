"""Does SPIN help on the built-in task family? SPIN against its own start and against continued SFT at equal extra compute.

    python benchmarks/demo_study.py tune            # hyper-parameters, on the held-out rows of seed 100: they are never tested on
    python benchmarks/demo_study.py test 0 1 2      # the chosen ones, three seeds; writes benchmarks/results/demo_study.json

Every number of docs/results.md about the task family comes from here. A finished run directory is not played again.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from common import ROOT, print_origin, save

import sparring
from sparring.checkers.grades import find_answer
from sparring.console import set_up_logging
from sparring.data.chat import Chat
from sparring.data.prepare import prepare, read_examples
from sparring.evaluation.metrics import mean_score
from sparring.policy.load import load_tokenizer, model_facts

RECIPE = ROOT / "recipes" / "spin.yaml"
RUNS = ROOT / "runs" / "study"
SIZE = ["sampling.replies_per_prompt=3", "data.max_examples=360"]  # the recipe itself is a little smaller, to stay within minutes
VALIDATION_SEED = 100
SHARED = ("base", "data", "sft", "start")  # what no tuned value touches
NOT_LINKED = shutil.ignore_patterns(".lock", "run.log", "manifest.json")  # files that a run changes in place
SPIN_GRID = {"lr 5e-6": ["train.lr=5e-6"], "lr 1e-5": ["train.lr=1e-5"], "lr 2e-5": ["train.lr=2e-5"]}
CONTROL_GRID = {"lr 1e-5": ["controls.lr=1e-5"], "lr 3e-5": ["controls.lr=3e-5"]}
METRICS = ("exact_match", "exact_match_greedy", "nll_per_token")


def play(name: str, seed: int, overrides: list[str], share_from: str | None = None) -> dict[str, Any]:
    """One run of the recipe in runs/study/NAME, starting from the finished SFT stage of another run where there is one."""
    folder = RUNS / name
    if share_from and not folder.exists():
        folder.mkdir(parents=True)
        for stage in SHARED:
            shutil.copytree(RUNS / share_from / stage, folder / stage, copy_function=os.link)
    return sparring.run(RECIPE, [f"run_dir={folder}", f"seed={seed}", *SIZE, *overrides])


def tune() -> None:
    """Print the validation scores of every setting; the last iteration and the control are compared, and the best of each chosen by eye."""
    first = None
    for name, overrides in SPIN_GRID.items():
        directory = f"tune-spin-{overrides[0].rpartition('=')[2]}"
        summary = play(directory, VALIDATION_SEED, [*overrides, "controls=null"], first)
        first = first or directory
        for entry in [summary["start"], *summary["iterations"]]:
            show(f"SPIN {name} {entry.get('iteration', 'start')}", entry["scores"])
    for name, overrides in CONTROL_GRID.items():
        spin = ["train.lr=" + SPIN_GRID["lr 1e-5"][0].rpartition("=")[2]]
        directory = f"tune-control-{overrides[0].rpartition('=')[2]}"
        if not (RUNS / directory).exists():  # the game is the same: only the control is trained again
            shutil.copytree(RUNS / "tune-spin-1e-5", RUNS / directory, copy_function=os.link, symlinks=True, ignore=NOT_LINKED)
        summary = play(directory, VALIDATION_SEED, [*spin, *overrides])
        show(f"continued SFT {name}", summary["controls"][0]["scores"])


def test(seeds: list[int]) -> None:
    """Play every seed with the recipe's values and write the table."""
    summaries = {seed: play(f"seed-{seed}", seed, []) for seed in seeds}
    check_disjoint(seeds)
    models = dict(model_rows(summaries[seeds[0]]))
    table = {
        name: {metric: over_seeds([dict(model_rows(summaries[s]))[name][metric]["value"] for s in seeds]) for metric in METRICS}
        for name in models
    }
    last = list(models)[-2]
    pairs = {f"{last} - start": (last, "start"), f"{last} - continued SFT": (last, "continued SFT")}
    paired = {label: {kind: paired_difference(seeds, a, b, kind) for kind in ("reply", "greedy")} for label, (a, b) in pairs.items()}
    result = {
        "seeds": seeds,
        "scores": table,
        "paired_exact_match": paired,
        "wall_seconds": {s: seconds(summaries[s]) for s in seeds},
    }
    save("demo_study", result)
    print_markdown(result)


def model_rows(summary: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "start", summary["start"]["scores"]
    for entry in summary["iterations"]:
        yield f"iteration {entry['iteration']}", entry["scores"]
    for entry in summary["controls"]:
        yield entry["name"], entry["scores"]


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean and its standard error over seeds."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": statistics.mean(values), "stderr": error, "values": values}


def paired_difference(seeds: list[int], first: str, second: str, column: str) -> dict[str, Any]:
    """Exact match of two models on the same prompts, all seeds pooled: mean difference per prompt, its standard error, n."""
    differences = [a - b for seed in seeds for a, b in zip(correct(seed, first, column), correct(seed, second, column), strict=True)]
    return dict(mean_score(differences))


def correct(seed: int, model: str, column: str) -> list[float]:
    stages = {"start": "start/evaluate", "continued SFT": "continued-sft/evaluate"}
    stage = stages.get(model) or f"iterations/{int(model.split()[1]):03d}/evaluate"
    rows = pq.read_table(RUNS / f"seed-{seed}" / stage / "samples.parquet").sort_by("row_id").to_pylist()
    pattern = re.compile(sparring.load_recipe(RECIPE).evaluate.answer_pattern or "")
    answers = [(find_answer(pattern, row[column]), find_answer(pattern, row["human"])) for row in rows]
    return [float(expected is not None and found == expected) for found, expected in answers]


def check_disjoint(seeds: list[int]) -> None:
    """Stop when a prompt of any test part was seen in tuning: neither trained on nor chosen by."""
    recipe = sparring.load_recipe(RECIPE, SIZE)
    base = RUNS / f"seed-{seeds[0]}" / "base" / "model"
    prepared = prepare(recipe.data, Chat(load_tokenizer(base), None, model_facts(base)[1]), VALIDATION_SEED)
    tuned = {example.conversation.prompt_key for example in (*prepared.train, *prepared.held_out)}
    for seed in seeds:
        shared = tuned & prompts(RUNS / f"seed-{seed}" / "data" / "held_out.parquet")
        if shared:
            sys.exit(f"seed {seed}: {len(shared)} of its test prompts were seen in tuning; choose another seed")


def prompts(file: Path) -> set[str]:
    return {example.conversation.prompt_key for example in read_examples(file)}


def seconds(summary: dict[str, Any]) -> float:
    return round(sum(cost["wall_seconds"] for cost in summary["stages"].values()), 1)


def show(name: str, scores: dict[str, Any]) -> None:
    print(f"{name:32}", *(f"{metric} {scores[metric]['value']:.4f} +- {scores[metric]['stderr']:.4f}" for metric in METRICS), flush=True)


def print_markdown(result: dict[str, Any]) -> None:
    print_origin()
    print("| model | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for name, scores in result["scores"].items():
        print(f"| {name} | " + " | ".join(f"{scores[m]['mean']:.4f} ± {scores[m]['stderr'] or 0:.4f}" for m in METRICS) + " |")
    for label, kinds in result["paired_exact_match"].items():
        for kind, score in kinds.items():
            print(
                f"{label}, {'T=1' if kind == 'reply' else 'greedy'}: {score['value']:+.4f} ± {score['stderr']:.4f} (paired, n {score['n']})"
            )


if __name__ == "__main__":
    set_up_logging(quiet="-q" in sys.argv)
    match [argument for argument in sys.argv[1:] if argument != "-q"]:
        case ["tune"]:
            tune()
        case ["test", *numbers] if numbers:
            test([int(number) for number in numbers])
        case _:
            sys.exit(__doc__)
