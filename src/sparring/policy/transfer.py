"""From the processor's memory to the device's, without waiting for what the device is still at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. A plain copy to a GPU would first wait until all that was asked of the GPU is done; one from pinned memory does
    not, and torch keeps that memory until the copy is made."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def tensor_on(device: torch.device, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values)` on `device`, without a wait."""
    return to_device(torch.tensor(values, dtype=dtype), device)
