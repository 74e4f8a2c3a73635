"""Fused RMSNorms and gated units: the model's own values and gradients, bit for bit, and less that is kept for the backward pass."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import transformers
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from zoo import COMMON, VOCABULARY, ZOO

from sparring.policy.footprint import FUSED as FUSED_MODELS
from sparring.policy.footprint import activation_bytes
from sparring.policy.fused import Fused, fuse

# architecture -> the classes of which it gets a fused form, in bfloat16
FUSED = {
    "llama": {"LlamaRMSNorm", "LlamaMLP"},
    "mistral, long window": {"MistralRMSNorm", "MistralMLP"},
    "qwen2": {"Qwen2RMSNorm", "Qwen2MLP"},
    "qwen3": {"Qwen3RMSNorm", "Qwen3MLP"},
    "granite": {"GraniteRMSNorm", "GraniteMLP"},
    "mixtral": {"MixtralRMSNorm"},
    "phi-3": {"Phi3RMSNorm"},  # gate and up are one product
    "olmo-2": {"Olmo2MLP"},  # the weight is multiplied before the norm is rounded
    "gemma-2": set(),  # 1 + weight, and another activation
    "gemma-3": set(),
    "phi": set(),
}


def model_of(architecture: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(ZOO[architecture][0]()).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_()
    return model


def loss_and_gradients(model: PreTrainedModel) -> list[Tensor]:
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    logits = model(input_ids=ids).logits
    loss = logits.float().log_softmax(-1)[..., 1].sum()
    loss.backward()
    return [logits, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", FUSED)
def test_the_same_bits(architecture: str, dtype: torch.dtype) -> None:
    model = model_of(architecture, dtype)
    fused = copy.deepcopy(model)
    fuse(fused)
    if dtype == torch.bfloat16:
        both = {"RMSNorm", "MLP"} == {name[-3:] if name.endswith("MLP") else "RMSNorm" for name in FUSED[architecture]}
        assert both == (model.config.model_type in FUSED_MODELS)  # whose activations are counted as less
        assert {type(module).__name__ for module in fused.modules() if isinstance(module, Fused)} == FUSED[architecture]
    own, found = loss_and_gradients(model), loss_and_gradients(fused)
    assert len(own) == len(found) > 5 and all(map(torch.equal, own, found))


def test_frozen_weights_and_a_frozen_input() -> None:
    """Under adapters a norm's weight has no gradient, and the first norm's input none either."""
    model = model_of("llama", torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" in name
    fused = copy.deepcopy(model)
    fuse(fused)
    own, found = loss_and_gradients(model), loss_and_gradients(fused)
    assert len(own) == 3 and all(map(torch.equal, own, found))


def test_fused_once_and_never_over_another_forward() -> None:
    model = model_of("llama", torch.float32)
    replaced = model.model.layers[0].mlp.forward = lambda hidden: hidden * 0
    fuse(model)
    norm = type(model.model.norm)
    fuse(model)
    assert type(model.model.norm) is norm and model.model.layers[0].mlp.forward is replaced


def test_a_fused_model_is_freed_with_its_last_reference() -> None:
    """No module refers back to itself: memory would stay until Python's next collection."""
    model = model_of("llama", torch.bfloat16)
    fuse(model)
    norm = weakref.ref(model.model.norm)
    gc.disable()
    try:
        del model
        assert norm() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_kept_of_a_token_is_what_the_budget_counts(dtype: torch.dtype) -> None:
    """All tensors that autograd saves in a layer, each storage once, without weights; attention's own are left out on both sides."""
    config = transformers.LlamaConfig(**{**COMMON, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4})
    kept = [kept_bytes(config, layers, dtype) for layers in (2, 4)]
    number = dtype.itemsize
    counted = activation_bytes(config, number, 0)
    assert (kept[1] - kept[0]) / 2 / 64 == pytest.approx(counted, rel=0.05)


def kept_bytes(config: transformers.LlamaConfig, layers: int, dtype: torch.dtype) -> int:
    """Bytes that the backward pass of 64 tokens keeps."""
    shape = copy.deepcopy(config)
    shape.num_hidden_layers = layers
    shape._attn_implementation = "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(shape).to(dtype).eval()
    fuse(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.model(input_ids=torch.zeros(1, 64, dtype=torch.long)).last_hidden_state
    assert hidden.requires_grad
    return sum(found.values())
