"""Checkpoints: whole or ignored, bit for bit, and no pickles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from sparring.config import TrainSection
from sparring.policy.load import load_model
from sparring.rundir import write_json
from sparring.training import checkpoint
from sparring.training.checkpoint import flat_state, latest_checkpoint, remove_checkpoints, restore_optimizer, save_checkpoint
from sparring.training.masters import make_optimizer


def tiny(seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, tie_word_embeddings=True, **shape))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    """Steps with random gradients that depend on the seed alone."""
    draw = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()


def optimizer_of(model: torch.nn.Module, name: str) -> torch.optim.Optimizer:
    return make_optimizer(model, TrainSection(optimizer=name, weight_decay=0.01))


def weights(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "adafactor", "rmsprop8bit", "adamw8bit"])
def test_weights_and_optimizer_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    if name.endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    model = tiny()
    optimizer = optimizer_of(model, name)
    train(model, optimizer, 3, seed=1)
    save_checkpoint(tmp_path, 3, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    step, folder = latest_checkpoint(tmp_path)
    assert step == 3

    restored = load_model(folder)
    assert all(map(torch.equal, weights(restored), weights(model)))
    other = optimizer_of(restored, name)
    restore_optimizer(folder, other)
    expected, found = (flat_state(each.state_dict()["state"]) for each in (optimizer, other))
    assert expected.keys() == found.keys() and expected
    for name_of_tensor, tensor in expected.items():
        assert tensor.dtype == found[name_of_tensor].dtype and torch.equal(tensor, found[name_of_tensor]), name_of_tensor

    train(model, optimizer, 2, seed=2)
    train(restored, other, 2, seed=2)
    assert all(map(torch.equal, weights(restored), weights(model)))


def test_without_its_state_the_optimizer_goes_elsewhere() -> None:
    """The control of the test above: the state matters."""
    for name in ("rmsprop", "adamw"):
        model, fresh = tiny(), tiny()
        optimizer = optimizer_of(model, name)
        train(model, optimizer, 3, seed=1)
        fresh.load_state_dict(model.state_dict())
        train(model, optimizer, 1, seed=2)
        train(fresh, optimizer_of(fresh, name), 1, seed=2)
        assert not all(map(torch.equal, weights(fresh), weights(model)))


def test_only_the_newest_is_kept_and_nothing_is_pickled(tmp_path: Path) -> None:
    model = tiny()
    optimizer = optimizer_of(model, "adamw")
    for step in (2, 4, 10):
        train(model, optimizer, 1, seed=step)
        save_checkpoint(tmp_path, step, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000010"]
    suffixes = {file.suffix for file in tmp_path.rglob("*") if file.is_file()}
    assert suffixes == {".safetensors", ".json"}
    remove_checkpoints(tmp_path)
    assert latest_checkpoint(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("victim", ["save_file", "write_json"])
def test_a_half_written_checkpoint_is_ignored(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    optimizer = optimizer_of(model, "rmsprop")
    train(model, optimizer, 2, seed=0)
    save_checkpoint(tmp_path, 2, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    before = weights(model)
    train(model, optimizer, 2, seed=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, victim, killed)
        save_checkpoint(tmp_path, 4, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    assert (tmp_path / "checkpoint-0000004").exists()
    step, folder = latest_checkpoint(tmp_path)
    assert step == 2
    assert all(map(torch.equal, weights(load_model(folder)), before))

    save_checkpoint(tmp_path, 4, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    assert latest_checkpoint(tmp_path)[0] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000004"]


def test_a_kill_before_the_old_one_is_removed_leaves_the_newest_in_charge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    optimizer = optimizer_of(model, "rmsprop")
    train(model, optimizer, 2, seed=0)
    save_checkpoint(tmp_path, 9, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        save_checkpoint(tmp_path, 10, model.save_pretrained, flat_state(optimizer.state_dict()["state"]))
    assert len(list(tmp_path.iterdir())) == 2
    assert latest_checkpoint(tmp_path)[0] == 10


def test_there_is_none_in_an_empty_stage(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


def test_a_model_with_an_inconsistent_generation_config_can_be_saved(tmp_path: Path) -> None:
    """Released models have them (a temperature without do_sample); a checkpoint must not fail on that after hours of training."""
    tiny().save_pretrained(tmp_path / "start")
    write_json(tmp_path / "start" / "generation_config.json", {"do_sample": False, "temperature": 0.6, "eos_token_id": [2, 7]})
    model = load_model(tmp_path / "start")
    save_checkpoint(tmp_path, 1, model.save_pretrained, {})
    restored = load_model(latest_checkpoint(tmp_path)[1])
    assert all(map(torch.equal, weights(restored), weights(model)))
    assert restored.generation_config.eos_token_id == [2, 7]
