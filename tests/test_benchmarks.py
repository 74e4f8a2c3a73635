"""The timing scripts work: a copy of them, over a model of random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


def test_the_scaling_script_measures_every_size(tmp_path: Path) -> None:
    """Its runs are those of training_speed.py, one process each."""
    shutil.copytree(SCRIPTS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results", "tasks"))
    command = [sys.executable, "benchmarks/scaling.py", "model=llama-tiny", "duels=4", "tokens=6", "longer=12"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    short, long = json.loads((tmp_path / "benchmarks/results/scaling-llama-tiny.json").read_text())["results"]
    assert [short["duels"], short["reply_tokens"], long["reply_tokens"]] == [4, 6, 12] and short["tokens"] < long["tokens"]
    assert all(one["seconds"] > 0 and one["peak_memory_gb"] > 0.1 and one["steps"] == 1 for one in (short, long))
    assert said.count("\n| 4 | ") == 2
