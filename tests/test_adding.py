"""docs/contributing.md, how to add an engine, a launcher, a metric, a target: added to a copy of the package, which plays a game."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, package_with, rows, write_rows

END_OF_TABLE = "\n    )\n}\n"
SMALL: dict[str, Any] = {**TINY, "sft": None, "controls": None, "iterations": 1, "showcase": []}
EVEN = "def even(completions, **_):\n    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n"
pytestmark = pytest.mark.long


class Copy:
    """A folder with a copy of `src`, to which the code blocks of a section of the page were added, and with rows.jsonl."""

    def __init__(self, folder: Path, section: str) -> None:
        self.folder = folder
        self.source, blocks = package_with(folder, section)
        for block in blocks:
            self.add(block)
        write_rows(folder / "rows.jsonl", rows())

    def add(self, block: str) -> None:
        """Its first line has the file, and after a comma where in it."""
        name, _, where = block.splitlines()[0].removeprefix("# ").partition(", ")
        file = self.folder / name
        before = file.read_text(encoding="utf-8") if where else ""
        value = block.splitlines()[1]
        if where.startswith("one more entry"):
            assert before.endswith(END_OF_TABLE)
            changed = f"{before.removesuffix(END_OF_TABLE)}\n        {value},{END_OF_TABLE}"
        elif where.startswith("one more value"):
            changed, count = re.subn(rf"(\b{where.split()[-1]}(?: =|:) Literal\[[^\]]*)\]", rf"\1, {value}]", before)
            assert count == 1
        else:
            changed = before + block
        file.write_text(changed, encoding="utf-8")

    def write(self, **sections: Any) -> None:
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump({**SMALL, **sections}), encoding="utf-8")

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.source), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "sparring", *args]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False)

    def json(self, name: str) -> Any:
        return json.loads((self.folder / "run" / name).read_text(encoding="utf-8"))


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Copy:
    return Copy(tmp_path, f"How to add {request.param}")


@pytest.mark.parametrize("made", ["an engine"], indirect=True)
def test_an_engine(made: Copy) -> None:
    made.write(sampling={**TINY["sampling"], "engine": "plain"})
    played = made.command("run", "recipe.yaml")
    assert played.returncode == 0, played.stderr
    facts = made.json("iterations/000/generate/done.json")["facts"]
    assert facts["replies"] == 48 and facts["logp_check"]["mean"] < 1e-5
    refused = made.command("run", "recipe.yaml", "run_dir=other", "sampling.top_p=0.5")
    assert refused.returncode == 2 and "sampling.top_p" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("made", ["a target"], indirect=True)
def test_a_target(made: Copy) -> None:
    (made.folder / "even.py").write_text(EVEN, encoding="utf-8")
    made.write(
        target={"kind": "shortest", "checker": "even.py:even"},
        objective={"loss": "sft"},
        evaluate={"metric": "nll_per_token"},
        sampling={**TINY["sampling"], "temperature": 2.0, "max_new_tokens": 60},  # some end their turn, and can win
    )
    for arguments in (["run", "recipe.yaml"], ["status", "run"], ["report", "run"]):
        done = made.command(*arguments)
        assert done.returncode == 0, done.stderr
    counts = made.json("iterations/000/train/done.json")["facts"]["counts"]
    assert counts["winners"] <= counts["prompts"] == 24 and counts["human_wins"] + counts.get("decided", 0) <= 24


@pytest.mark.parametrize("made", ["a metric"], indirect=True)
def test_a_metric(made: Copy) -> None:
    made.write(evaluate={"metric": "repeated_bigrams"}, report=True)
    played = made.command("run", "recipe.yaml")
    assert played.returncode == 0, played.stderr
    summary = made.json("summary.json")
    scores = [entry["scores"]["repeated_bigrams"] for entry in (summary["start"], *summary["iterations"])]
    assert [score["n"] for score in scores] == [8, 8] and all(0 <= score["value"] <= 1 for score in scores)
    assert summary["best"]["metric"] == "repeated_bigrams" and not scores[0]["higher_is_better"]
    compared = made.command("compare", "run", "--metric", "repeated_bigrams", "--json", "run/compared.json")
    assert compared.returncode == 0, compared.stderr
    assert [row["scores"]["repeated_bigrams"]["value"] for row in made.json("compared.json")["players"]] == [s["value"] for s in scores]


@pytest.mark.parametrize("made", ["a launcher"], indirect=True)
def test_a_launcher(made: Copy) -> None:
    made.write(train={**TINY["train"], "micro_batch_tokens": 60})
    played = made.command("run", "recipe.yaml")
    assert played.returncode == 0, played.stderr
    again = "iterations/000/score"
    shutil.rmtree(made.folder / "run" / again)
    launcher = ["launcher.kind=torchrun", "launcher.processes=2", "launcher.cpu=true"]
    launched = made.command("run", "recipe.yaml", *launcher)
    assert launched.returncode == 0, launched.stderr
    assert "torchrun" in (made.folder / "run" / "launch.yaml").read_text(encoding="utf-8"), "what the ranks were given"
    assert made.json(f"{again}/done.json")["facts"]["ranks"] == 2
    refused = made.command("run", "recipe.yaml", "run_dir=other", *launcher, "launcher.machines=2", "launcher.main_process_ip=127.0.0.1")
    assert refused.returncode == 2 and "on one machine" in refused.stderr, refused.stderr
