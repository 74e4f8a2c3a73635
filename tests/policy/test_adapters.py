"""Adapters as model folders: what they compute, what they cost, how they are kept, merged, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparring.config import LoraSection, ModelSection, TrainSection
from sparring.errors import UserError
from sparring.policy.adapters import CONFIG, WEIGHTS, base_of, is_adapter, name_base, new_adapter, start_dropout
from sparring.policy.batches import Branches
from sparring.policy.load import convert, find_model, load_config, load_model, load_tokenizer, merge, model_facts, model_shape, weights_hash
from sparring.policy.score import Scorer, score_trees
from sparring.policy.tiny import make_tiny
from sparring.training.masters import AdapterWeights

CPU = torch.device("cpu")
IDS = torch.arange(5, 40)[None]
KINDS: list[dict[str, Any]] = [{}, {"rslora": True}, {"dora": True}, {"targets": ("q_proj", "v_proj")}, {"targets": r".*mlp\.\w+_proj"}]


def settings(precision: str = "fp32", **lora: Any) -> TrainSection:
    return TrainSection(precision=precision, lora={"rank": 4, "alpha": 8.0, **lora})


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def train(weights: AdapterWeights, steps: int = 3) -> None:
    moving = torch.optim.SGD([p for p in weights.master_model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(steps):
        weights.model(input_ids=IDS, labels=IDS).loss.backward()
        moving.step()
        moving.zero_grad()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    make_tiny(folder, 0)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path) -> tuple[AdapterWeights, Path]:
    """An adapter after three steps, and its folder beside the base."""
    weights = AdapterWeights(base, settings(), CPU, seed=1)
    train(weights)
    weights.save_pretrained(base.parent / "adapter")
    return weights, base.parent / "adapter"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_new_adapter_changes_nothing_and_trains_nothing_else(base: Path, kind: dict[str, Any]) -> None:
    weights = AdapterWeights(base, settings(**kind), CPU, seed=1)
    assert torch.equal(logits(weights.model), logits(load_model(base)))
    moved = {name for name, parameter in weights.master_model.named_parameters() if parameter.requires_grad}
    assert moved and all(".lora_" in name for name in moved)
    train(weights)
    assert (logits(weights.model) - logits(load_model(base))).abs().max() > 0.1
    frozen = {name: p for name, p in weights.model.named_parameters() if ".lora_" not in name}
    plain = dict(load_model(base).named_parameters())
    assert len(frozen) == len(plain)
    assert all(torch.equal(p, plain[name.replace(".base_layer", "")]) for name, p in frozen.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_saved_adapter_comes_back_bit_for_bit_and_merges(base: Path, tmp_path: Path, kind: dict[str, Any], precision: str) -> None:
    weights = AdapterWeights(base, settings(precision, **kind), CPU, seed=1)
    train(weights)
    adapter = tmp_path / "adapter"
    weights.save_pretrained(adapter)
    dtype = weights.model.dtype
    assert torch.equal(logits(load_model(adapter, dtype)), logits(weights.model)), "to sample and score"
    again = AdapterWeights(adapter, settings(precision, **kind), CPU, seed=2)
    assert torch.equal(logits(again.model), logits(weights.model)), "to train on"
    merge(adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), logits(load_model(adapter)), atol=1e-5, rtol=1e-5)
    again.save_pretrained(tmp_path / "again")
    names = sorted(file.name for file in adapter.iterdir())
    assert names == [CONFIG, WEIGHTS], "the adapter alone, without the base"
    assert all((adapter / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in [WEIGHTS])


def test_the_scorer_scores_an_adapter_as_its_merged_model(trained: tuple[AdapterWeights, Path], tmp_path: Path) -> None:
    """In packed trees, with its branches."""
    merge(trained[1], tmp_path / "merged")
    trees = [Branches((5, 6, 7), ((8, 9, 10, 1), (11, 12, 1))), Branches((20, 21), ((22, 1),))]
    found = []
    for folder in (trained[1], tmp_path / "merged"):
        scorer = Scorer(load_model(folder))
        scorer.choose_layout(trees)
        assert scorer.layout == "tree"
        found.append([torch.tensor(row) for row in score_trees(scorer, trees, 64)])
    for ours, merged in zip(*found, strict=True):
        torch.testing.assert_close(ours, merged, atol=1e-5, rtol=1e-5)


def test_one_copy_of_the_base_and_float32_adapters(base: Path) -> None:
    weights = AdapterWeights(base, settings("bf16"), CPU, seed=1)
    storages = {p.data_ptr(): p for p in [*weights.master_model.parameters(), *weights.model.parameters()]}
    adapter = sum(p.nbytes for p in storages.values() if p.requires_grad)
    frozen = sum(p.nbytes for p in storages.values() if not p.requires_grad)
    assert frozen == 2 * load_model(base).num_parameters()
    assert adapter == 4 * sum(p.numel() for p in storages.values() if p.requires_grad)


def test_files_do_not_depend_on_the_process(base: Path, tmp_path: Path) -> None:
    """PEFT keeps its targets in a set, whose order changes from process to process."""
    weights = AdapterWeights(base, settings(), CPU, seed=1)
    weights.save_pretrained(tmp_path / "a")
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 14
    assert list(config) == sorted(config)


def test_the_same_seed_draws_the_same_adapter(base: Path) -> None:
    found = [AdapterWeights(base, settings(), CPU, seed).master_model.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
    assert any(not torch.equal(found[0][name], tensor) for name, tensor in found[2].items())


def test_dropout_only_in_adapters_and_only_when_asked(base: Path) -> None:
    weights = AdapterWeights(base, settings(dropout=0.5), CPU, seed=1)
    train(weights)
    assert torch.equal(logits(weights.model), logits(weights.model)), "off until training starts it"
    found = []
    for seed in (1, 1, 2):
        assert start_dropout(weights.model, seed) == 14
        found.append(logits(weights.model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not weights.model.training


# --- where things lie


def test_a_moved_run_finds_its_base(base: Path, trained: tuple[AdapterWeights, Path], tmp_path: Path) -> None:
    shutil.copytree(base.parent, tmp_path / "elsewhere")
    assert base_of(tmp_path / "elsewhere" / "adapter").resolve() == tmp_path / "elsewhere" / "model"
    assert torch.equal(logits(load_model(tmp_path / "elsewhere" / "adapter")), logits(trained[0].model))


def test_an_adapter_is_accepted_as_the_starting_model(trained: tuple[AdapterWeights, Path], base: Path, tmp_path: Path) -> None:
    source = find_model(ModelSection(path=str(trained[1])), 0)
    assert source.folder is None and source.make is not None
    source.make(tmp_path / "start")
    assert not is_adapter(tmp_path / "start")
    torch.testing.assert_close(logits(load_model(tmp_path / "start")), logits(trained[0].model), atol=1e-5, rtol=1e-5)
    assert load_tokenizer(tmp_path / "start").get_vocab() == load_tokenizer(base).get_vocab()


def test_the_hash_pins_adapter_and_base(trained: tuple[AdapterWeights, Path], tmp_path: Path) -> None:
    before = weights_hash(trained[1])
    shutil.copytree(trained[1].parent, tmp_path / "copy")
    adapter = tmp_path / "copy" / "adapter"
    assert weights_hash(adapter) == before
    state = load_file(tmp_path / "copy" / "model" / "model.safetensors")
    state["model.norm.weight"] += 1
    save_file(state, tmp_path / "copy" / "model" / "model.safetensors", metadata={"format": "pt"})
    changed = weights_hash(adapter)
    assert changed != before
    state = load_file(adapter / WEIGHTS)
    save_file({name: tensor + 1 for name, tensor in state.items()}, adapter / WEIGHTS)
    assert weights_hash(adapter) not in (before, changed)


def test_facts_are_the_base_models(trained: tuple[AdapterWeights, Path], base: Path) -> None:
    assert model_facts(trained[1])[0] == model_facts(base)[0] == 512
    assert load_config(trained[1]).hidden_size == load_config(base).hidden_size


# --- bad input


@pytest.fixture
def broken(trained: tuple[AdapterWeights, Path], tmp_path: Path) -> Path:
    """A copy of base and adapter to damage."""
    shutil.copytree(trained[1].parent, tmp_path / "broken")
    return tmp_path / "broken" / "adapter"


def test_an_adapter_of_another_base(broken: Path) -> None:
    from transformers import LlamaForCausalLM

    from sparring.policy.tiny import tiny_config

    shutil.rmtree(broken.parent / "model")
    LlamaForCausalLM(tiny_config(258, hidden=32)).save_pretrained(broken.parent / "model")
    with pytest.raises(UserError, match="does not fit its base model") as error:
        load_model(broken)
    assert str(broken) in str(error.value) and "base_model_name_or_path" in str(error.value)


def test_an_adapter_of_another_base_of_the_same_shape(broken: Path) -> None:
    """The same weights rounded, and in several files, are the same base; and an adapter of another program says nothing."""
    model = load_model(broken.parent / "model")
    for target in (broken.parent / "model").glob("*.safetensors"):
        target.unlink()
    model.to(torch.bfloat16).save_pretrained(broken.parent / "model", max_shard_size="20KB")
    assert len(list((broken.parent / "model").glob("*.safetensors"))) > 1
    load_model(broken)

    shutil.rmtree(broken.parent / "model")
    make_tiny(broken.parent / "model", 9)
    with pytest.raises(UserError, match="does not fit its base model: its base has other weights than the one that it was trained on"):
        load_model(broken)
    with pytest.raises(UserError, match="other weights"):
        merge(broken, broken.parent / "merged")
    save_file(load_file(broken / WEIGHTS), broken / WEIGHTS, metadata={"format": "pt"})
    load_model(broken)


def test_an_adapter_with_fewer_layers(broken: Path) -> None:
    state = load_file(broken / WEIGHTS)
    save_file({name: tensor for name, tensor in state.items() if ".layers.1." not in name}, broken / WEIGHTS)
    with pytest.raises(UserError, match="does not fit its base model: 14 tensors"):
        load_model(broken)


def test_a_base_that_is_gone(broken: Path) -> None:
    name_base(broken, "../nowhere")
    with pytest.raises(UserError, match="no such model folder"):
        load_model(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"adapter_config.json: not a valid JSON file"),
        ("[]", "holds a list, not an object"),
        ('{"peft_type": "IA3"}', "not a LoRA adapter"),
        ('{"peft_type": "LORA"}', "does not name its base model"),
    ],
)
def test_a_config_that_is_none(broken: Path, text: str, message: str) -> None:
    (broken / CONFIG).write_text(text)
    with pytest.raises(UserError, match=message):
        load_model(broken)


def test_pickled_weights_are_not_loaded(broken: Path) -> None:
    (broken / WEIGHTS).rename(broken / "adapter_model.bin")
    for use in (load_model, weights_hash):
        with pytest.raises(UserError, match="pickled weights are not loaded"):
            use(broken)


@pytest.mark.parametrize("content", [b"", b"garbage that is no safetensors file at all"])
def test_damaged_weights(broken: Path, content: bytes) -> None:
    (broken / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="does not fit its base model"):
        load_model(broken)


def test_an_adapter_on_an_adapter(broken: Path) -> None:
    shutil.copytree(broken, broken.parent / "second")
    name_base(broken.parent / "second", "../adapter")
    with pytest.raises(UserError, match="is an adapter itself"):
        load_model(broken.parent / "second")


@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_ends_that_share_their_weights(base: Path, end: str) -> None:
    """Merging would change both."""
    with pytest.raises(UserError, match="share their weights"):
        AdapterWeights(base, settings(targets=("q_proj", end)), CPU, seed=1)


def test_a_glob_is_no_regular_expression(base: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.targets"):
        AdapterWeights(base, settings(targets="*_proj"), CPU, seed=1)


def test_an_adapter_is_rounded_as_one(broken: Path) -> None:
    before = load_file(broken / WEIGHTS)
    convert(broken, "bfloat16")
    found = load_file(broken / WEIGHTS)
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name].bfloat16()) for name in found)
    load_model(broken)
    shutil.rmtree(broken.parent / "model")
    make_tiny(broken.parent / "model", 9)
    with pytest.raises(UserError, match="other weights"):  # still knows its base
        load_model(broken)


def test_targets_that_the_model_does_not_have(base: Path) -> None:
    with pytest.raises(UserError, match=r"lora\.targets.*no_such_proj|no_such_proj"):
        AdapterWeights(base, settings(targets=("no_such_proj",)), CPU, seed=1)


@pytest.mark.parametrize("rank", [65, 10**7, 10**17])
def test_a_rank_beyond_the_models_own_sizes(rank: int, tmp_path: Path) -> None:
    make_tiny(tmp_path, 0)
    with pytest.raises(UserError, match=rf"train.lora.rank: {rank} is more than the largest rank of any matrix of LlamaForCausalLM, 64"):
        new_adapter(model_shape(tmp_path), LoraSection(rank=rank), 0, where="train.lora.targets")
    new_adapter(model_shape(tmp_path), LoraSection(rank=64), 0)
