"""Device and number format, in one place: the opponent pass, training and evaluation must compute alike."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.attention import SDPBackend, sdpa_kernel

# torch's CPU flash attention goes backward slowly under a mask: forward + backward of one SmolLM2 layer took 94 ms against 34 ms of
# plain matrix products at 16 rows of 72 positions, 37 against 22 at 8 x 128, 25 against 30 at 4 x 256 (one core, bfloat16)
CPU_PLAIN_ATTENTION_POSITIONS = 128
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


@contextlib.contextmanager
def attention_kernel(positions_BL: torch.Tensor) -> Iterator[None]:
    """Pick the attention kernel by the shape of the micro-batch alone: the opponent pass and training must pick the same."""
    if positions_BL.device.type == "cpu" and positions_BL.shape[1] <= CPU_PLAIN_ATTENTION_POSITIONS:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    else:
        yield


def same_kernel_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed forward and of its repetition in the backward pass: the second runs under the kernel of the first."""
    again = contextlib.nullcontext() if torch.backends.cuda.flash_sdp_enabled() else sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext(), again
