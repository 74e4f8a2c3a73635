"""The same game on a CUDA device. These have to be run where there is one: `python -m pytest -m gpu`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import sparring
from sparring.config import SamplingSection
from sparring.data.records import Duel
from sparring.data.tables import read_rows
from sparring.opponent import hf
from sparring.opponent.protocol import Prompt, Stream
from sparring.policy.batches import Branches
from sparring.policy.score import Scorer
from sparring.policy.tiny import tiny_config
from sparring.training.tasks import SpinTask

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")]

ROOT = Path(__file__).parent.parent
SMALL = ["data.max_examples=24", "data.held_out=8", "sft=null", "controls=null", "iterations=2", "sampling.max_new_tokens=12"]
SMALL += ["objective.nll_weight=0"]  # so that the loss of the first step is log 2
SMALL += ["sampling.engine=transformers"]  # vLLM, the default where it is installed, takes a minute to start in every stage


def play(folder: Path, *overrides: str) -> dict[str, Any]:
    return sparring.run(ROOT / "recipes" / "tiny.yaml", [f"run_dir={folder}", *SMALL, *overrides])


def first_steps(folder: Path) -> list[dict[str, Any]]:
    import json

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] == 0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_game_runs_and_starts_at_margin_zero(tmp_path: Path, precision: str) -> None:
    """Exactly: the opponent pass and the first step compute the same micro-batches with the same weights."""
    summary = play(tmp_path, f"train.precision={precision}")
    assert len(summary["iterations"]) == 2
    for row in first_steps(tmp_path):
        assert row["margin"] == 0.0
        assert row["loss"] == pytest.approx(math.log(2), rel=1e-12)


def test_a_repeated_run_gives_the_same_replies(tmp_path: Path) -> None:
    play(tmp_path / "a")
    play(tmp_path / "b")
    one, other = (read_rows(tmp_path / name / "iterations/000/generate") for name in ("a", "b"))
    assert one and one == other


# heads of 16 numbers are the least that flex attention takes on a GPU
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
NINE_HEADS = {"hidden_size": 144, "num_attention_heads": 9, "num_key_value_heads": 3}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "llama, nine heads": lambda: transformers.LlamaConfig(**{**SHAPE, **NINE_HEADS}),
    "mistral, window": lambda: transformers.MistralConfig(**SHAPE, sliding_window=40),
    "gemma-2, window and soft caps": lambda: transformers.Gemma2Config(
        **SHAPE, head_dim=16, query_pre_attn_scalar=16, sliding_window=40, attn_logit_softcapping=3.0, final_logit_softcapping=2.0
    ),
}


def scorer_of(name: str, layout: str, dtype: torch.dtype = torch.float32) -> Scorer:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name](), dtype=dtype).eval().cuda()
    scorer = Scorer(model)
    scorer.layout = layout
    return scorer


def trees(count: int, longest: int, seed: int = 0) -> list[Branches]:
    """Prompts and one to three replies of 1 to `longest` tokens: at 150, squares of 128 tokens are blind, seen in part and seen whole."""
    draw = random.Random(seed)

    def ids() -> tuple[int, ...]:
        return tuple(draw.randrange(2, 64) for _ in range(draw.randint(1, longest)))

    return [Branches(ids(), tuple(ids() for _ in range(draw.randint(1, 3)))) for _ in range(count)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("longest", [6, 150])
@pytest.mark.parametrize("name", MODELS)
def test_packed_trees_score_as_rows_of_their_own_do(name: str, longest: int, checkpointing: bool) -> None:
    """Flex attention against the model's own, values and gradients."""
    found = {}
    for layout in ("tree", "rows"):
        scorer = scorer_of(name, layout)
        if checkpointing and layout == "tree":
            scorer.use_gradient_checkpointing()
        logps = scorer(scorer.collate(trees(8, longest)))
        (logps[:, 0].sum() - logps[:, 1].sum()).backward()
        found[layout] = (logps.detach(), scorer.model.model.embed_tokens.weight.grad)
    for tree, rows in zip(found["tree"], found["rows"], strict=True):
        torch.testing.assert_close(tree, rows, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_of_new_sizes_compile_nothing_new(name: str) -> None:
    """Past torch's limit of recompilations flex attention would hold all scores at once, without an error."""
    scorer, graphs = scorer_of(name, "tree", torch.bfloat16), []
    for number in range(12):
        scorer(scorer.collate(trees(4 + number, 20 + 9 * number, number))).sum().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[5:] == [graphs[5]] * 7


def test_blind_scores_are_not_held() -> None:
    """Some 9,000 tokens: their scores would take 1.3 GB in float32, of one layer."""
    scorer = scorer_of("llama", "tree")
    batch = scorer.collate(trees(40, 150))
    assert 6000 < batch.tokens < 16_000
    scorer(batch).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scorer(batch).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 4 * batch.tokens**2


def test_a_micro_batch_waits_for_nothing() -> None:
    """So that the next one is prepared while the GPU is at this one."""
    scorer = scorer_of("llama", "tree", torch.bfloat16)
    duels = [Duel(str(n), 0, tree.prompt_ids, tree.replies[0], ((9, 9, 1),)) for n, tree in enumerate(trees(8, 150))]
    task = SpinTask(duels, {duel.duel_id: [0.0, 0.0] for duel in duels}, 0.1, "logistic")

    def pass_over(indices: Sequence[int]) -> None:
        logps = scorer(scorer.collate([task.branches(index) for index in indices]))
        task.losses(indices, logps).loss_D.sum().backward()

    for few in (range(8), range(5), range(3)):  # what is compiled and allocated once
        pass_over(few)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pass_over(range(8))
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
        assert row["margin"] == 0.0
