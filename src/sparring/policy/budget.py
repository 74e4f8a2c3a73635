"""How many tokens are computed at once: a function of the model and of the memory that is free."""

from __future__ import annotations

import psutil
import torch
from transformers import PreTrainedModel

from sparring.policy.footprint import held_at_most, tokens_at_once


def token_budget(model: PreTrainedModel, free: float, device: str, adapter: bool = False) -> int:
    """Tokens of a micro-batch that fit `free` bytes beside everything else in training; `model` needs no weights yet."""
    return tokens_at_once(model.config.get_text_config(), held_at_most(adapter) * model.num_parameters(), free, device)


def free_memory(device: torch.device) -> int:
    """Bytes that this process could take of the device's memory now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
