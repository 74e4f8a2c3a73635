"""docs/contributing.md, "How to add an engine": what stands there is done to a copy of the package, and a game is played with it."""

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

END_OF_TABLE = "\n    )\n}\n"
CHANGES: dict[str, Any] = {"sft": None, "controls": None, "iterations": 1, "showcase": []}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `src` with the two code blocks of the page in it."""
    copy, (entry, module) = package_with(tmp_path_factory.mktemp("engine"), "How to add an engine")
    table = copy.parent / entry.splitlines()[0].split(",")[0].removeprefix("# ")
    before = table.read_text(encoding="utf-8")
    assert before.endswith(END_OF_TABLE)
    table.write_text(f"{before.removesuffix(END_OF_TABLE)}\n        {entry.splitlines()[1]},{END_OF_TABLE}", encoding="utf-8")
    (copy.parent / module.splitlines()[0].removeprefix("# ")).write_text(module, encoding="utf-8")
    return copy


def typed(source: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sparring", *args]
    return subprocess.run(command, cwd=source.parent, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.game
def test_an_engine_as_the_page_adds_it_plays_a_game(source: Path) -> None:
    write_rows(source.parent / "rows.jsonl", rows())
    recipe = {**TINY, **CHANGES, "sampling": {**TINY["sampling"], "engine": "plain"}}
    (source.parent / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    played = typed(source, "run", "recipe.yaml")
    assert played.returncode == 0, played.stderr
    facts = json.loads((source.parent / "run/iterations/000/generate/done.json").read_text())["facts"]
    assert facts["replies"] == 48 and facts["logp_check"]["mean"] < 1e-5
    refused = typed(source, "run", "recipe.yaml", "run_dir=other", "sampling.top_p=0.5")
    assert refused.returncode == 2 and "sampling.top_p" in refused.stderr and "Traceback" not in refused.stderr
