"""Small optimizer states: they move the weights as the full ones do, nearly, and what they need is named where it is missing."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from sparring.config import TrainSection
from sparring.errors import UserError
from sparring.training.masters import make_optimizer, require_trainable


def moved(name: str, steps: int = 20) -> Tensor:
    """What `steps` gradients that agree in most places make of a matrix."""
    torch.manual_seed(0)
    model = nn.Linear(128, 128, bias=False)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, TrainSection(optimizer=name))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    mean = torch.randn(128, 128)
    for _ in range(steps):
        model.weight.grad = mean + 0.3 * torch.randn(128, 128)
        optimizer.step()
    return model.weight.detach() - before


@pytest.mark.parametrize(("small", "full"), [("rmsprop8bit", "rmsprop"), ("adamw8bit", "adamw")])
def test_8_bit_states_move_the_weights_as_full_ones_do(small: str, full: str) -> None:
    pytest.importorskip("bitsandbytes")
    found, expected = moved(small), moved(full)
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_adafactor_follows_the_gradient_at_the_size_of_the_weights() -> None:
    """Its step is lr times the matrix's root mean square (at least 1e-3), against the gradient."""
    found, reference = moved("adafactor", 1), moved("rmsprop", 1)
    assert torch.nn.functional.cosine_similarity(found.flatten(), reference.flatten(), dim=0) > 0.7
    of_weights = 1 / (128**0.5 * 3**0.5)  # nn.Linear draws from -1/sqrt(128) to 1/sqrt(128)
    assert found.square().mean().sqrt().item() == pytest.approx(1e-3 * of_weights, rel=0.1)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        require_trainable(TrainSection(optimizer="adamw8bit"), "train")
    assert error.value.where == "train.optimizer" and "bitsandbytes" in error.value.what and "sparring[8bit]" in error.value.remedy
    require_trainable(TrainSection(optimizer="adafactor"), "train")
