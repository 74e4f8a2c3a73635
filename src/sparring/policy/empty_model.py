"""Models that only rank 0 reads: the other ranks create the same model on torch's meta device until rank 0's weights are distributed.

So a machine holds at most one copy of a model while it is being sharded, instead of one per rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparring.policy.adapters import is_adapter
from sparring.policy.load import load_model, model_shape
from sparring.policy.ranks import from_main


def load_on_main(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """`load_model` on rank 0; on the others a model without weights, with the buffers of rank 0. All ranks must call it."""
    if is_adapter(folder):
        return load_model(folder, dtype)
    loaded: list[PreTrainedModel] = []

    def load() -> dict[str, Any]:
        loaded.append(load_model(folder, dtype))
        dtypes = {name: parameter.dtype for name, parameter in loaded[0].named_parameters()}
        return {"dtypes": dtypes, "buffers": dict(loaded[0].named_buffers())}

    facts = from_main(load)
    return loaded[0] if loaded else _empty(folder, dtype, **facts)


def _empty(folder: Path, dtype: torch.dtype, dtypes: dict[str, torch.dtype], buffers: dict[str, Tensor]) -> PreTrainedModel:
    model = model_shape(folder)
    model.tie_weights()
    if dict(model.named_parameters()).keys() != dtypes.keys():  # weights that contradict their config, such as tied weights
        return load_model(folder, dtype)
    for name, parameter in model.named_parameters():
        parameter.data = torch.empty_like(parameter, dtype=dtypes[name])
    for name, buffer in buffers.items():
        module, _, last = name.rpartition(".")
        setattr(model.get_submodule(module), last, buffer)
    return model.eval()
