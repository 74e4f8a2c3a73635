"""Sizes of some public models, as their config.json gives them: so that a plan needs neither network nor a licence to be signed."""

from __future__ import annotations

from typing import Any

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _model(kind: str, *sizes: int, context: int, tied: bool, **more: Any) -> dict[str, Any]:
    named = dict(zip(_SIZES, sizes, strict=True))
    return {"model_type": kind, **named, "max_position_embeddings": context, "tie_word_embeddings": tied, **more}


_MISTRAL_7B = _model("mistral", 32_000, 4096, 14_336, 32, 32, 8, context=32_768, tied=False, sliding_window=4096)
_SMOLLM2_135M = _model("llama", 49_152, 576, 1536, 30, 9, 3, context=8192, tied=True)
_QWEN_1_5B = _model("qwen2", 151_936, 1536, 8960, 28, 12, 2, context=32_768, tied=True)
_LLAMA_1B = _model("llama", 128_256, 2048, 8192, 16, 32, 8, context=131_072, tied=True, head_dim=64)
_LLAMA_8B = _model("llama", 128_256, 4096, 14_336, 32, 32, 8, context=131_072, tied=False)
_LLAMA_70B = _model("llama", 128_256, 8192, 28_672, 80, 64, 8, context=131_072, tied=False)

KNOWN_SHAPES = {
    "alignment-handbook/zephyr-7b-sft-full": _MISTRAL_7B,
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "Qwen/Qwen2.5-1.5B": _QWEN_1_5B,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN_1_5B,
    "meta-llama/Llama-3.2-1B": _LLAMA_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_1B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_70B,
}
