"""How many tokens are computed at once: a function of the model and of the memory that is free."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from sparring.policy.compute import layer_sizes
from sparring.policy.container import available_memory
from sparring.policy.footprint import gathered_at_once, held_at_most, tokens_at_once
from sparring.policy.shares import Parallel


def token_budget(model: PreTrainedModel, free: float, device: str, adapter: bool, parallel: Parallel) -> int:
    """Tokens of a micro-batch that fit `free` bytes of a device beside everything else in training; `model` needs no weights yet."""
    gathered = gathered_at_once(*layer_sizes(model)) if parallel.gathers else 0
    held = held_at_most(model.num_parameters(), gathered, adapter, parallel)
    return tokens_at_once(model.config.get_text_config(), held, free, device)


def free_memory(device: torch.device) -> int:
    """Bytes that this process could take of the device's memory now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
