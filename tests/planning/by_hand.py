"""A recipe, a shape and lengths for plans made by hand."""

from __future__ import annotations

from typing import Any

from sparring.config import Recipe, load_recipe
from sparring.planning.hardware import GB, Hardware
from sparring.planning.lengths import Lengths
from sparring.planning.shape import Shape, measure

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
LENGTHS = Lengths(
    train_rows=100,
    held_out_rows=10,
    prompt=40,
    reply=30,
    generated=20,
    longest_prompt=60,
    longest_reply=50,
    longest_generated=24,
    source="by hand",
)
GPU = Hardware("GPU-24G", "cuda", 1e14, 1e12, 24 * GB, "by hand")


def recipe_of(*overrides: str, path: str = SMOLLM2, **sections: Any) -> Recipe:
    values = {"run_dir": "run", "model": {"path": path}, "data": {"path": "x/y", "max_examples": 110, "held_out": 10}, **sections}
    return load_recipe(values, ["sampling.max_new_tokens=24", "train.precision=bf16", *overrides])


def llama(**sizes: int) -> Shape:
    """A Llama of 2 layers, 4 heads of 8, keys of 2 heads, unless `sizes` say otherwise."""
    import transformers

    options = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return measure("a llama", "by hand", transformers.LlamaConfig(**{**options, "num_key_value_heads": 2, **sizes}))
