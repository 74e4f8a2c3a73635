"""How many tokens are computed at once: a function of the model and of the memory that is free."""

from __future__ import annotations

import math

import psutil
import torch
from transformers import PreTrainedModel

from sparring.policy.score import HEAD_CHUNK
from sparring.policy.tree_attention import KEPT_SCORES

# Beyond this many tokens at once a CPU gets no faster, a GPU hardly.
MOST_TOKENS = {"cpu": 1024, "cuda": 16384}
LEAST_TOKENS = 256
# weights, gradient and optimizer state in the mode that takes most (docs/fast-path.md); of a frozen base under adapters, weights alone
BYTES_PER_PARAMETER = {"full": 18, "adapter": 4}


def token_budget(model: PreTrainedModel, free: float, device: str, adapter: bool = False) -> int:
    """Tokens of a micro-batch that fit `free` bytes beside everything else in training; `model` needs no weights yet.

    A power of 2, so that a little more or less of free memory makes no difference.
    """
    config = model.config.get_text_config()
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # bytes that autograd keeps of a token in one layer, in float32, as measured on SmolLM2; then attention's scores, at most
    of_token = config.num_hidden_layers * (40 * config.hidden_size + 12 * inner + 4 * KEPT_SCORES * config.num_attention_heads)
    logits_and_gradient = 8 * HEAD_CHUNK * config.vocab_size
    fits = (0.8 * free - BYTES_PER_PARAMETER["adapter" if adapter else "full"] * model.num_parameters() - logits_and_gradient) / of_token
    return 2 ** int(math.log2(min(max(fits, LEAST_TOKENS), MOST_TOKENS.get(device, MOST_TOKENS["cpu"]))))


def free_memory(device: torch.device) -> int:
    """Bytes that this process could take of the device's memory now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
