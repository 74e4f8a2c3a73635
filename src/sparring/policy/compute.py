"""Device and number format, in one place: the opponent pass, training and evaluation must compute alike."""

from __future__ import annotations

import gc
from functools import lru_cache

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel

from sparring.console import log

MIXED = {"bf16": "bf16", "fp32": "no"}


def accelerator_for(precision: str) -> Accelerator:
    """Accelerate's handle for "bf16" (bfloat16 autocast over float32 weights) or "fp32".

    Accelerate keeps one precision per process; a game may train its SFT stage in another than its iterations.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != MIXED[precision]:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=MIXED[precision])


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
