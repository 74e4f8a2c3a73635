"""One iteration on 300 real GSM8K and 300 real Dolly rows: the shipped recipes on local copies of the data.

    python benchmarks/real_data.py DATA_FOLDER        # the folder with gsm8k_train.jsonl and dolly_1k.jsonl

Writes benchmarks/results/real_data.json and prints the tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import ROOT, print_origin, save
from rich.console import Console

import sparring
from sparring.console import set_up_logging
from sparring.report.run_files import print_summary


def main(folder: Path) -> None:
    set_up_logging()
    dolly = unwrap_dolly(folder / "dolly_1k.jsonl", ROOT / "runs" / "dolly_rows.jsonl")
    games = {
        "gsm8k": [f"data.path={folder / 'gsm8k_train.jsonl'}", "data.name=null"],
        "dolly": [f"data.path={dolly}", "data.columns={}"],
    }
    results = {}
    for name, overrides in games.items():
        run_dir = ROOT / "runs" / name
        summary = sparring.run(ROOT / "recipes" / f"{name}.yaml", [f"run_dir={run_dir}", *overrides])
        print_summary(summary, run_dir, Console(width=160, highlight=False))
        print("seconds:", {stage: cost["wall_seconds"] for stage, cost in summary["stages"].items()}, flush=True)
        results[name] = {key: summary[key] for key in ("start", "iterations", "best", "stop_reason", "stages")}
    print_origin()
    save("real_data", {"results": results})


def unwrap_dolly(source: Path, target: Path) -> Path:
    """Take the prompts out of the file's Alpaca template, which would be a template within the model's own."""
    rows: list[dict[str, Any]] = []
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        inside = row["prompt"].partition("### Instruction:")[2].rpartition("### Response:")[0].strip()
        rows.append({"prompt": inside, "completion": row["response"]})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
