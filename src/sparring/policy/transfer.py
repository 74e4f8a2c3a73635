"""From the processor's memory to the device's, without waiting for what the device is still at."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. A plain copy to a GPU would first wait until all that was asked of the GPU is done; one from pinned memory does
    not, and torch keeps that memory until the copy is made."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def model_on(device: torch.device, model: M) -> M:
    """`model` moved to `device`. `PreTrainedModel.to` is decorated so that its arguments are lost to a type checker."""
    return model.to(device)


def tensor_on(device: torch.device, values: Any, dtype: torch.dtype | None = None) -> Tensor:
    """`torch.tensor(values)` on `device`, without a wait."""
    return to_device(torch.tensor(values, dtype=dtype), device)
