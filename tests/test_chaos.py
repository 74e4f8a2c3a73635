"""A small share of the campaign `make chaos`, and that it goes on from where it was."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from conftest import Game
from zygote import Zygote

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


def test_a_small_share_of_the_campaign(
    fresh_scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], zygote: Zygote, played: Game
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    chaos = importlib.import_module("chaos")
    options = {**chaos.DEFAULTS, "kills": "1", "inputs": "6", "probes": "1", "seed": "7", "folder": str(tmp_path)}
    expected = {kind: {"tried": count, "passed": count} for kind, count in (("kills", 1), ("inputs", 6), ("probes", 1))}
    assert chaos.main(options, zygote, played) == expected, capsys.readouterr().out
    (tmp_path / "inputs.jsonl").write_text("".join(json.dumps({"n": n, "passed": n > 0, "what": "there"}) + "\n" for n in range(6)))
    assert chaos.main(options, zygote, played) == {**expected, "inputs": {"tried": 6, "passed": 5}}, "what is there is not tried again"
