"""The timing scripts work: a copy of them, over a model of random weights. docs/fast-path.md shows what they have measured."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


def test_the_scaling_script_measures_every_size(
    fresh_scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runs are those of training_speed.py; here they are no processes of their own, which would take their time to start."""
    shutil.copytree(SCRIPTS, tmp_path / "benchmarks", ignore=shutil.ignore_patterns("results", "tasks"))
    monkeypatch.syspath_prepend(tmp_path / "benchmarks")
    training_speed, scaling = (importlib.import_module(name) for name in ("training_speed", "scaling"))

    def in_this_process(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:3] == [str(tmp_path / "benchmarks/training_speed.py"), "child"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            training_speed.child(*command[3:])
        return subprocess.CompletedProcess(command, 0, said.getvalue(), "")

    monkeypatch.setattr(training_speed, "subprocess", type("Processes", (), {"run": staticmethod(in_this_process)}))
    scaling.main({**scaling.DEFAULTS, "model": "llama-tiny", "duels": "4", "tokens": "6", "longer": "12"})
    short, long = json.loads((tmp_path / "benchmarks/results/scaling-llama-tiny.json").read_text())["results"]
    assert [short["duels"], short["reply_tokens"], long["reply_tokens"]] == [4, 6, 12] and short["tokens"] < long["tokens"]
    assert all(one["seconds"] > 0 and one["peak_memory_gb"] > 0.1 and one["steps"] == 1 for one in (short, long))
    assert capsys.readouterr().out.count("\n| 4 | ") == 2


def test_the_page_shows_what_one_command_measured_on_one_commit(fresh_scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    page = (SCRIPTS.parent / "docs" / "fast-path.md").read_text(encoding="utf-8")
    made = {}
    for name, key in (("training_speed", "results"), ("sampling_speed", "tokens_per_second"), ("scaling", "results")):
        made[name] = json.loads((SCRIPTS / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert "\n".join(importlib.import_module(name).table(made[name][key])) in page, name
    measured = [one["machine"] for one in (*made.values(), *made["training_speed"]["results"].values())]
    assert all(one == measured[0] for one in measured)
    assert f"{measured[0]['processor']}, {measured[0]['cores']} cores, commit {measured[0]['commit']}" in page
    assert min(one["runs"] for one in made["training_speed"]["results"].values()) == 3
