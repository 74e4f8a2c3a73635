"""The language model's head for chosen positions only: their logits, and log-probs of chosen tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

# Rows of logits whose float32 copies are made at once. On a CPU so few stay in the cache and take half the time of a whole chunk; a GPU
# needs more, or launching the kernels would dominate (docs/fast-path.md).
ROWS_AT_ONCE = {"cpu": 16, "cuda": 256}


def logits_of(model: PreTrainedModel, hidden_NH: Tensor) -> Tensor:
    """Logits [N, V] of last hidden states, with the scaling or capping of Granite, Cohere and Gemma-2."""
    head = model.get_output_embeddings()
    if head.weight.is_floating_point():  # not quantised
        hidden_NH = hidden_NH.to(head.weight.dtype)  # Mamba's last hidden states are float32
    logits = head(hidden_NH)
    config = model.config.get_text_config()
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def logps_of(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Log-probs [N] of the targets, in float32 at least."""
    return _TargetLogps.apply(logits_NV, target_N)


def chunked_logps(model: PreTrainedModel, hidden_NH: Tensor, target_N: Tensor, chunk: int) -> Tensor:
    """Log-probs [N] of the targets after these last hidden states; logits over the vocabulary exist only for a chunk of them, forward and
    backward."""
    *chunks, last = zip(hidden_NH.split(chunk), target_N.split(chunk), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(_chunk_logps, model, *each, use_reentrant=False) for each in chunks]
    else:
        parts = [_chunk_logps(model, *each) for each in chunks]
    # the last chunk is not checkpointed: the backward pass needs its logits first
    return torch.cat([*parts, _chunk_logps(model, *last)])


def _chunk_logps(model: PreTrainedModel, hidden_NH: Tensor, target_N: Tensor) -> Tensor:
    return logps_of(logits_of(model, hidden_NH), target_N)


class _TargetLogps(torch.autograd.Function):
    """Log softmax at one entry of every row. With a large vocabulary memory bandwidth limits it: autograd's own backward makes three times
    as many passes over memory, and takes twice as much."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_N: Tensor) -> Tensor:
        ctx.save_for_backward(logits_NV, target_N)
        wide = torch.promote_types(logits_NV.dtype, torch.float32)
        total_N = torch.cat([rows.to(wide).logsumexp(1) for rows in logits_NV.split(rows_at_once(logits_NV))])
        return logits_NV.gather(1, target_N[:, None])[:, 0].to(wide) - total_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, target_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        # 1 - p of a likely target would be lost in bfloat16
        count = rows_at_once(logits_NV)
        for row in zip(*(each.split(count) for each in (grad_NV, logits_NV, target_N[:, None], grad_N[:, None])), strict=True):
            found, logits, target, grad = row
            wide = logits.to(grad.dtype).softmax(1).mul_(-grad)
            found.copy_(wide.scatter_add_(1, target, grad))
        return grad_NV, None


def rows_at_once(logits_NV: Tensor) -> int:
    """How many rows of these logits to convert to float32 at once."""
    return ROWS_AT_ONCE.get(logits_NV.device.type, ROWS_AT_ONCE["cuda"])
