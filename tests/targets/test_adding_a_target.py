"""docs/contributing.md, "How to add a target": its steps are done to a copy of the package, and a game is played with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, package_with, rows, write_rows

KINDS = 'kind: Literal["human", "verified", "majority"]'
EVEN = "def even(completions, **_):\n    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n"
CHANGES: dict[str, Any] = {
    "sft": None,
    "controls": None,
    "iterations": 1,
    "showcase": [],
    "sampling": {**TINY["sampling"], "temperature": 2.0},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `src` with the two code blocks of the page in it, and the name among the values of `kind`."""
    copy, (module, entry) = package_with(tmp_path_factory.mktemp("target"), "How to add a target")
    (copy.parent / module.splitlines()[0].removeprefix("# ")).write_text(module, encoding="utf-8")
    with open(copy.parent / entry.splitlines()[0].split(",")[0].removeprefix("# "), "a", encoding="utf-8") as table:
        table.write(entry)
    options = copy / "sparring" / "config" / "sections" / "target.py"
    before = options.read_text(encoding="utf-8")
    assert before.count(KINDS) == 1
    options.write_text(before.replace(KINDS, KINDS[:-1] + ', "shortest"]'), encoding="utf-8")
    return copy


@pytest.mark.game
def test_a_target_as_the_page_adds_it_plays_a_game(source: Path) -> None:
    write_rows(source.parent / "rows.jsonl", rows())
    (source.parent / "even.py").write_text(EVEN, encoding="utf-8")
    target = {"kind": "shortest", "checker": "even.py:even"}
    recipe = {**TINY, **CHANGES, "target": target, "objective": {"loss": "sft"}, "evaluate": {"metric": "nll_per_token"}}
    (source.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sparring"]
    for arguments in (["run", "recipe.yaml"], ["status", "run"], ["report", "run"]):
        done = subprocess.run(
            [*command, *arguments], cwd=source.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
    counts = json.loads((source.parent / "run/iterations/000/train/done.json").read_text())["facts"]["counts"]
    assert counts["winners"] <= counts["prompts"] == 24 and counts["human_wins"] + counts.get("decided", 0) <= 24
