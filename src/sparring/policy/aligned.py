"""Weights where torch's own memory would begin."""

from __future__ import annotations

from torch import nn

ALIGNED_BYTES = 64  # of torch's allocator on a CPU


def align(model: nn.Module) -> None:
    """Copy weights that begin anywhere else: a file's tensors lie at any place, and on some processors (AMD's) a product with a single row
    is rounded by the place of its weights. Opponent pass and training must round alike, on every rank."""
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNED_BYTES:
            parameter.data = parameter.data.clone()
