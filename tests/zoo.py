"""Shapes of tiny random models, as the configs of the architectures name them."""

from __future__ import annotations

from collections.abc import Callable

import transformers
from transformers import PreTrainedConfig

VOCABULARY = 48
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough for replies to differ by many nats
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
}
NEOX = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
OPT = {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.3}
# other factors for all rows of a batch as soon as one of them is longer than 13
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 13,
}
MAMBA2 = {"num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8, "expand": 2}

# architecture -> (config, the layout that it must end in)
ZOO: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "llama": (lambda: transformers.LlamaConfig(**COMMON), "tree"),
    "llama, tied": (lambda: transformers.LlamaConfig(**COMMON, tie_word_embeddings=True), "tree"),
    "mistral, long window": (lambda: transformers.MistralConfig(**COMMON, sliding_window=60), "tree"),
    "mistral, short window": (lambda: transformers.MistralConfig(**COMMON, sliding_window=6), "tree"),
    "qwen2": (lambda: transformers.Qwen2Config(**COMMON), "tree"),
    "qwen3": (lambda: transformers.Qwen3Config(**COMMON, head_dim=8), "tree"),
    "gemma-2": (
        lambda: transformers.Gemma2Config(
            **COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, final_logit_softcapping=2.0, attn_logit_softcapping=3.0
        ),
        "tree",
    ),
    "gemma-3": (
        lambda: transformers.Gemma3TextConfig(
            **COMMON, head_dim=8, query_pre_attn_scalar=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        ),
        "tree",
    ),
    "phi": (lambda: transformers.PhiConfig(**COMMON, partial_rotary_factor=0.5), "tree"),  # an untied head with a bias
    "phi-3": (lambda: transformers.Phi3Config(**COMMON, sliding_window=6), "tree"),
    "phi-3, long": (lambda: transformers.Phi3Config(**COMMON, rope_parameters=LONG_ROPE, original_max_position_embeddings=13), "alone"),
    "olmo-2": (lambda: transformers.Olmo2Config(**COMMON), "tree"),
    "mixtral": (lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4), "tree"),
    "qwen3, experts": (
        lambda: transformers.Qwen3MoeConfig(**COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        "tree",
    ),
    "gpt-oss": (lambda: transformers.GptOssConfig(**COMMON, head_dim=8, num_local_experts=4, sliding_window=6), "rows"),  # attention sinks
    "granite": (
        lambda: transformers.GraniteConfig(
            **COMMON, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.2
        ),
        "tree",
    ),
    "cohere": (lambda: transformers.CohereConfig(**COMMON, logit_scale=0.3), "tree"),
    "gpt-2": (lambda: transformers.GPT2Config(**GPT2), "tree"),
    "gpt-neox": (lambda: transformers.GPTNeoXConfig(**NEOX), "tree"),
    "opt": (lambda: transformers.OPTConfig(**NEOX, **OPT), "tree"),
    "bloom": (lambda: transformers.BloomConfig(**COMMON, n_head=2, n_layer=2), "rows"),  # its positions are in the mask
    "mamba-2": (lambda: transformers.Mamba2Config(**COMMON, **MAMBA2), "rows"),
    "mamba": (lambda: transformers.MambaConfig(**COMMON, state_size=4), "rows"),
    "jamba": (  # a hybrid
        lambda: transformers.JambaConfig(
            **COMMON, attn_layer_period=2, attn_layer_offset=1, num_experts=1, use_mamba_kernels=False, mamba_d_state=4
        ),
        "rows",
    ),
}
