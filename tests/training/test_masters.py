"""float32 masters under a bfloat16 model: gradients arrive whole, values are published, and what exists is what the docs say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sparring.config import TrainSection
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.load import load_model
from sparring.policy.tiny import make_tiny
from sparring.training import masters
from sparring.training.masters import MasterWeights, make_optimizer

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_tiny(folder, 0)
    return folder


def loss_of(model: torch.nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss


def test_in_float32_the_model_is_its_own_master(start: Path) -> None:
    weights = MasterWeights(start, torch.float32, CPU)
    assert weights.model is weights.master_model


@pytest.mark.parametrize("rows", [masters.ROWS_AT_ONCE, 3])
def test_gradients_are_summed_in_float32(start: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 300 equal micro-batches, in one part and in several: bfloat16 sums would stop growing at 256 times the first."""
    monkeypatch.setattr(masters, "ROWS_AT_ONCE", rows)
    weights = MasterWeights(start, torch.bfloat16, CPU)
    loss_of(weights.model, IDS).backward()
    once = [master.grad.clone() for master in weights.master_model.parameters()]
    for _ in range(299):
        loss_of(weights.model, IDS).backward()
    for master, gradient in zip(weights.master_model.parameters(), once, strict=True):
        assert master.grad.dtype == torch.float32
        torch.testing.assert_close(master.grad, 300 * gradient, rtol=1e-5, atol=0)
    assert all(parameter.grad is None for parameter in weights.model.parameters()), "each is freed as soon as it was added"


def test_gradients_are_those_of_the_bfloat16_model(start: Path) -> None:
    """Tied embeddings included: their gradient comes from both ends."""
    weights, plain = MasterWeights(start, torch.bfloat16, CPU), load_model(start, torch.bfloat16)
    loss_of(weights.model, IDS).backward()
    loss_of(plain, IDS).backward()
    for (name, master), parameter in zip(weights.master_model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(master.grad, parameter.grad.float()), name


def test_a_frozen_parameter_gets_no_gradient_and_is_no_obstacle(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some mixtures of experts have them."""

    def frozen(*args: Any) -> transformers.PreTrainedModel:
        model = load_model(*args)
        next(model.parameters()).requires_grad = False
        return model

    monkeypatch.setattr("sparring.training.masters.load_model", frozen)
    weights = MasterWeights(start, torch.bfloat16, CPU)
    loss_of(weights.model, IDS).backward()
    first, *others = weights.master_model.parameters()
    assert first.grad is None and all(master.grad is not None for master in others)


def test_values_are_published_as_loading_would_round_them(start: Path, tmp_path: Path) -> None:
    weights = MasterWeights(start, torch.bfloat16, CPU)
    with torch.no_grad():
        for master in weights.master_model.parameters():
            master.mul_(1.2345)
    weights.sync_compute_weights()
    weights.master_model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, torch.bfloat16)
    for ours, theirs in zip(weights.model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


DOCS = Path(__file__).parents[2] / "docs" / "fast-path.md"
ROW = re.compile(r"^\| (bf16|fp32) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
DOCUMENTED = [(precision, optimizer, *map(float, numbers)) for precision, optimizer, *numbers in ROW.findall(DOCS.read_text())]


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def test_every_mode_is_documented() -> None:
    optimizers = {"rmsprop", "adamw", "adafactor", "rmsprop8bit", "adamw8bit"}
    assert {row[:2] for row in DOCUMENTED} == {(precision, name) for precision in ("bf16", "fp32") for name in optimizers}


@pytest.mark.parametrize(("precision", "optimizer", "weights_bytes", "gradient_bytes", "state_bytes", "total"), DOCUMENTED)
def test_bytes_per_parameter_are_those_of_the_docs(
    precision: str, optimizer: str, weights_bytes: float, gradient_bytes: float, state_bytes: float, total: float, tmp_path: Path
) -> None:
    """Counted after a step, when all that there will be is there."""
    if optimizer.endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_key_value_heads=2)).save_pretrained(tmp_path)
    weights = MasterWeights(tmp_path, COMPUTE_DTYPES[precision], CPU)
    moving = make_optimizer(weights.master_model, TrainSection(optimizer=optimizer))
    loss_of(weights.model, IDS).backward()
    moving.step()
    count = weights.master_model.num_parameters()
    held = [*weights.master_model.parameters(), *weights.model.parameters()]
    assert nbytes(held) / count == pytest.approx(weights_bytes, abs=0.05)
    assert nbytes(p.grad for p in held if p.grad is not None) / count == pytest.approx(gradient_bytes, abs=0.05)
    states = [value for state in moving.state.values() for value in state.values() if isinstance(value, Tensor)]
    assert nbytes(states) / count == pytest.approx(state_bytes, abs=0.05)
    assert total == pytest.approx(weights_bytes + gradient_bytes + state_bytes, abs=0.05)
