"""A model's sizes from its config: counted, and equal to those of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from by_hand import GPU, LENGTHS, recipe_of
from transformers.pytorch_utils import Conv1D
from zoo import COMMON, GPT2, NEOX

from sparring.config import ModelSection
from sparring.errors import UserError
from sparring.planning.estimate import estimate
from sparring.planning.given_shape import KNOWN_SHAPES, GivenShape
from sparring.planning.shape import find_shape, measure
from sparring.planning.work import position_bytes
from sparring.policy.footprint import inner_size
from sparring.policy.tiny import make_tiny

# As their model cards and papers say, in billions; one of every size
PARAMETERS = {
    "openai-community/gpt2": 0.1244,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1.1,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.1345,
    "HuggingFaceTB/SmolLM2-360M": 0.362,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.71,
    "meta-llama/Llama-2-7b-hf": 6.74,
    "meta-llama/Llama-2-13b-chat-hf": 13.02,
    "meta-llama/Meta-Llama-3-8B": 8.03,
    "meta-llama/Llama-3.1-8B": 8.03,
    "meta-llama/Llama-3.1-70B-Instruct": 70.6,
    "meta-llama/Llama-3.3-70B-Instruct": 70.6,
    "meta-llama/Llama-3.2-1B": 1.24,
    "meta-llama/Llama-3.2-3B-Instruct": 3.21,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8.03,
    "alignment-handbook/zephyr-7b-sft-full": 7.24,
    "HuggingFaceH4/zephyr-7b-beta": 7.24,
    "mistralai/Mistral-7B-v0.1": 7.24,
    "mistralai/Mistral-7B-Instruct-v0.2": 7.24,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.25,
    "mistralai/Mistral-Nemo-Instruct-2407": 12.25,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23.6,
    "mistralai/Mixtral-8x7B-v0.1": 46.7,
    "Qwen/Qwen2.5-0.5B": 0.494,
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-3B": 3.09,
    "Qwen/Qwen2.5-7B-Instruct": 7.62,
    "Qwen/Qwen2.5-14B": 14.77,
    "Qwen/Qwen2.5-32B": 32.8,
    "Qwen/Qwen2.5-72B-Instruct": 72.7,
    "Qwen/Qwen2.5-Coder-7B": 7.62,
    "Qwen/Qwen2.5-Coder-32B": 32.8,
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-1.7B-Base": 1.72,
    "Qwen/Qwen3-4B": 4.02,
    "Qwen/Qwen3-8B-Base": 8.19,
    "Qwen/Qwen3-14B": 14.77,
    "Qwen/Qwen3-32B": 32.8,
    "Qwen/Qwen3-30B-A3B": 30.5,
    "google/gemma-2b": 2.51,
    "google/gemma-7b-it": 8.54,
    "google/gemma-2-2b-it": 2.61,
    "google/gemma-2-9b": 9.24,
    "google/gemma-2-27b": 27.2,
    "google/gemma-3-1b-it": 1.0,
    "microsoft/phi-2": 2.78,
    "microsoft/Phi-3-mini-4k-instruct": 3.82,
    "microsoft/phi-4": 14.7,
    "allenai/OLMo-2-1124-7B": 7.3,
    "allenai/OLMo-2-1124-13B-Instruct": 13.7,
}


def test_every_known_size_is_checked() -> None:
    assert all(any(shape == KNOWN_SHAPES[name] for name in PARAMETERS) for shape in KNOWN_SHAPES.values())


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
    linears = {name: module for name, module in made.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    without_head = {name: module for name, module in linears.items() if module is not made.get_output_embeddings()}
    assert {linear.name for linear in shape.linears} == set(without_head)
    assert shape.passed == sum(module.weight.numel() for module in without_head.values())


def test_of_a_mixture_of_experts_a_token_passes_those_that_it_is_sent_to() -> None:
    options = {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 1}
    one, four = (measure("x", "x", transformers.MixtralConfig(**{**options, "num_experts_per_tok": k})) for k in (1, 4))
    assert one.parameters == four.parameters
    experts = 2 * 4 * 3 * COMMON["hidden_size"] * COMMON["intermediate_size"]  # layers, experts, matrices
    assert four.passed - one.passed == pytest.approx(experts * 3 / 4)


def test_experts_in_one_parameter_are_known_whatever_they_are_called() -> None:
    options = {**COMMON, "num_local_experts": 4}
    one, two = (measure("x", "x", transformers.GraniteMoeConfig(**{**options, "num_experts_per_tok": k})) for k in (1, 2))
    assert two.passed - one.passed == 2 * 3 * COMMON["hidden_size"] * COMMON["intermediate_size"]  # layers, matrices of an expert


LATENT = {"num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (transformers.LlamaConfig, COMMON),
        (transformers.GPT2Config, GPT2),
        (transformers.Gemma3TextConfig, {**COMMON, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
        (transformers.DeepseekV3Config, {**COMMON, **LATENT, "first_k_dense_replace": 2}),
    ],
    ids=["grouped", "gpt2", "windows", "latent"],
)
def test_the_cache_of_a_position_is_what_transformers_keeps(config: Any, options: dict[str, Any]) -> None:
    """Three positions: within the window, beyond which this program's sampler keeps them all."""
    made = config(**options)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    shape = measure("x", "x", made)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(1, 3, dtype=torch.long), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert position_bytes(shape, 4) == 4 * kept / 3


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text"])
def test_of_layers_of_several_sizes_the_largest_counts(kind: str) -> None:
    """Their configs give no single size, and a run asks for one before it chooses its micro-batches."""
    config = transformers.AutoConfig.for_model(kind)
    shape = measure("x", "x", config)
    assert shape.heads.queries >= shape.heads.keys > 0 and isinstance(inner_size(shape.config), int)
    plan = estimate(recipe_of(), shape, LENGTHS, GPU)
    assert plan.seconds > 0 and plan.micro_batch_tokens >= 256


def test_layers_without_attention_keep_no_positions() -> None:
    options = {**COMMON, "layer_types": ["linear_attention", "full_attention"], "num_experts": 2, "num_experts_per_tok": 1}
    config = transformers.Qwen3NextConfig(**options)
    assert position_bytes(measure("x", "x", config), 2) == 2 * 2 * config.head_dim  # of the one layer, a key and a value of 2 bytes


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    """A translator, and configs that no model can be made of."""
    with pytest.raises(UserError, match=r"model.path \(x\)(.|\n)*its config is not that of a causal language model"):
        measure("x", "x", transformers.T5Config())
    for name, text in {
        "type": '{"model_type": "llama", "num_hidden_layers": "two"}',
        "list": "[]",
        "broken": '{"model_type": ',
        "unknown": '{"model_type": "no-such-model"}',
        "heads": '{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 0}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        with pytest.raises(UserError):
            find_shape(ModelSection(path=str(tmp_path / name)))


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
    monkeypatch.setattr("sparring.planning.shape._hub_answers", lambda *_: False)  # at once, with a network and without
    with pytest.raises(UserError) as refused:
        find_shape(ModelSection(path=path))
    assert "model.path" in str(refused.value) or "built-in" in str(refused.value)
    assert told in str(refused.value)


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A port where nobody listens: the client's own download would ask six times in 25 seconds."""
    asked = []

    def refused(url: str, **options: Any) -> None:
        asked.append(url)
        raise ConnectionError("nobody there")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refused)
    with pytest.raises(UserError, match="the Hub does not answer") as told:
        find_shape(ModelSection(path="Qwen/Qwen2.5-7B-Instuct"))
    assert len(asked) == 1 and not caplog.records
    assert "among them Qwen/Qwen2.5-7B-Instruct" in str(told.value) and "--params 8B" in str(told.value)


@pytest.mark.parametrize(("params", "layers"), [("8B", 32), ("8B", None), ("1.5b", 28), ("135M", 30), ("70B", 80), ("7000000000", 40)])
def test_a_decoder_with_so_many_parameters(params: str, layers: int | None) -> None:
    shape = find_shape(ModelSection(path="me/private"), GivenShape(params=params, layers=layers))
    wanted = {"8B": 8e9, "1.5b": 1.5e9, "135M": 135e6, "70B": 70e9, "7000000000": 7e9}[params]
    assert shape.parameters == pytest.approx(wanted, rel=1e-3)
    assert layers in (shape.layers, None) and shape.config.num_attention_heads % shape.config.num_key_value_heads == 0
    assert 2.5 < shape.config.intermediate_size / shape.config.hidden_size < 7


def test_a_decoder_of_8_billion_is_near_llama_8b() -> None:
    """What a plan takes from it: work of a token, bytes of a position and of activations."""
    mine = find_shape(ModelSection(path="me/private"), GivenShape(params="8.03B", layers=32))
    llama = find_shape(ModelSection(path="meta-llama/Llama-3.1-8B"))
    assert mine.config.hidden_size == llama.config.hidden_size
    assert mine.config.intermediate_size == pytest.approx(llama.config.intermediate_size, rel=1e-3)
    assert mine.passed == pytest.approx(llama.passed, rel=1e-3) and position_bytes(mine, 2) == position_bytes(llama, 2)


def test_a_config_file_stands_for_the_model(tmp_path: Path) -> None:
    transformers.LlamaConfig(**COMMON).save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        shape = find_shape(ModelSection(path="me/private"), GivenShape(config=path))
        assert shape.layers == COMMON["num_hidden_layers"] and str(path) in shape.source


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (GivenShape(params="many"), "--params: 'many' is not a number of parameters"),
        (GivenShape(params="0B"), "--params: '0B' is not a number"),
        (GivenShape(params="1M"), "--params: 1e\\+06 parameters are too few"),
        (GivenShape(layers=3), "--layers: needs the number of parameters"),
        (GivenShape(config=Path("nowhere.json")), r"--config \(nowhere.json\): transformers cannot read this config"),
        (GivenShape(config=Path("x.json"), params="8B"), "--config: a config has the sizes"),
    ],
)
def test_a_given_shape_that_is_none(given: GivenShape, told: str) -> None:
    with pytest.raises(UserError, match=told):
        find_shape(ModelSection(path="me/private"), given)
