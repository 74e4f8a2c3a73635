"""How ranks share the memory of training, and bytes of weights, optimizers and activations from the shape of a model. Imports no torch.

`compute.py` chooses the micro-batches of a run with it, `sparring plan` estimates the memory of the stages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parallel:
    """`devices` that work on one stage, and how they share it."""

    devices: int = 1
    strategy: str = "single"

    @property
    def is_sharded(self) -> bool:
        """Whether each device holds a part of the float32 weights, the gradients and the optimizer states.

        A layer's weights are then gathered in the compute format when they are needed, so that there is no permanent copy in it.
        """
        return self.strategy == "fsdp2"

    @property
    def part(self) -> float:
        """The share of weights, gradients and optimizer states that one device holds."""
        return 1 / self.devices if self.is_sharded else 1.0


# Logits of this many reply tokens exist at once.
HEAD_CHUNK = 1024
# Scores per token and head up to which attention keeps them for the backward pass on a CPU; longer paths compute them again.
KEPT_SCORES = 512
# Tokens of prompts that sampling computes in one forward, to bound the activations of many new rows
PREFILL_TOKENS = 2048
# With more tokens at once a CPU gets no faster, and a GPU hardly. In float32 a CPU needs half as many, which saves a quarter of the memory.
MOST_TOKENS = {"cpu": 1024, "cuda": 16384}
LEAST_TOKENS = 256
# Models whose norms and feed-forward parts are both fused (policy/fused.py); others are counted as not fused
FUSED = frozenset({"llama", "mistral", "qwen2", "qwen3", "granite"})
# Bytes of a number in the formats that compute
NUMBER_BYTES = {"bf16": 2, "fp32": 4, "bfloat16": 2, "float32": 4}
# Bytes of optimizer state per parameter; adafactor's means of rows and columns are negligible
OPTIMIZER_BYTES = {"rmsprop": 4.0, "adamw": 8.0, "adafactor": 0.0, "rmsprop8bit": 1.0, "adamw8bit": 2.0}
MASTER_BYTES = GRADIENT_BYTES = 4


def computing_copy_bytes(precision: str) -> int:
    """Bytes per parameter of the compute weights next to the float32 masters; 0 in float32, where the masters compute."""
    return 0 if precision == "fp32" else NUMBER_BYTES[precision]


def training_bytes(precision: str, optimizer: str, parallel: Parallel) -> float:
    """Bytes per trained parameter on one device: weights, gradient and optimizer state (docs/fast-path.md has those on a single one)."""
    copy = 0 if parallel.is_sharded else computing_copy_bytes(precision)
    return (MASTER_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES[optimizer]) * parallel.part + copy


def held_at_most(parameters: float, gathered: float, adapter: bool, parallel: Parallel) -> float:
    """Bytes of weights, gradients and optimizer on one device, in the mode that takes the most memory; of a frozen base under adapters only
    its float32 weights.

    gathered: the number of weights that are gathered at a time if they are sharded.
    """
    of_one = MASTER_BYTES * parallel.part if adapter else training_bytes("bf16", "adamw", parallel)
    return of_one * parameters + MASTER_BYTES * gathered * parallel.is_sharded


def gathered_at_once(largest_layer: int, outside_layers: int) -> int:
    """Weights of a sharded model that a device gathers at a time: a layer, the prefetched next one, embeddings and head."""
    return 2 * largest_layer + outside_layers


def _largest(config: Any, name: str) -> int | None:
    """A size in a config; the largest if it differs by layer (Gemma-3n, Gemma-4), None if there is none."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # transformers refuses to return one value for all layers
        found = [getattr(layer, name, None) for layer in config.per_layer_config]
    return max((size for size in found if size is not None), default=None) if isinstance(found, (list, tuple)) else found


def inner_size(config: Any) -> int:
    """Width of the feed-forward part for one token; in a mixture of experts, of the experts that it is routed to."""
    dense = _largest(config, "intermediate_size") or getattr(config, "n_inner", None) or 4 * config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None)
    if not experts:
        return dense
    of_expert = getattr(config, "moe_intermediate_size", None) or dense
    shared = getattr(config, "shared_expert_intermediate_size", None) or (getattr(config, "n_shared_experts", None) or 0) * of_expert
    return experts * of_expert + shared


@dataclass(frozen=True)
class HeadSizes:
    """Widths of all heads together: of queries, keys, values and the heads' outputs (`found`). `cached`: numbers per position in the cache;
    with latent attention (arXiv 2405.04434) these are the latent vector and its rotary part."""

    queries: int
    keys: int
    values: int
    found: int
    cached: int


def head_sizes(config: Any) -> HeadSizes:
    """Widths of a model's attention heads by its config, also for latent attention (`kv_lora_rank`)."""
    heads = config.num_attention_heads
    if getattr(config, "kv_lora_rank", None):
        size, value = config.qk_nope_head_dim + config.qk_rope_head_dim, heads * config.v_head_dim
        return HeadSizes(heads * size, heads * size, value, value, config.kv_lora_rank + config.qk_rope_head_dim)
    size = _largest(config, "head_dim") or config.hidden_size // heads
    kept = (_largest(config, "num_key_value_heads") or heads) * size
    return HeadSizes(heads * size, kept, kept, heads * size, 2 * kept)


def activation_bytes(config: Any, number_bytes: int, scores: float) -> float:
    """Bytes that autograd keeps of one token in one layer, counted by hand for a Llama layer; `scores`: attention scores kept per head.

    Two norms (input and result), queries, keys, values and the heads' outputs, three products of the feed-forward part, and the attention
    weights; without policy/fused.py also a norm's input in float32, or its normed copy there, and the activation.
    """
    sizes = head_sizes(config)
    fused = config.model_type in FUSED
    norms = 2 * (2 * number_bytes if fused and number_bytes < 4 else 4 + 2 * number_bytes) * config.hidden_size
    attention = number_bytes * (sizes.queries + sizes.keys + sizes.values + sizes.found + scores * config.num_attention_heads)
    return norms + attention + (3 if fused else 4) * number_bytes * inner_size(config)


def logits_bytes(config: Any, number_bytes: int, tokens: float = HEAD_CHUNK) -> float:
    """Bytes of one chunk of logits; in training its gradient has as many."""
    return number_bytes * min(tokens, HEAD_CHUNK) * config.vocab_size


def tokens_at_once(config: Any, held: float, free: float, device: str, number_bytes: int) -> int:
    """Tokens of a micro-batch that fit `free` bytes next to the `held` bytes of weights, gradient and optimizer, with float32 activations.
    number_bytes: of a number that is computed with.

    A power of 2, so that small changes of free memory make no difference.
    """
    of_token = config.num_hidden_layers * activation_bytes(config, 4, KEPT_SCORES)
    fits = (0.8 * free - held - 2 * logits_bytes(config, 4)) / of_token
    most = MOST_TOKENS["cuda"] if device == "cuda" else MOST_TOKENS["cpu"] * 2 // number_bytes
    return 2 ** int(math.log2(min(max(fits, LEAST_TOKENS), most)))
