"""The same game on a CUDA device. These have to be run where there is one: `python -m pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sparring

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")]

ROOT = Path(__file__).parent.parent
SMALL = ["data.max_examples=24", "data.held_out=8", "sft=null", "baseline=null", "iterations=2", "sampling.max_new_tokens=12"]


def play(folder: Path, *overrides: str) -> dict[str, Any]:
    return sparring.run(ROOT / "recipes" / "tiny.yaml", [f"run_dir={folder}", *SMALL, *overrides])


def first_steps(folder: Path) -> list[dict[str, Any]]:
    import json

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] == 0]


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-6), ("bf16", 1e-3)])
def test_the_game_runs_and_starts_at_margin_zero(tmp_path: Path, precision: str, bound: float) -> None:
    summary = play(tmp_path, f"train.precision={precision}")
    assert len(summary["iterations"]) == 2
    for row in first_steps(tmp_path):
        assert abs(row["margin"]) <= bound
        assert row["loss"] == pytest.approx(0.693147, abs=1e-3)


def test_a_repeated_run_gives_the_same_replies(tmp_path: Path) -> None:
    play(tmp_path / "a")
    play(tmp_path / "b")
    replies = [(tmp_path / name / "iterations/000/generate/shard-00000.parquet").read_bytes() for name in ("a", "b")]
    assert replies[0] == replies[1]
