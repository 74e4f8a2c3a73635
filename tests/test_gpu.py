"""The same game on a CUDA device. These have to be run where there is one: `python -m pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import sparring
from sparring.config import SamplingSection
from sparring.data.tables import read_rows
from sparring.opponent import hf
from sparring.opponent.protocol import Prompt, Stream
from sparring.policy.batches import Branches
from sparring.policy.score import Scorer
from sparring.policy.tiny import tiny_config

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
    one, other = (read_rows(tmp_path / name / "iterations/000/generate") for name in ("a", "b"))
    assert one and one == other


def test_packed_trees_score_as_rows_of_their_own_do() -> None:
    """Flex attention against the model's own, values and gradients."""
    found = {}
    for layout in ("tree", "rows"):
        torch.manual_seed(0)
        scorer = Scorer(transformers.LlamaForCausalLM(tiny_config(vocabulary=64, hidden=64)).eval().cuda())
        scorer.layout = layout
        logps = scorer(scorer.collate([Branches((5, 6, 7, 8), ((9, 10, 1), (11, 1), (12, 13, 14, 1))), Branches((3,), ((4, 5),))]))
        logps[:, 0].sum().backward()
        found[layout] = (logps.detach(), scorer.model.model.embed_tokens.weight.grad)
    for tree, rows in zip(found["tree"], found["rows"], strict=True):
        torch.testing.assert_close(tree, rows, rtol=1e-4, atol=1e-4)


def test_packed_sampling_gives_the_replies_of_padded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt(f"row{n}", 0, tuple(range(3, 5 + n % 7))) for n in range(20)]
    found = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(hf, "packed_rows_agree", lambda *_: False)
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(tiny_config(vocabulary=64, hidden=64)).eval().cuda()
        engine = hf.TransformersEngine(model, SamplingSection(max_new_tokens=12, batch_tokens=90), range(1, 6))
        found.append(engine.sample(prompts, Stream(0, 0)))
        assert engine._takes_packed_rows is packed
    assert found[0] == found[1]


def test_a_game_over_a_base_in_four_bits(tmp_path: Path) -> None:
    """QLoRA: the quantised base samples, scores and trains, so the game starts at margin 0 in every iteration."""
    pytest.importorskip("bitsandbytes")
    summary = play(tmp_path, "train.lora.quantize=4bit", "train.lora.rank=4", "train.lr=1e-2")
    assert len(summary["iterations"]) == 2
    for row in first_steps(tmp_path):
        assert abs(row["margin"]) <= 1e-3
