"""Packed rows of several sequences, run through a model's own code with an attention that separates them.

transformers lets a model's attention be replaced by name. Ours uses the current packed row, which the context manager `packed` sets for a
forward; without one it is the model's own attention, so that the model can be used as before.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# exceptions of a model's code that does not support packed rows
FOREIGN_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError)


class Attention(NamedTuple):
    """The attention inputs of a layer over the T tokens of a packed row. H query heads, G heads of keys and values, D size of a head.

    A query sees positions less than `window` away (None: all before it); `softcap` bounds the scores.
    """

    query_THD: Tensor
    key_TGD: Tensor
    value_TGD: Tensor
    scaling: float
    window: int | None
    softcap: float | None

    def part(self, places: slice) -> Attention:
        """The inputs of some of the tokens."""
        return self._replace(query_THD=self.query_THD[places], key_TGD=self.key_TGD[places], value_TGD=self.value_TGD[places])


class PackedRow(Protocol):
    """T tokens of several sequences."""

    def attend(self, module: nn.Module, asked: Attention) -> Tensor:
        """The attention output [1, T, H, D] of a layer."""
        ...


_current: ContextVar[PackedRow | None] = ContextVar("packed row", default=None)


@contextlib.contextmanager
def packed(row: PackedRow | None) -> Iterator[None]:
    """In this context, models whose attention was set by `use_packed_attention` read their input as this row."""
    token = _current.set(row)
    try:
        yield
    finally:
        _current.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed forward and of its recomputation in the backward pass, which must see the same packed row."""
    return contextlib.nullcontext(), packed(_current.get())


def kind_of(model: PreTrainedModel) -> str:
    """A key that is equal for models that differ only in their weights, so that checks of the code can be cached."""
    return f"{type(model).__name__} {model.config.to_json_string(use_diff=False)}"


def no_mask(ids_1T: Tensor) -> Tensor:
    """The attention mask to pass with a packed row: a placeholder that keeps the model from building its own."""
    return ids_1T.new_zeros(1, 1, 1, 1, dtype=torch.bool)


def use_packed_attention(model: PreTrainedModel, own: str) -> None:
    """Give `model` the packed attention; `own` is the name of its own. If its code does not support it, its outputs will be wrong."""
    name = f"sparring_packed_{own}"
    AttentionInterface.register(name, partial(_attend, own))
    if own in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    model.set_attn_implementation(name)


def _attend(
    own: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function that transformers calls. query [1, H, T, D], key and value [1, G, T, D] -> [1, T, H, D]."""
    row = _current.get()
    if row is None:
        # "eager" is a function in each model's own file
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        known = {} if scaling is None else {"scaling": scaling}
        return ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)(module, query, key, value, attention_mask, **known, **options)
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases")
    # rotary embeddings leave some models' queries and keys in float32
    query_THD, key_TGD, value_TGD = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    asked = Attention(query_THD, key_TGD, value_TGD, scaling, options.get("sliding_window"), options.get("softcap"))
    return row.attend(module, asked), None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine is out of memory; torch has no exception type for the latter."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
