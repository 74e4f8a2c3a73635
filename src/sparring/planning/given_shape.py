"""The shape of a model that is not available: a known public one, from its config.json, or a standard decoder of a given size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.errors import UserError, first_line

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _config(kind: str, *sizes: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    """What a plan reads of a config.json; the length of the context is not needed."""
    return {"model_type": kind, **dict(zip(_SIZES, sizes, strict=True)), "tie_word_embeddings": tied, **more}


_LLAMA_8B = "meta-llama/Meta-Llama-3-8B[|-Instruct] meta-llama/Llama-3.1-8B[|-Instruct] deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
_MISTRAL_7B = "mistralai/Mistral-7B-[|Instruct-]v0.1 mistralai/Mistral-7B-Instruct-v0.2 HuggingFaceH4/zephyr-7b-beta"
_QWEN3_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}

# Names of models with the same sizes, and their config; `[a|b]` means one name with a and one with b
_MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("openai-community/gpt2", {"model_type": "gpt2"}),
    ("TinyLlama/TinyLlama-1.1B-[Chat-v1.0|intermediate-step-1431k-3T]", _config("llama", 32_000, 2048, 5632, 22, 32, 4)),
    ("HuggingFaceTB/SmolLM2-135M[|-Instruct]", _config("llama", 49_152, 576, 1536, 30, 9, 3, tied=True)),
    ("HuggingFaceTB/SmolLM2-360M[|-Instruct]", _config("llama", 49_152, 960, 2560, 32, 15, 5, tied=True)),
    ("HuggingFaceTB/SmolLM2-1.7B[|-Instruct]", _config("llama", 49_152, 2048, 8192, 24, 32, 32, tied=True)),
    ("meta-llama/Llama-2-7b-[|chat-]hf", _config("llama", 32_000, 4096, 11_008, 32, 32, 32)),
    ("meta-llama/Llama-2-13b-[|chat-]hf", _config("llama", 32_000, 5120, 13_824, 40, 40, 40)),
    (_LLAMA_8B, _config("llama", 128_256, 4096, 14_336, 32, 32, 8)),
    ("meta-llama/Llama-3.1-70B[|-Instruct] meta-llama/Llama-3.3-70B-Instruct", _config("llama", 128_256, 8192, 28_672, 80, 64, 8)),
    ("meta-llama/Llama-3.2-1B[|-Instruct]", _config("llama", 128_256, 2048, 8192, 16, 32, 8, tied=True)),
    ("meta-llama/Llama-3.2-3B[|-Instruct]", _config("llama", 128_256, 3072, 8192, 28, 24, 8, tied=True)),
    (f"{_MISTRAL_7B} alignment-handbook/zephyr-7b-sft-full", _config("mistral", 32_000, 4096, 14_336, 32, 32, 8, sliding_window=4096)),
    ("mistralai/Mistral-7B-[|Instruct-]v0.3", _config("mistral", 32_768, 4096, 14_336, 32, 32, 8)),
    ("mistralai/Mistral-Nemo-[Base|Instruct]-2407", _config("mistral", 131_072, 5120, 14_336, 40, 32, 8, head_dim=128)),
    ("mistralai/Mistral-Small-24B-[Base|Instruct]-2501", _config("mistral", 131_072, 5120, 32_768, 40, 32, 8, head_dim=128)),
    (
        "mistralai/Mixtral-8x7B-[|Instruct-]v0.1",
        _config("mixtral", 32_000, 4096, 14_336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
    ),
    ("Qwen/Qwen2.5-0.5B[|-Instruct]", _config("qwen2", 151_936, 896, 4864, 24, 14, 2, tied=True)),
    ("Qwen/Qwen2.5-1.5B[|-Instruct]", _config("qwen2", 151_936, 1536, 8960, 28, 12, 2, tied=True)),
    ("Qwen/Qwen2.5-3B[|-Instruct]", _config("qwen2", 151_936, 2048, 11_008, 36, 16, 2, tied=True)),
    ("Qwen/Qwen2.5-7B[|-Instruct] Qwen/Qwen2.5-Coder-7B[|-Instruct]", _config("qwen2", 152_064, 3584, 18_944, 28, 28, 4)),
    ("Qwen/Qwen2.5-14B[|-Instruct]", _config("qwen2", 152_064, 5120, 13_824, 48, 40, 8)),
    ("Qwen/Qwen2.5-32B[|-Instruct] Qwen/Qwen2.5-Coder-32B[|-Instruct]", _config("qwen2", 152_064, 5120, 27_648, 64, 40, 8)),
    ("Qwen/Qwen2.5-72B[|-Instruct]", _config("qwen2", 152_064, 8192, 29_568, 80, 64, 8)),
    ("Qwen/Qwen3-0.6B[|-Base]", _config("qwen3", 151_936, 1024, 3072, 28, 16, 8, tied=True, head_dim=128)),
    ("Qwen/Qwen3-1.7B[|-Base]", _config("qwen3", 151_936, 2048, 6144, 28, 16, 8, tied=True, head_dim=128)),
    ("Qwen/Qwen3-4B[|-Base]", _config("qwen3", 151_936, 2560, 9728, 36, 32, 8, tied=True, head_dim=128)),
    ("Qwen/Qwen3-8B[|-Base]", _config("qwen3", 151_936, 4096, 12_288, 36, 32, 8, head_dim=128)),
    ("Qwen/Qwen3-14B[|-Base]", _config("qwen3", 151_936, 5120, 17_408, 40, 40, 8, head_dim=128)),
    ("Qwen/Qwen3-32B", _config("qwen3", 151_936, 5120, 25_600, 64, 64, 8, head_dim=128)),
    ("Qwen/Qwen3-30B-A3B[|-Base]", _config("qwen3_moe", 151_936, 2048, 6144, 48, 32, 4, head_dim=128, **_QWEN3_EXPERTS)),
    ("google/gemma-2b[|-it]", _config("gemma", 256_000, 2048, 16_384, 18, 8, 1, tied=True, head_dim=256)),
    ("google/gemma-7b[|-it]", _config("gemma", 256_000, 3072, 24_576, 28, 16, 16, tied=True, head_dim=256)),
    ("google/gemma-2-2b[|-it]", _config("gemma2", 256_000, 2304, 9216, 26, 8, 4, tied=True, head_dim=256)),
    ("google/gemma-2-9b[|-it]", _config("gemma2", 256_000, 3584, 14_336, 42, 16, 8, tied=True, head_dim=256)),
    ("google/gemma-2-27b[|-it]", _config("gemma2", 256_000, 4608, 36_864, 46, 32, 16, tied=True, head_dim=128)),
    ("google/gemma-3-1b-[pt|it]", _config("gemma3_text", 262_144, 1152, 6912, 26, 4, 1, tied=True, head_dim=256)),
    ("microsoft/phi-2", _config("phi", 51_200, 2560, 10_240, 32, 32, 32)),
    ("microsoft/Phi-3-mini-4k-instruct", _config("phi3", 32_064, 3072, 8192, 32, 32, 32)),
    ("microsoft/phi-4", _config("phi3", 100_352, 5120, 17_920, 40, 40, 10)),
    ("allenai/OLMo-2-1124-7B[|-SFT|-Instruct]", _config("olmo2", 100_352, 4096, 11_008, 32, 32, 32)),
    ("allenai/OLMo-2-1124-13B[|-SFT|-Instruct]", _config("olmo2", 100_352, 5120, 13_824, 40, 40, 40)),
)


def _names(word: str) -> list[str]:
    start, _, rest = word.partition("[")
    choices, _, end = rest.partition("]")
    return [f"{start}{choice}{end}" for choice in choices.split("|")]


KNOWN_SHAPES = {name: config for names, config in _MODELS for word in names.split() for name in _names(word)}

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}
_HEAD = 128  # width of an attention head
_WIDTHS = range(_HEAD, 32_769, _HEAD)
_SMALL_VOCABULARY, _VOCABULARY = 49_152, 128_256  # SmolLM2's below a billion parameters, Llama 3's above
_RATIO = 3.5
MOST_PARAMETERS = 1e15  # a thousand times the largest models
_TIED_BELOW = 4e9  # smaller models usually tie embedding and head


@dataclass(frozen=True)
class GivenShape:
    """Options of the command that replace `model.path`: a config, or a number of parameters, and of layers."""

    config: Path | None = None
    params: str | None = None
    layers: int | None = None


def given_config(given: GivenShape) -> tuple[Any, str] | None:
    """(config, its source in words); None if no option is given. Raises UserError for options that contradict each other."""
    if given.config is not None:
        if given.params is not None or given.layers is not None:
            raise UserError("a config has the sizes; --params and --layers are for a model without one", where="--config")
        return _of_file(given.config), f"given: {given.config}"
    if given.params is None:
        if given.layers is not None:
            raise UserError("needs the number of parameters too", where="--layers", remedy="add --params, such as 8B")
        return None
    config = decoder_of(_parameters(given.params), given.layers)
    return config, f"given: {given.params}; {config.num_hidden_layers} layers of width {config.hidden_size}, built as a Llama is"


def _of_file(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        remedy = "give a model's config.json, or the folder that holds it"
        raise UserError(f"transformers cannot read this config: {first_line(error)}", where=f"--config ({path})", remedy=remedy) from None


def _parameters(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    parameters = 0.0 if found is None else float(found[1]) * _UNITS.get(found[2], 1.0)
    if not 0 < parameters <= MOST_PARAMETERS:
        what = f"{text[:100]!r} is not a number of parameters of at most {MOST_PARAMETERS:.0e}"
        raise UserError(what, where="--params", remedy="for example 8B, 1.5B or 135M")
    return parameters


def decoder_of(parameters: float, layers: int | None) -> Any:
    """The config of a Llama with about so many parameters; if `layers` is None, with one layer per 128 of its width.

    As in Llama 3, it has a quarter as many heads for keys as for queries, and a feed-forward width of about 3.5 times the model's width.
    """
    from transformers import AutoConfig

    vocabulary = _VOCABULARY if parameters >= 1e9 else _SMALL_VOCABULARY
    tied = parameters < _TIED_BELOW
    tables = vocabulary * (1 if tied else 2)

    def ratio(width: int) -> float:
        """Feed-forward width divided by the model's width, from the parameters that embeddings, attention and norms leave."""
        depth = layers or width // _HEAD
        return ((parameters - tables * width - width) / depth - _attention(width) - 2 * width) / (3 * width**2)

    width = min(_WIDTHS, key=lambda width: abs(ratio(width) - _RATIO))
    if ratio(width) < 1:
        what = f"{parameters:.3g} parameters are too few for {layers or 1} layers and a vocabulary of {vocabulary:,}"
        raise UserError(what, where="--params", remedy="give more, fewer --layers, or the model's --config")
    heads = width // _HEAD
    return AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=round(ratio(width) * width),
        num_hidden_layers=layers or heads,
        num_attention_heads=heads,
        num_key_value_heads=_key_heads(heads),
        head_dim=_HEAD,
        tie_word_embeddings=tied,
    )


def _key_heads(heads: int) -> int:
    """A quarter of the heads, or the next larger number that divides them."""
    return next(number for number in range(max(1, heads // 4), heads + 1) if heads % number == 0)


def _attention(width: int) -> float:
    return 2 * width * (width + _key_heads(width // _HEAD) * _HEAD)
