"""Bytes per device by hand, and the same as the documentation's table."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from by_hand import GPU, LENGTHS, SMOLLM2, llama, recipe_of
from zoo import GPT2

from sparring.config import LoraSection, ModelSection, TrainSection
from sparring.planning import memory
from sparring.planning.hardware import Samplers
from sparring.planning.shape import Shape, find_shape, measure
from sparring.policy.adapters import new_adapter
from sparring.policy.footprint import OPTIMIZER_BYTES, Parallel, activation_bytes, training_bytes

FAST_PATH = Path(__file__).parents[2] / "docs" / "fast-path.md"
ROW = re.compile(r"^\| (bf16|fp32) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
N = find_shape(ModelSection(path=SMOLLM2)).parameters


@pytest.mark.parametrize(
    ("precision", "optimizer", "state", "total"), [(row[0], row[1], row[4], row[5]) for row in ROW.findall(FAST_PATH.read_text())]
)
def test_bytes_per_parameter_are_those_of_the_docs(precision: str, optimizer: str, state: str, total: str) -> None:
    """Which tests/training/test_masters.py counts."""
    assert training_bytes(precision, optimizer, Parallel()) == float(total)
    assert OPTIMIZER_BYTES[optimizer] == float(state)


def training(settings: TrainSection, parallel: Parallel | None = None, kind: str = "cuda", tokens: int = 1000) -> memory.Memory:
    return memory.training(find_shape(ModelSection(path=SMOLLM2)), settings, LENGTHS, 2, tokens, kind, parallel or Parallel())


def test_full_training_by_hand() -> None:
    found = training(TrainSection(precision="bf16", optimizer="adamw"))
    assert (found.weights, found.masters, found.optimizer) == (2 * N, 4 * N, 8 * N)
    assert found.gradients == 4 * N + 4 * 49_152 * 576  # and two bfloat16 ones of the embeddings on their way
    # norms 2 x 2 x 2 x 576, queries and what heads found 2 x 576, keys and values 2 x 192, three of the 1536
    assert found.activations == 1000 * 30 * (8 * 576 + 2 * (2 * 576 + 2 * 192) + 6 * 1536)
    assert found.logits == pytest.approx(4 * 49_152 * 1000 * 50 / 90)  # of a tree of 40, 30 and 20 tokens the replies
    assert found.total == sum(vars(found).values())


def test_on_a_cpu_scores_are_kept_until_they_are_too_many() -> None:
    config = find_shape(ModelSection(path=SMOLLM2)).config
    more = training(TrainSection(precision="bf16"), kind="cpu").activations - training(TrainSection(precision="bf16")).activations
    first, second = (40 + 30) ** 2, (40 + 20) * 20
    assert more == pytest.approx(1000 * 30 * 2 * 9 * (first + second) / (70 + 20))
    assert activation_bytes(config, 2, 100) - activation_bytes(config, 2, 0) == 100 * 9 * 2


def test_recomputing_keeps_a_layer_and_the_streams_between() -> None:
    found, whole = training(TrainSection(precision="bf16", gradient_checkpointing=True)), training(TrainSection(precision="bf16"))
    assert found.activations == pytest.approx(whole.activations / 30 + 1000 * 30 * 2 * 576)


@pytest.mark.parametrize(
    ("strategy", "cut"),
    [
        ("ddp", ()),
        ("fsdp2", ("weights", "masters", "gradients", "optimizer")),
    ],
)
def test_what_each_strategy_cuts(strategy: str, cut: tuple[str, ...]) -> None:
    settings, shape = TrainSection(precision="fp32"), llama()
    one, eight = (memory.training(shape, settings, LENGTHS, 2, 100, "cuda", Parallel(n, strategy)) for n in (1, 8))
    whole = 8 * max(shape.largest_layer, shape.outside_layers) if "weights" in cut else 0  # of a layer, to be reduced
    for name in ("masters", "gradients", "optimizer"):
        passing = whole if name == "gradients" else 0
        assert (getattr(one, name) - passing) / (getattr(eight, name) - passing) == (8 if name in cut else 1)
    gathered = 4 * (2 * shape.largest_layer + shape.outside_layers)
    assert eight.weights == (gathered if "weights" in cut else 0)  # float32 masters compute themselves


def test_sampling_by_hand() -> None:
    recipe = recipe_of("sampling.batch_tokens=840")  # 10 rows of 60 + 24
    found = memory.sampling(find_shape(recipe.model), recipe, LENGTHS, 100, 1, GPU, Samplers())
    assert found.weights == 2 * N
    assert found.cache == 10 * 84 * 30 * 2 * 192 * 2
    assert found.logits == 10 * 49_152 * (2 + 8)


GPT2_SHAPE = measure("a GPT-2", "by hand", transformers.GPT2Config(**GPT2))


def test_of_a_server_the_check_of_its_log_probs_alone_is_held_here() -> None:
    recipe = recipe_of("sampling.engine=server")
    shape = find_shape(recipe.model)
    room, small, cpu = GPU, replace(GPU, memory=2.5 * N), replace(GPU, kind="cpu", memory=2.5 * N)
    held = [memory.sampling(shape, recipe, LENGTHS, 100, 1, device, Samplers()) for device in (room, small, cpu)]
    assert [one.weights for one in held] == [2 * N, 0, 2 * N] and not any(one.cache for one in held)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (llama(), {}),
        (llama(), {"dora": True}),
        (llama(), {"targets": ["q_proj", "down_proj"]}),
        (llama(), {"targets": ".*1.self_attn.*proj"}),
        (GPT2_SHAPE, {}),
        (GPT2_SHAPE, {"targets": ["c_attn"]}),
    ],
    ids=["llama", "dora", "names", "expression", "gpt2", "gpt2 names"],
)
def test_adapters_have_as_many_weights_as_peft_gives_them(shape: Shape, options: dict[str, Any]) -> None:
    lora = LoraSection(rank=4, **options)
    made = new_adapter(transformers.AutoModelForCausalLM.from_config(shape.config), lora, 0)
    trained = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    assert memory.trained_weights(shape, TrainSection(precision="bf16", lora=lora)) == trained


def test_under_an_adapter_the_base_is_held_once_and_frozen() -> None:
    shape = find_shape(ModelSection(path=SMOLLM2))
    trained = 16 * 30 * (4 * 576 + 2 * 576 + 2 * 192 + 3 * (576 + 1536))
    found = training(TrainSection(precision="bf16", lora=LoraSection(), optimizer="adamw"))
    assert (found.weights, found.masters, found.gradients, found.optimizer) == (2 * N, 4 * trained, 4 * trained, 8 * trained)
    # the float32 copies of what goes into the adapters: six layers of 576 inputs and one of 1536
    assert found.activations - training(TrainSection(precision="bf16")).activations == 1000 * 30 * 4 * (6 * 576 + 1536)
    four_bit = training(TrainSection(precision="bf16", lora=LoraSection(quantize="4bit")))
    assert four_bit.weights == pytest.approx(2 * (N - shape.in_linears) + 0.515875 * shape.in_linears)
