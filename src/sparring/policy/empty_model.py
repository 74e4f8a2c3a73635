"""Models that only rank 0 reads: the others reserve the same model in memory that they never touch, until rank 0 distributes its weights.

So a machine holds at most one copy of a model while it is sharded, instead of one per rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from sparring.policy.adapters import is_adapter
from sparring.policy.load import load_model, model_shape
from sparring.policy.ranks import from_main, is_main


def load_on_main(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """`load_model` on rank 0; on the others a model with undefined weights and the buffers of rank 0. All ranks must call it."""
    if is_adapter(folder):
        return load_model(folder, dtype)
    loaded: list[PreTrainedModel] = []

    def load() -> dict[str, Any]:
        loaded.append(load_model(folder, dtype))
        dtypes = {name: parameter.dtype for name, parameter in loaded[0].named_parameters()}
        return {"dtypes": dtypes, "buffers": dict(loaded[0].named_buffers())}

    facts = from_main(load)
    return loaded[0] if loaded else _empty(folder, dtype, **facts)


def empty_like(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """The parameter's values in another number format on rank 0; on the others only its size, since the values are undefined there."""
    return parameter.to(dtype) if is_main() else torch.empty_like(parameter, dtype=dtype)


@torch.no_grad()
def distribute(parameters: Sequence[nn.Parameter], whole: Sequence[Tensor]) -> None:
    """Distribute rank 0's `whole` weights to the sharded parameters of all ranks. All ranks must call it."""
    for parameter, full in zip(parameters, whole, strict=True):
        assert isinstance(parameter, DTensor)
        mesh = parameter.device_mesh
        parameter.copy_(distribute_tensor(full.to(mesh.device_type), mesh, parameter.placements))


def _empty(folder: Path, dtype: torch.dtype, dtypes: dict[str, torch.dtype], buffers: dict[str, Tensor]) -> PreTrainedModel:
    model = model_shape(folder).to_empty(device="cpu")
    model.tie_weights()
    if dict(model.named_parameters()).keys() != dtypes.keys():  # weights that contradict their config, such as tied weights
        return load_model(folder, dtype)
    for name, parameter in model.named_parameters():
        parameter.data = torch.empty_like(parameter, dtype=dtypes[name])
    for name, buffer in model.named_buffers():
        buffer.data = buffers[name]
    return model.eval()
