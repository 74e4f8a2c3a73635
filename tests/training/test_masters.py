"""float32 masters under a bfloat16 model: gradients arrive whole, values are published, and what exists is what the docs say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparring.policy.load import load_model
from sparring.policy.tiny import make_tiny
from sparring.training.masters import MasterWeights

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
    assert weights.model is weights.masters


def test_gradients_are_summed_in_float32(start: Path) -> None:
    """Over 300 equal micro-batches: bfloat16 sums would stop growing at 256 times the first."""
    weights = MasterWeights(start, torch.bfloat16, CPU)
    loss_of(weights.model, IDS).backward()
    once = [master.grad.clone() for master in weights.masters.parameters()]
    for _ in range(299):
        loss_of(weights.model, IDS).backward()
    for master, gradient in zip(weights.masters.parameters(), once, strict=True):
        assert master.grad.dtype == torch.float32
        torch.testing.assert_close(master.grad, 300 * gradient, rtol=1e-5, atol=0)
    assert all(parameter.grad is None for parameter in weights.model.parameters()), "each is freed as soon as it was added"


def test_gradients_are_those_of_the_bfloat16_model(start: Path) -> None:
    """Tied embeddings included: their gradient comes from both ends."""
    weights, plain = MasterWeights(start, torch.bfloat16, CPU), load_model(start, torch.bfloat16)
    loss_of(weights.model, IDS).backward()
    loss_of(plain, IDS).backward()
    for (name, master), parameter in zip(weights.masters.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(master.grad, parameter.grad.float()), name


def test_values_are_published_as_loading_would_round_them(start: Path, tmp_path: Path) -> None:
    weights = MasterWeights(start, torch.bfloat16, CPU)
    with torch.no_grad():
        for master in weights.masters.parameters():
            master.mul_(1.2345)
    weights.publish()
    weights.masters.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, torch.bfloat16)
    for ours, theirs in zip(weights.model.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
