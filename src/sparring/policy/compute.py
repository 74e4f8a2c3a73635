"""Device, number format and transfers in one place, because the opponent pass, training and evaluation must use the same."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.console import log
from sparring.errors import UserError
from sparring.policy.footprint import NUMBER_BYTES, Parallel, gathered_at_once, held_at_most, tokens_at_once
from sparring.policy.machine import available_memory
from sparring.policy.packed import is_out_of_memory
from sparring.policy.ranks import accelerator_of_rank

M = TypeVar("M", bound=nn.Module)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. A plain copy to a GPU would wait for all queued work; one from pinned memory does not, and torch keeps that
    memory until the copy is done."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def model_on(device: torch.device, model: M) -> M:
    """`model` moved to `device`. `PreTrainedModel.to` is decorated so that its arguments are lost to a type checker."""
    return model.to(device)


def tensor_on(device: torch.device, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values)` on `device`, without waiting for the device."""
    return to_device(torch.tensor(values, dtype=dtype), device)


# Capacity of the kernel caches of oneDNN and of torch's layer over it; more than a micro-batch needs in all its layers
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
# The number format that computes, by the recipe's `precision`. The whole model has it, as in sampling; autocast over float32 weights is a
# quarter slower (docs/negative-results.md).
COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_accelerator() -> Accelerator:
    """The Accelerator of this process. The number format is that of the model, so there is no autocast.

    Accelerate keeps one precision per process, and other code in the process may have set another.
    """
    bound_kernel_caches()
    # cuDNN's attention builds a plan for every new number of rows and keys (0.44 s on a B200: FunASR #3704); packed sampling has one at
    # every token. On a B200 its values are wrong for models with few key heads (pytorch #193893). Not measured here: no GPU has run this.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if (joined := accelerator_of_rank()) is not None:
        return joined
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != "no":
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision="no")


@contextlib.contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Context in which the model computes with its weights in float32; buffers do not change.

    A decoder layer is in float32 only while it computes, so that a model that barely fits its device can be checked there.
    """
    kept: dict[nn.Parameter, Tensor] = {}

    def widen(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.dtype in (torch.bfloat16, torch.float16):
                kept[parameter], parameter.data = parameter.data, parameter.data.float()

    def narrow(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    layers, hooks = decoder_layers(model), []
    of_layers = {parameter for layer in layers for parameter in layer.parameters()}
    # the 4-bit layers of bitsandbytes have their own compute format
    modules: Iterable[Any] = model.modules()
    four_bit = [(module, module.compute_dtype) for module in modules if isinstance(getattr(module, "compute_dtype", None), torch.dtype)]
    try:
        for layer in layers:
            hooks.append(layer.register_forward_pre_hook(lambda layer, _: widen(layer.parameters())))
            hooks.append(layer.register_forward_hook(lambda layer, *_: narrow(layer.parameters()), always_call=True))
        widen(parameter for parameter in model.parameters() if parameter not in of_layers)
        for module, _ in four_bit:
            module.compute_dtype = torch.float32
        yield
    finally:
        for module, dtype in four_bit:
            module.compute_dtype = dtype
        narrow(list(kept))
        for hook in hooks:
            hook.remove()


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The members of a model's longest list of modules."""
    return list(max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len, default=()))


def layer_sizes(model: nn.Module) -> tuple[int, int]:
    """(parameters of the largest decoder layer, those outside of the layers); a model without layers counts as a single layer."""
    total = sum(parameter.numel() for parameter in model.parameters())
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers(model)]
    return max(layers, default=total), total - sum(layers)


def bound_kernel_caches() -> None:
    """Limit two caches, which by default keep the kernels of 1,024 shapes, a third of a megabyte each. Micro-batches rarely have the same
    shape twice, so memory would grow by half a gigabyte per step of 16 duels (docs/negative-results.md). Set variables are kept."""
    for name, value in KERNEL_CACHES.items():
        os.environ.setdefault(name, value)  # read at the first matrix product


def release_memory() -> None:
    """Free the memory of a stage. Accelerate and autograd leave cycles: without this the old optimizer stays next to the next stage's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_error(error: BaseException) -> UserError | None:
    """The message for an error of a device or machine that has no memory left; None for any other error."""
    if isinstance(error, UserError) or not is_out_of_memory(error):
        return None
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"out of memory: {said}",
        remedy="in training and scoring halve train.micro_batch_tokens (sft.micro_batch_tokens; without one, micro_batch.json in the run "
        "directory has the value) or set train.gradient_checkpointing to true; in sampling halve sampling.batch_tokens. The run can "
        "resume with any of these changes. If the weights alone do not fit: launcher.strategy fsdp2 on more devices, and sampling.engine "
        "vllm, which shards them over several, since sampling needs all of them",
    )


def keep_soft_caps(model: PreTrainedModel) -> PreTrainedModel:
    """Set a model with soft-capped attention (Gemma-2) to "eager" if it would use torch's own attention, which ignores the cap."""
    cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if cap is not None and model.config._attn_implementation == "sdpa":
        name = type(model).__name__
        _announce(f"attention: eager, since {name} caps its attention logits at {cap:g}, which torch's own attention would ignore")
        model.set_attn_implementation("eager")
    return model


@lru_cache
def _announce(line: str) -> None:
    log.info(line)


def token_budget(model: PreTrainedModel, free: float, device: str, adapter: bool, parallel: Parallel, precision: str) -> int:
    """Tokens of a micro-batch that fit `free` bytes of a device, next to everything else in training; `model` needs no weights yet."""
    gathered = gathered_at_once(*layer_sizes(model)) if parallel.is_sharded else 0
    held = held_at_most(model.num_parameters(), gathered, adapter, parallel)
    return tokens_at_once(model.config.get_text_config(), held, free, device, NUMBER_BYTES[precision])


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that this process could allocate now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
