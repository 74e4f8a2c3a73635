"""The work of every stage: tokens, floating-point operations and, while sampling, decoding steps and the bytes that they read; and its
time, from the shares of a device's peak rates that stages are assumed to reach.

A product of a token with a matrix of W weights counts 2 W operations; a backward pass through it 4 W, or 2 W where the weights are
frozen. Attention is counted too, softmax, norms and similar operations are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparring.config import EngineSpec, Recipe
from sparring.planning.hardware import Hardware, Samplers
from sparring.planning.lengths import Lengths
from sparring.planning.shape import Shape
from sparring.policy.footprint import HEAD_CHUNK, NUMBER_BYTES


@dataclass(frozen=True)
class Work:
    """Tokens and operations of all devices together; `steps` and `bytes_read` are of sampling only, and of one device."""

    tokens: float = 0.0
    flops: float = 0.0
    steps: float = 0.0
    bytes_read: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def times(self, factor: float) -> Work:
        """Every part multiplied by `factor`."""
        return Work(*(factor * value for value in vars(self).values()))


@dataclass(frozen=True)
class ForwardPasses:
    """Cost of a token in the weights, the head and the products of attention, in forward passes."""

    body: float
    head: float
    attention: float


SCORING = ForwardPasses(1, 1, 1)


def training_forward_passes(frozen: bool, recomputed: bool, micro_batch_tokens: int) -> ForwardPasses:
    """Of training: forward 1, backward 2 (1 through frozen weights, which get no gradient), 1 more if activations are recomputed."""
    backward = 1 if frozen else 2
    again = micro_batch_tokens > HEAD_CHUNK  # all chunks of logits except for the last are recomputed
    return ForwardPasses(1 + backward + recomputed, 1 + backward + again, 3 + recomputed)


def tree_work(shape: Shape, forward_passes: ForwardPasses, prompt: float, replies: tuple[float, ...], count: float = 1) -> Work:
    """Scoring or training on `count` trees of one prompt and some replies, packed: the prompt once, the last token of a reply never fed."""
    first, *others = (reply - 1 for reply in replies)
    tokens = prompt + first + sum(others)
    seen = (prompt + first) ** 2 / 2 + sum(other * (prompt + other / 2) for other in others)
    weights = forward_passes.body * shape.passed * tokens + forward_passes.head * shape.head * sum(replies)
    return Work(tokens * count, (2 * weights + forward_passes.attention * _attention(shape, seen)) * count)


def sampling_work(shape: Shape, recipe: Recipe, lengths: Lengths, rows: int, replicas: int, samplers: Samplers) -> Work:
    """Sampling `replicas` replies to each of `rows` prompts with continuous batching; a prompt is computed once.

    Parallel samplers share every shard; each device of a sharded layer reads only its part.
    """
    prompt, new = lengths.prompt, lengths.generated
    replies = rows * replicas
    tokens = rows * prompt + replies * (new - 1)
    seen = rows * prompt**2 / 2 + replies * (new - 1) * (prompt + new / 2)
    flops = 2 * shape.passed * tokens + _attention(shape, seen) + 2 * shape.head * replies * new
    steps, active = _decoding(recipe, lengths, rows, replicas, samplers.copies)
    number = NUMBER_BYTES[recipe.sampling_dtype]
    cached = active * (prompt + new / 2) * position_bytes(shape, number)
    return Work(tokens, flops, steps, steps * (weight_bytes_read(shape, recipe) + cached) / samplers.split)


def slots(recipe: Recipe, lengths: Lengths, rows: int, replicas: int, copies: int) -> int:
    """The number of replies that one sampler samples at once, of those to `rows` prompts."""
    sampling, (_, replies) = recipe.sampling, _rounds(recipe, rows, replicas, copies)
    if option := sampling.inner.at_once:
        return min(math.ceil(replies), sampling.option(option) or sampling.inner.usually)
    longest = lengths.longest_prompt + sampling.max_new_tokens
    return max(1, min(math.ceil(replies), sampling.batch_tokens // longest))


def _rounds(recipe: Recipe, rows: int, replicas: int, copies: int) -> tuple[int, float]:
    """(rounds of one sampler, replies in each): samplers share the rows of a file, except for Ray, which distributes `batch_rows`."""
    shard = min(rows, recipe.sampling.shard_rows)
    if recipe.sampling.spec.hosts:
        call = min(recipe.sampling.ray.batch_rows, shard * replicas)
        return math.ceil(math.ceil(rows * replicas / call) / copies), call
    return math.ceil(rows / shard), max(1.0, shard * replicas / copies)


def position_bytes(shape: Shape, number_bytes: int) -> float:
    """Bytes of one position of the key-value cache, in all layers."""
    return shape.heads.cached * shape.attending * number_bytes


def weight_bytes_read(shape: Shape, recipe: Recipe) -> float:
    """Bytes of weights that a decoding step reads: all matrices, of all experts; of the embedding only some rows."""
    number = NUMBER_BYTES[recipe.sampling_dtype]
    four_bit = recipe.train.four_bit
    return number * (shape.parameters - shape.outside_layers + shape.head) - (number - FOUR_BIT_BYTES) * four_bit * shape.in_linears


# NF4 with quantised constants: 4 bits, and 8 bits per 64 weights with a little more (arXiv 2305.14314, section 3)
FOUR_BIT_BYTES = 0.5 + 0.127 / 8


def _decoding(recipe: Recipe, lengths: Lengths, rows: int, replicas: int, copies: int) -> tuple[float, float]:
    """(steps of one sampler, mean number of active rows): every round ends with a tail in which its last rows finish."""
    rounds, replies = _rounds(recipe, rows, replicas, copies)
    at_once = min(slots(recipe, lengths, rows, replicas, copies), replies)
    new, longest = lengths.generated, lengths.longest_generated
    steps_of_round = max(1.0, replies / at_once) * new + max(0.0, longest - new)
    return rounds * steps_of_round, replies * new / steps_of_round


def _attention(shape: Shape, seen: float) -> float:
    """Scores and weighted sums over `seen` pairs of a query and a key."""
    return 2 * (shape.heads.queries + shape.heads.found) * shape.attending * seen


@dataclass(frozen=True)
class Shares:
    """The share of a device's peak operations and bandwidth that is reached, the source of the numbers in words, the least seconds of a
    layer in a decoding step, and `moved`: numbers that everything besides the products reads and writes, for an operation of a model of
    width WIDTH. A wider model has more operations for the same element-wise work."""

    operations: float
    source: str
    bandwidth: float = 1.0
    layer_seconds: float = 0.0
    moved: float = 0.0


WIDTH = 576  # of SmolLM2-135M, with which CPUs were measured
TRAINING = {
    "cuda": Shares(0.40, "fitted to the paper's training time; measured on no GPU"),
    "cpu": Shares(1.0, "fitted to three processors, docs/plan.md", moved=0.04),
}
SAMPLING = {
    "cuda": Shares(0.30, "the bandwidth fitted to the paper's generation time, the others assumed", 0.28, 0.0005),
    "cpu": Shares(1.0, "the operations fitted to three processors, the others assumed", 0.50, 0.0002, 0.055),
}
PAGED = Shares(0.40, "assumed", 0.60, 0.00003)


def shares_of_sampling(kind: str, engine: EngineSpec) -> Shares:
    """The shares of an engine on a kind of device, "cuda" or "cpu"; engines with paged attention have their own."""
    return PAGED if engine.paged else SAMPLING[kind]


def seconds(work: Work, shares: Shares, hardware: Hardware, devices: int, shape: Shape, number_bytes: int) -> float:
    """The longest time of three: the operations; in sampling, reading weights and cache in every step, and launching kernels.

    number_bytes: of a number that is computed with.
    """
    moving = shares.moved * number_bytes * WIDTH / shape.config.hidden_size / hardware.bandwidth
    return max(
        work.flops / devices * (1 / (hardware.flops * shares.operations) + moving),
        work.bytes_read / (hardware.bandwidth * shares.bandwidth),
        work.steps * shape.layers * shares.layer_seconds,
    )


def assumed_rates(hardware: Hardware, engine: EngineSpec) -> str:
    """The assumed shares in words."""
    train, sample = TRAINING[hardware.kind], shares_of_sampling(hardware.kind, engine)
    peak, bandwidth = f"{hardware.flops / 1e12:.3g} TFLOP/s", f"{hardware.bandwidth / 1e9:.0f} GB/s"
    return (
        f"training and scoring reach {train.operations:.0%} of {peak}{_moved(train, bandwidth)} ({train.source}); sampling ({engine.name}) "
        f"{sample.bandwidth:.0%} of {bandwidth}, {sample.operations:.0%} of the operations{_moved(sample, bandwidth)} and "
        f"{sample.layer_seconds * 1e3:g} ms a layer and step, whichever is slowest ({sample.source}); {hardware.name}: {hardware.source}; "
        "loading, saving and communication between devices are not counted"
    )


def _moved(shares: Shares, bandwidth: str) -> str:
    if not shares.moved:
        return ""
    return f", plus {shares.moved:g} numbers moved for each operation at {bandwidth} (at a width of {WIDTH}; fewer in wider models)"
