"""Device and number format, in one place: the opponent pass, training and evaluation must compute alike."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState

MIXED = {"bf16": "bf16", "fp32": "no"}


def accelerator_for(precision: str) -> Accelerator:
    """Accelerate's handle for "bf16" (bfloat16 autocast over float32 weights) or "fp32".

    Accelerate keeps one precision per process; a game may train its SFT stage in another than its iterations.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != MIXED[precision]:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=MIXED[precision])
