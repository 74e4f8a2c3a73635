"""The optimizers of a recipe: those of torch, and the 8-bit ones of bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from sparring.config import OptimSection
from sparring.errors import UserError

EIGHT_BIT = {"rmsprop8bit": "RMSprop8bit", "adamw8bit": "AdamW8bit"}


def require_optimizer(name: str, where: str) -> None:
    """Raise UserError if the optimizer's library is not installed."""
    if name in EIGHT_BIT:
        _require_bitsandbytes(name, where)


def _require_bitsandbytes(what: str, where: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{what} needs the package bitsandbytes", where=where, remedy="pip install 'sparring[8bit]'")


def require_four_bit(settings: OptimSection, where: str) -> None:
    """Raise UserError if the recipe quantises its base and this machine does not support it."""
    if not settings.four_bit:
        return
    if not torch.cuda.is_available():
        raise UserError(
            "4bit needs a CUDA device, and there is none here", where=where, remedy="use lora without quantize, or a machine with a GPU"
        )
    _require_bitsandbytes("4bit", where)


def require_shardable(settings: OptimSection, where: str) -> None:
    """Raise UserError for what cannot be sharded: 4-bit bases, and optimizer states that do not have their parameter's shape."""
    replicas = "launcher.strategy: ddp, where every rank holds all of the model"
    if settings.four_bit:
        raise UserError("4bit does not work where the launcher shards the model", where=f"{where}.lora.quantize", remedy=f"use {replicas}")
    if settings.optimizer == "adafactor" or settings.optimizer in EIGHT_BIT:
        raise UserError(
            f"{settings.optimizer} does not work where the launcher shards it",
            where=f"{where}.optimizer",
            remedy=f"choose rmsprop or adamw, whose states are sharded, or {replicas}",
        )


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
