"""Device and number format, in one place: the opponent pass, training and evaluation must compute alike."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
from functools import lru_cache

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from sparring.console import log

# Beyond this many tokens at once a CPU gets no faster, a GPU hardly.
MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
LEAST_TOKENS = 256
# glibc's names: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
KEEP_FREED = {-1: 2**31 - 1, -3: 2**31 - 1}
MIXED = {"bf16": "bf16", "fp32": "no"}


def accelerator_for(precision: str) -> Accelerator:
    """Accelerate's handle for "bf16" (bfloat16 autocast over float32 weights) or "fp32".

    Accelerate keeps one precision per process; a game may train its SFT stage in another than its iterations.
    """
    keep_freed_memory()
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != MIXED[precision]:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=MIXED[precision])


@lru_cache
def keep_freed_memory() -> None:
    """Let glibc keep what is freed: it would hand every large tensor back to the system and fault the next one in page by page, which
    takes a fifth of a training step on a CPU (docs/negative-results.md)."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, value in KEEP_FREED.items():
            library.mallopt(parameter, value)


def token_budget(asked: int | None, model: PreTrainedModel) -> int:
    """Tokens of a micro-batch: those asked for, or as many as fit the device's memory beside weights, gradient and optimizer.

    A function of model and device alone, so that the opponent pass, training and a resumed run choose alike.
    """
    if asked is not None:
        return asked
    config, device = model.config.get_text_config(), model.device
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else _main_memory()
    # bytes that autograd keeps of a token in one layer, mostly in float32, as measured on SmolLM2
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    of_token = config.num_hidden_layers * (40 * config.hidden_size + 12 * inner)
    fits = (0.7 * memory - 16 * model.num_parameters()) / of_token
    found = 2 ** int(math.log2(min(max(fits, LEAST_TOKENS), MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"]))))
    _announce(f"micro_batch_tokens: {found}, chosen for {model.num_parameters() / 1e6:.0f}M parameters and {memory / 2**30:.0f} GiB")
    return found


def _main_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
