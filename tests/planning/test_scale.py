"""docs/scale.md shows what its script finds, and the script counts as it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from zygote import Zygote

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def scale(fresh_scripts: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scale_plan")


def test_the_page_shows_what_the_script_finds(scale: ModuleType, zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], cwd: Path, **_: Any) -> None:
        """Without the seconds that Python takes to start."""
        result = zygote.run(command[command.index("plan") :], cwd)
        assert result.code == 0, result.err

    monkeypatch.setattr(scale.subprocess, "run", run)
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for game in scale.GAMES:
        assert f"```bash\n{game.command}\n```\n\n" + "\n".join(scale.table(game)) + "\n" in page


def test_bytes_are_those_of_a_count_by_hand(scale: ModuleType) -> None:
    """1B parameters on two devices: 20 micro-batches of 100 tokens each train, 10 of them score; 400 items of 10 tokens, 64 a step."""
    game = scale.GAMES[0]
    found = {
        "model": {"parameters": 1e9},
        "data": {"prompt": 4.0, "reply": 4.0, "generated": 4.0},
        "training_devices": {"devices": 2},
        "micro_batch_tokens": 100,
        "stages": [
            {"stage": "iterations/000/generate", "tokens": 9e9, "hours": 1.0},
            {"stage": "iterations/000/score", "tokens": 2000.0, "hours": 1.0},
            {"stage": "iterations/000/train", "tokens": 4000.0, "hours": 1.0},
            {"stage": "iterations/001/train", "tokens": 64 * 101 * 10.0, "hours": 1.0},
        ],
    }
    generate, score, train, longer = scale.moved(game, found)
    assert generate.received == generate.written == 0
    assert score.received == 10 * 2e9 / 2 and score.written == 0
    assert train.received == 20 * 8e9 / 2 and train.written == 0, "7 steps, and a checkpoint after every 50"
    assert longer.written == 2 * 8e9, "101 steps: after 50 and 100"
    assert train.talk_hours == pytest.approx(80e9 / 450e9 / 3600)
    assert scale.total([score, train]).received == score.received + train.received
