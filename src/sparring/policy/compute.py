"""Device and number format, in one place: the opponent pass, training and evaluation must compute alike."""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Iterator
from functools import lru_cache

import psutil
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from sparring.console import log

# Beyond this many tokens at once a CPU gets no faster, a GPU hardly.
MOST_TOKENS = {"cpu": 1024, "cuda": 16384}
LEAST_TOKENS = 256
# Shapes whose kernels oneDNN and torch's layer over it keep, one cache each; more than a micro-batch needs in all its layers
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}
# The number format that computes, by the recipe's `precision`. The whole model is in it, as where it samples; a pass of autocast over
# float32 weights takes half as long again (docs/fast-path.md).
COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_accelerator() -> Accelerator:
    """Accelerate's handle of this process. The number format is the model's own, so there is no autocast."""
    bound_kernel_caches()
    return Accelerator(mixed_precision="no")


@contextlib.contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """The same weights, exactly, in float32 for a while; buffers stay as they are."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = data.float() if data.dtype in (torch.bfloat16, torch.float16) else data
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def bound_kernel_caches() -> None:
    """Two caches would keep the kernels of 1,024 shapes, a third of a megabyte each, though micro-batches hardly ever have the same
    shape twice: memory would grow by half a gigabyte in 16 steps (docs/negative-results.md). What the environment says already stays."""
    for name, value in KERNEL_CACHES.items():
        os.environ.setdefault(name, value)  # read at the first matrix product


def token_budget(model: PreTrainedModel, free: float, device: str) -> int:
    """Tokens of a micro-batch that fit `free` bytes beside weights, gradient and optimizer of a model that is not loaded yet: a power
    of 2, so that a little more or less of free memory makes no difference."""
    config = model.config.get_text_config()
    # bytes that autograd keeps of a token in one layer, in float32, as measured on SmolLM2
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    of_token = config.num_hidden_layers * (40 * config.hidden_size + 12 * inner)
    fits = (0.8 * free - 16 * model.num_parameters()) / of_token
    return 2 ** int(math.log2(min(max(fits, LEAST_TOKENS), MOST_TOKENS.get(device, MOST_TOKENS["cpu"]))))


def free_memory(device: torch.device) -> int:
    """Bytes that this process could take of the device's memory now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def release_memory() -> None:
    """Free what a stage held. Accelerate and autograd leave cycles: without this the old optimizer lives on beside the next stage's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_soft_caps(model: PreTrainedModel) -> PreTrainedModel:
    """Set a model with soft-capped attention (Gemma-2) to "eager" where it would take torch's own attention, which ignores the cap."""
    cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if cap is not None and model.config._attn_implementation == "sdpa":
        name = type(model).__name__
        _announce(f"attention: eager, for {name} caps its attention logits at {cap:g}, and torch's own attention would ignore that")
        model.set_attn_implementation("eager")
    return model


@lru_cache
def _announce(line: str) -> None:
    log.info(line)
