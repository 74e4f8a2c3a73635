"""The cost as the published code computes it (github.com/uclaml/SPIN): what the paper's own hours can be checked against.

Every pair is two rows, padded to the longest that the recipe allows, scored by a reference model in every step, with all activations
computed again and logits at every position; replies are drawn in padded batches of 8 by `generate`, each to the full length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparring.config import Recipe, at_iteration
from sparring.planning.hardware import Hardware
from sparring.planning.hours import computing, sampling
from sparring.planning.lengths import Lengths
from sparring.planning.shape import Shape
from sparring.planning.work import Passes, Work, position_bytes, tree_work, weight_bytes_read
from sparring.policy.footprint import NUMBER_BYTES

PROMPTS_AT_ONCE = 8  # 64 over the paper's 8 devices: it gives its seconds by 64 examples
# forward, backward and forward again for the player, forward for the reference
PASSES = Passes(body=1 + 2 + 1 + 1, head=1 + 2 + 1, attention=1 + 2 + 1 + 1)


@dataclass(frozen=True)
class Published:
    """Hours of one iteration."""

    generation: float
    training: float


def published_hours(recipe: Recipe, shape: Shape, lengths: Lengths, hardware: Hardware, iteration: int) -> Published:
    """Of iteration t (from 0) on all devices of `hardware`."""
    pairs = min(iteration + 1, recipe.objective.window) * lengths.train_rows * at_iteration(recipe.train.epochs, iteration)
    trained = _training_work(recipe, shape).times(pairs)
    drawn = _generation_work(recipe, shape, lengths, hardware)
    training = computing(trained, hardware, hardware.count)
    generation = sampling(drawn, hardware, hardware.count, shape.layers)
    return Published(generation.seconds / 3600, training.seconds / 3600)


def _training_work(recipe: Recipe, shape: Shape) -> Work:
    """Of one pair."""
    row = recipe.data.max_prompt_tokens + recipe.data.max_reply_tokens
    return tree_work(shape, PASSES, 1, (row,)).times(2)


def _generation_work(recipe: Recipe, shape: Shape, lengths: Lengths, hardware: Hardware) -> Work:
    new, prompt = recipe.sampling.max_new_tokens, lengths.longest_prompt
    steps = math.ceil(lengths.train_rows / (PROMPTS_AT_ONCE * hardware.count)) * new
    cached = PROMPTS_AT_ONCE * (prompt + new / 2) * position_bytes(shape, NUMBER_BYTES["bf16"])
    tokens = lengths.train_rows * (prompt + new)
    return Work(tokens, 2 * (shape.passed + shape.head) * tokens, steps, steps * (weight_bytes_read(shape, recipe) + cached))
