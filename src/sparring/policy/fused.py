"""RMSNorm and the gated unit of a feed-forward part (SwiGLU), each as one autograd function that keeps only its inputs.

With the code of transformers, autograd keeps an RMSNorm's input in float32 and two normed copies, and a gated unit's activation: a third
of all activations of a Llama layer. Values and gradients are the same to the last bit, so no other code depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import silu
from transformers import PreTrainedModel

from sparring.policy.packed import FOREIGN_ERRORS

# Tokens of the random input on which a module is compared with its fused form
PROBE_TOKENS = 4


def fuse(model: PreTrainedModel) -> None:
    """Give the model's RMSNorms and gated units their fused forward; modules that compute something else keep their own.

    Both forms are compared on random inputs, since the name of a class is not enough: Gemma's RMSNorm multiplies by 1 + weight. A module
    gets a subclass of its class, since an own `forward` attribute would be a reference cycle, which keeps the model in memory.
    """
    fused: dict[tuple[type, type], type | None] = {}
    for module in model.modules():
        if isinstance(module, Fused) or "forward" in vars(module):  # the latter was replaced by a library
            continue
        kind = type(module), type(getattr(module, "act_fn", None))
        if kind not in fused:
            fused[kind] = _fused_class(module)
        if (found := fused[kind]) is not None:
            module.__class__ = found


class Fused:
    """Marks the classes that `fuse` makes."""


def _fused_class(module: nn.Module) -> type | None:
    """A subclass of the module's class with the fused forward; None if there is no fused form, or its values differ."""
    own = type(module)
    check: Callable[[Any], bool]
    forward: Callable[[Any, Tensor], Tensor]
    if {"gate_proj", "up_proj", "down_proj"} <= {name for name, _ in module.named_children()}:
        check, forward = _unit_agrees, _gated_unit
    elif own.__name__.endswith("RMSNorm") and [name for name, _ in module.named_parameters()] == ["weight"]:
        check, forward = _norm_agrees, _norm_forward(own)
    else:
        return None
    return type(own.__name__, (Fused, own), {"forward": forward}) if _agrees(module, check) else None


@torch.no_grad()
def _agrees(module: nn.Module, check: Callable[[Any], bool]) -> bool:
    try:
        return check(module)
    except FOREIGN_ERRORS:  # it takes other arguments, or is made of further parts
        return False


def _norm_agrees(norm: nn.Module) -> bool:
    """Whether both forms give the same bits; on the CPU with random weights, since the norm's own may be on a device, or sharded."""
    weight, probe = _random(norm.get_parameter("weight").shape), _random((PROBE_TOKENS, *norm.get_parameter("weight").shape))
    return torch.equal(functional_call(norm, {"weight": weight}, probe), _RmsNorm.apply(probe, weight, _epsilon(norm)))


def _unit_agrees(unit: Any) -> bool:
    """Whether both forms give the same bits, with simple functions in place of the unit's projections."""
    probe = _random((PROBE_TOKENS, 8))
    projections = {"gate_proj": lambda x: 2 * x, "up_proj": lambda x: x + 1, "down_proj": lambda x: 3 * x}
    stub = SimpleNamespace(**{**vars(unit), "act_fn": getattr(unit, "act_fn", None), **projections})
    return torch.equal(type(unit).forward(stub, probe), _gated_unit(stub, probe))


def _random(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def _epsilon(norm: Any) -> float:
    return getattr(norm, "variance_epsilon", None) or norm.eps


def _norm_forward(own: type[nn.Module]) -> Callable[[Any, Tensor], Tensor]:
    def forward(norm: Any, hidden: Tensor) -> Tensor:
        if hidden.dtype == torch.float32:  # the own forward keeps little in float32, and sums gradients in another order
            return own.forward(norm, hidden)
        return _RmsNorm.apply(hidden, norm.weight, _epsilon(norm))

    return forward


def _gated_unit(unit: Any, hidden: Tensor) -> Tensor:
    return unit.down_proj(_Gate.apply(unit.gate_proj(hidden), unit.up_proj(hidden)))


class _RmsNorm(torch.autograd.Function):
    """weight x (x / sqrt(mean of x^2 + eps)), normed in float32 and rounded before the weight, as in transformers' Llama.

    The operations and their order are those of autograd over that code; in place wherever a value has no other reader.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        scale = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        wide = x.to(torch.float32)
        of_weight = (grad * (wide * scale).to(x.dtype)).sum_to_size(weight.shape) if needs_weight else None
        if not needs_x:
            return None, of_weight, None
        of_normed = (grad * weight).to(torch.float32)
        of_scale = (of_normed * wide).sum(-1, keepdim=True)
        of_mean = of_scale.mul_(-0.5).mul_(scale.pow(3)).div_(x.shape[-1])
        found = of_normed.mul_(scale).add_(wide.mul_(2.0).mul_(of_mean))
        return found.to(x.dtype), of_weight, None


class _Gate(torch.autograd.Function):
    """silu(gate) x up; the activation is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)
