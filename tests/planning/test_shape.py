"""A model's sizes from its config: counted, and equal to those of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from zoo import COMMON, GPT2, NEOX

from sparring.config import ModelSection
from sparring.errors import UserError
from sparring.planning.known_shapes import KNOWN_SHAPES
from sparring.planning.shape import find_shape, measure
from sparring.policy.tiny import make_tiny

# As their model cards say, in billions
PARAMETERS = {
    "alignment-handbook/zephyr-7b-sft-full": 7.24,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.1345,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "meta-llama/Llama-3.2-1B": 1.24,
    "meta-llama/Llama-3.1-8B": 8.03,
    "meta-llama/Llama-3.1-70B-Instruct": 70.6,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_public_models_have_the_sizes_of_their_cards(name: str) -> None:
    """Without memory for 70 billion weights, and without a network."""
    shape = find_shape(ModelSection(path=name))
    assert shape.parameters / 1e9 == pytest.approx(PARAMETERS[name], rel=0.005)
    assert shape.parameters == shape.layers * shape.largest_layer + shape.outside_layers
    assert "knows" in shape.source and name in KNOWN_SHAPES


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (transformers.LlamaConfig, {**COMMON, "tie_word_embeddings": True}),
        (transformers.MistralConfig, COMMON),
        (transformers.Qwen2Config, COMMON),
        (transformers.GPTNeoXConfig, NEOX),
        (transformers.GPT2Config, GPT2),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_count_is_the_models_own(config: Any, options: dict[str, Any]) -> None:
    made = transformers.AutoModelForCausalLM.from_config(config(**options))
    shape = measure("mine", "a test", made.config)
    assert shape.parameters == made.num_parameters()
    linears = {name: module for name, module in made.named_modules() if isinstance(module, torch.nn.Linear)}
    without_head = {name: module for name, module in linears.items() if module is not made.get_output_embeddings()}
    assert {linear.name for linear in shape.linears} == set(without_head)
    if without_head:  # GPT-2 has matrices of a class of its own
        assert shape.passed == sum(module.weight.numel() for module in without_head.values())


def test_of_a_mixture_of_experts_a_token_passes_those_that_it_is_sent_to() -> None:
    options = {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 1}
    one, four = (measure("x", "x", transformers.MixtralConfig(**{**options, "num_experts_per_tok": k})) for k in (1, 4))
    assert one.parameters == four.parameters
    experts = 2 * 4 * 3 * COMMON["hidden_size"] * COMMON["intermediate_size"]  # layers, experts, matrices
    assert four.passed - one.passed == pytest.approx(experts * 3 / 4)


def test_a_folder_needs_no_weights(tmp_path: Path) -> None:
    make_tiny(tmp_path / "tiny", 0)
    (tmp_path / "tiny" / "model.safetensors").unlink()
    folder, builtin = find_shape(ModelSection(path=str(tmp_path / "tiny"))), find_shape(ModelSection(path="builtin:tiny"))
    assert folder.parameters == builtin.parameters > 0


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("someone/never-heard-of-it", "known without the Hub"),
        ("./nowhere", "no such model folder"),
        ("builtin:huge", "builtin:tiny"),
    ],
)
def test_what_has_no_config_is_refused(path: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # at once, with a network and without
    with pytest.raises(UserError) as refused:
        find_shape(ModelSection(path=path))
    assert "model.path" in str(refused.value) or "built-in" in str(refused.value)
    assert told in str(refused.value)
