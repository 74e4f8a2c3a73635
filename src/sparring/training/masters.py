"""float32 master weights under a model that computes in another number format, and the optimizers that step them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.config import OptimSection
from sparring.errors import UserError, is_installed
from sparring.policy.adapters import attach, base_of, is_adapter, new_adapter, save_adapter
from sparring.policy.compute import COMPUTE_DTYPES, model_on
from sparring.policy.load import load_model, model_shape
from sparring.policy.ranks import from_main

EIGHT_BIT = {"rmsprop8bit": "RMSprop8bit", "adamw8bit": "AdamW8bit"}


def require_trainable(settings: OptimSection, section: str) -> None:
    """Raise UserError if this machine lacks what a section of the recipe needs: bitsandbytes, and CUDA for a 4-bit base."""
    if settings.optimizer in EIGHT_BIT:
        _require_bitsandbytes(settings.optimizer, f"{section}.optimizer")
    if settings.four_bit:
        where, remedy = f"{section}.lora.quantize", "use lora without quantize, or a machine with a GPU"
        if not torch.cuda.is_available():
            raise UserError("4bit needs a CUDA device, and there is none here", where=where, remedy=remedy)
        _require_bitsandbytes("4bit", where)


def _require_bitsandbytes(what: str, where: str) -> None:
    if not is_installed("bitsandbytes"):
        raise UserError(f"{what} needs the package bitsandbytes", where=where, remedy="pip install 'sparring[8bit]'")


def make_optimizer(model: torch.nn.Module, settings: OptimSection) -> torch.optim.Optimizer:
    """The recipe's optimizer over float32 weights; weight decay on matrices only, not on norms and biases."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer in EIGHT_BIT:
        import bitsandbytes

        return getattr(bitsandbytes.optim, EIGHT_BIT[settings.optimizer])(groups, lr=0.0)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0)
    if settings.optimizer == "adamw":
        # fused takes a third of the time on a CPU; only these two devices support it
        return torch.optim.AdamW(groups, lr=0.0, fused=groups[0]["params"][0].device.type in ("cpu", "cuda"))
    return torch.optim.RMSprop(groups, lr=0.0)


def load_on_main(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """`load_model` on rank 0; on the others a model without weights, with the buffers of rank 0. All ranks must call it.

    So a machine holds at most one copy of a model while it is being sharded, instead of one per rank.
    """
    if is_adapter(folder):
        return load_model(folder, dtype)
    loaded: list[PreTrainedModel] = []

    def load() -> tuple[dict[str, torch.dtype], dict[str, Tensor]]:
        loaded.append(load_model(folder, dtype))
        return {name: parameter.dtype for name, parameter in loaded[0].named_parameters()}, dict(loaded[0].named_buffers())

    dtypes, buffers = from_main(load)
    if loaded:
        return loaded[0]
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


class MasterWeights:
    """`model` computes; `master_model` is updated by the optimizer and saved: the same model for float32, else a float32 copy.

    A bfloat16 parameter near 0.02 is too coarse to move at a learning rate of 5e-7. Gradients are summed over the micro-batches in
    float32, and a parameter's bfloat16 gradient is freed as soon as it is added, so that at most two of them exist at a time.
    Bytes per parameter: 4 of weights and 4 of gradient, 2 more of weights when computing in bfloat16, and the optimizer's state.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, on_main: bool = False) -> None:
        self.master_model = load_on_main(folder) if on_main else model_on(device, load_model(folder))
        # loaded instead of cast, so that buffers and parameters that a model keeps in float32 are the same as in sampling
        self.model = self.master_model if dtype == torch.float32 else model_on(device, load_model(folder, dtype))
        pairs = zip(self.master_model.parameters(), self.model.parameters(), strict=True)
        self._copies = [] if self.model is self.master_model else list(pairs)
        for master, parameter in self._copies:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(_add_gradient, master))

    @torch.no_grad()
    def sync_compute_weights(self) -> None:
        """Copy the masters' values to the computing model."""
        for master, parameter in self._copies:
            parameter.copy_(master)

    def trained(self) -> dict[str, Tensor]:
        """The state dict of the player: all weights and saved buffers."""
        return self.master_model.state_dict(keep_vars=True)

    def save_pretrained(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write the model folder. state: values to write instead of the masters' own, with the names of `trained`."""
        self.master_model.save_pretrained(folder, state_dict=state)


class AdapterWeights:
    """A frozen base in the compute format with float32 adapter weights, which need no separate masters.

    `folder` is an adapter to continue training, or a model that gets a new one. Bytes per parameter of the base: only its weights.
    """

    def __init__(self, folder: Path, settings: OptimSection, device: torch.device, seed: int, on_main: bool = False) -> None:
        assert settings.lora is not None
        self.base = base_of(folder) if is_adapter(folder) else folder
        dtype = COMPUTE_DTYPES[settings.number_format]
        base = load_on_main(self.base, dtype) if on_main else load_model(self.base, dtype, settings.lora.four_bit)
        self.master_model: Any = attach(base, folder, trainable=True) if is_adapter(folder) else new_adapter(base, settings.lora, seed)
        if not on_main:
            self.master_model.to(device)
        self.master_model.eval()
        self.model: PreTrainedModel = self.master_model.get_base_model()

    def sync_compute_weights(self) -> None:
        """Nothing to do: the optimizer updates the same weights that compute."""

    def trained(self) -> dict[str, Tensor]:
        """The state dict of the player: the adapter's weights."""
        return {name: parameter for name, parameter in self.master_model.named_parameters() if parameter.requires_grad}

    def save_pretrained(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Write the adapter only; its base is stored as a path relative to `folder`, so that a run may be moved."""
        save_adapter(self.master_model, folder, os.path.relpath(self.base.absolute(), folder.absolute()), state)


TrainableWeights = MasterWeights | AdapterWeights


def trainable_weights(folder: Path, settings: OptimSection, device: torch.device, seed: int, on_main: bool = False) -> TrainableWeights:
    """The weights of the model in `folder` that the recipe trains: all, or an adapter, which is initialised from `seed`.

    on_main: for sharding, only rank 0 reads the weights, into its own memory; they must be distributed afterwards (training/ranked.py).
    """
    if settings.lora is not None:
        return AdapterWeights(folder, settings, device, seed, on_main)
    # the compute format of shards is that in which they are gathered
    return MasterWeights(folder, torch.float32 if on_main else COMPUTE_DTYPES[settings.number_format], device, on_main)


# Rows of a gradient that are added at once. torch makes a float32 copy of the added tensor: for a whole embedding of 49,152 x 576 it
# allocated 113 MB and took 69 ms instead of 14 (2 CPU cores)
ROWS_AT_ONCE = 4096


def _add_gradient(master: nn.Parameter, parameter: Tensor) -> None:
    """Add the gradient of a compute weight to that of its master, and free it."""
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.to(master.dtype, copy=True)
    else:
        grads = (torch.atleast_1d(grad).split(ROWS_AT_ONCE) for grad in (master.grad, parameter.grad))
        for total, part in zip(*grads, strict=True):
            total.add_(part)
    parameter.grad = None
