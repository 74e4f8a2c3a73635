"""What a stage holds on one device at its peak, in bytes, item by item."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from sparring.config import OptimSection, Recipe
from sparring.planning.hardware import Hardware, Samplers
from sparring.planning.lengths import Lengths
from sparring.planning.shape import Linear, Shape
from sparring.planning.work import FOUR_BIT_BYTES, position_bytes, slots
from sparring.policy.footprint import (
    GRADIENT_BYTES,
    KEPT_SCORES,
    MASTER_BYTES,
    NUMBER_BYTES,
    OPTIMIZER_BYTES,
    PREFILL_TOKENS,
    Parallel,
    activation_bytes,
    computing_copy_bytes,
    gathered_at_once,
    inner_size,
    logits_bytes,
)

# Measured on CPU with torch 2.13 on Linux, assumed on CUDA: Python, torch and transformers once imported (there: the context); the
# kernels that oneDNN and torch keep by shape (policy/compute.py bounds them), with a backward pass and without, by the bytes of a
# number; and the share of what comes and goes that the allocator cannot use again.
PROCESS = {"cpu": 0.42e9, "cuda": 1.0e9}
KERNELS = {("training", 2): 0.4e9, ("training", 4): 0.3e9, ("forward", 2): 0.25e9, ("forward", 4): 0.1e9}
HOLES = {"cpu": 0.25, "cuda": 0.10}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `weights` are those that compute, `process` the libraries and what the allocator cannot use."""

    weights: float = 0.0
    masters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0
    loading: float = 0.0
    process: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts in bytes."""
        return sum(getattr(self, field.name) for field in fields(self))


def training(shape: Shape, settings: OptimSection, lengths: Lengths, replies: int, tokens: int, kind: str, parallel: Parallel) -> Memory:
    """`tokens`: of a micro-batch; `replies`: branches of a tree, the human one included; `kind` of device: "cuda" or "cpu"."""
    number = NUMBER_BYTES[settings.precision]
    trained, frozen = trained_weights(shape, settings), is_frozen(settings)
    weights = computing_bytes(shape, settings) if frozen else computing_copy_bytes(settings.precision) * shape.parameters
    passing = 0.0 if frozen else _passing(shape, settings, parallel)
    activations = tokens * _kept(shape, settings, lengths, replies, kind)
    logits = logits_bytes(shape.config, number, tokens * _scored(lengths, replies))
    return Memory(
        weights=weights * parallel.part * (frozen or not parallel.is_sharded) + _gathered(shape, number, parallel),
        masters=MASTER_BYTES * trained * parallel.part,
        gradients=GRADIENT_BYTES * trained * parallel.part + passing,
        optimizer=OPTIMIZER_BYTES[settings.optimizer] * trained * parallel.part,
        activations=activations,
        logits=logits,
        process=_process(kind, "training", number, activations + logits),
    )


def _passing(shape: Shape, settings: OptimSection, parallel: Parallel) -> float:
    """Gradients on their way. One in bfloat16 lives until it was added: two of the largest matrix at most. Where weights are sharded, those
    of a layer, or of embedding and head, are there whole, and once more in float32 to be reduced."""
    if parallel.is_sharded:
        return (NUMBER_BYTES[settings.precision] + GRADIENT_BYTES) * max(shape.largest_layer, shape.outside_layers)
    return 2 * computing_copy_bytes(settings.precision) * shape.largest_matrix


def scoring(shape: Shape, settings: OptimSection, tokens: int, kind: str, parallel: Parallel) -> Memory:
    """Log-probs without a gradient: the weights, one layer's numbers, one chunk of logits."""
    number = NUMBER_BYTES[settings.precision]
    held = computing_bytes(shape, settings) * parallel.part + _gathered(shape, number, parallel)
    activations = tokens * _one_layer(shape, number)
    logits = logits_bytes(shape.config, number, tokens)
    process = _process(kind, "forward", number, activations + logits)
    loading = 0.0 if parallel.is_sharded else _loading(shape, number, activations + logits + process, kind)
    return Memory(weights=held, activations=activations, logits=logits, loading=loading, process=process)


def sampling(shape: Shape, recipe: Recipe, lengths: Lengths, rows: int, replicas: int, hardware: Hardware, samplers: Samplers) -> Memory:
    """Weights, the key-value cache of all rows that are sampled together, their logits, and the prompts of one forward."""
    kind, number = hardware.kind, NUMBER_BYTES[recipe.sampling_dtype]
    if recipe.sampling.inner.urls:  # the check of its log-probs loads the player here, where a device has room for it
        checked = number * shape.parameters * (kind == "cpu" or 1.5 * number * shape.parameters < hardware.memory)
        return Memory(weights=checked, process=_process(kind, "forward", number, 0))
    weights = computing_bytes(shape, recipe.train) if recipe.train.four_bit else number * shape.parameters
    at_once = slots(recipe, lengths, rows, replicas, samplers.copies)
    position = position_bytes(shape, number)
    positions = lengths.longest_prompt + recipe.sampling.max_new_tokens
    # logits, then their shares in float32 twice and the sums of blocks
    logits = at_once * shape.config.vocab_size * (number + 8)
    activations = PREFILL_TOKENS * _one_layer(shape, number)
    if recipe.sampling.inner.fills:
        return _filled(recipe, weights / samplers.split, positions * position / samplers.split, logits + activations, hardware)
    cache = at_once * positions * position
    process = _process(kind, "forward", number, activations + logits)
    loading = _loading(shape, number, cache + logits + activations + process, kind)
    return Memory(weights=weights, cache=cache, logits=logits, activations=activations, loading=loading, process=process)


def measuring(drawn: Memory, scored: Memory, recipe: Recipe, kind: str) -> Memory:
    """Replies, then log-probs, in one process: the larger of both, plus the kernels that the other kind of pass leaves on a CPU."""
    larger = max(drawn, scored, key=lambda held: held.total)
    if kind != "cpu" or not recipe.sampling.spec.on_ranks:
        return larger
    return replace(larger, process=larger.process + KERNELS["forward", NUMBER_BYTES[recipe.sampling_dtype]])


def _filled(recipe: Recipe, weights: float, row: float, working: float, hardware: Hardware) -> Memory:
    """An engine that fills the share of the device that it may take with cache; it needs room for `row` bytes of it at least."""
    share = recipe.sampling.inner.fills
    assert share is not None, "only such an engine is asked about"
    taken = recipe.sampling.option(share) * hardware.memory
    cache = max(row, taken - weights - working)
    return Memory(weights=weights, cache=cache, activations=working, process=PROCESS[hardware.kind])


def is_frozen(settings: OptimSection) -> bool:
    """Whether the base weights are frozen, that is, an adapter is trained."""
    return settings.lora is not None


def trained_weights(shape: Shape, settings: OptimSection) -> float:
    """All parameters of the model, or those of the adapters (and DoRA's norms) of its linear layers."""
    lora = settings.lora
    if lora is None:
        return shape.parameters
    return sum(lora.rank * (linear.inputs + linear.outputs) + lora.dora * linear.outputs for linear in _targets(shape, lora.targets))


def computing_bytes(shape: Shape, settings: OptimSection) -> float:
    """The model in the number format that computes, its linear layers in 4 bits where the recipe says so."""
    number = NUMBER_BYTES[settings.precision]
    if not settings.four_bit:
        return number * shape.parameters
    return number * (shape.parameters - shape.in_linears) + FOUR_BIT_BYTES * shape.in_linears


def _targets(shape: Shape, targets: str | tuple[str, ...]) -> list[Linear]:
    """As PEFT reads `target_modules`: a word, names of modules (or their ends), or a regular expression over whole names."""
    import re

    if targets == "all-linear":
        return list(shape.linears)
    if isinstance(targets, str):
        return [linear for linear in shape.linears if re.fullmatch(targets, linear.name)]
    return [linear for linear in shape.linears if any(f".{linear.name}".endswith(f".{name}") for name in targets)]


def _kept(shape: Shape, settings: OptimSection, lengths: Lengths, replies: int, kind: str) -> float:
    """Bytes that autograd keeps of a token."""
    number = NUMBER_BYTES[settings.precision]
    layer = activation_bytes(shape.config, number, _scores(lengths, replies) if kind == "cpu" else 0)
    if settings.lora is not None:
        # PEFT casts the input of every adapter to its float32
        layer += 4 * sum(linear.inputs for linear in _targets(shape, settings.lora.targets)) / shape.layers
    if settings.gradient_checkpointing:
        return layer + number * shape.config.hidden_size * shape.layers
    return layer * shape.layers


def _scores(lengths: Lengths, replies: int) -> float:
    """Scores that attention keeps per token and head on a CPU, 0 if they are too many and recomputed (policy/tree_attention.py)."""
    first = lengths.prompt + lengths.reply
    squares = first**2 + (replies - 1) * (lengths.prompt + lengths.generated) * lengths.generated
    scores = squares / (first + (replies - 1) * lengths.generated)
    return scores if scores <= KEPT_SCORES else 0.0


def _gathered(shape: Shape, number: int, parallel: Parallel) -> float:
    """Sharded weights that are put together at a time."""
    return number * gathered_at_once(shape.largest_layer, shape.outside_layers) if parallel.is_sharded else 0.0


def _scored(lengths: Lengths, replies: int) -> float:
    """The share of a tree's positions whose logits are needed."""
    generated = (replies - 1) * lengths.generated
    return min(1.0, (lengths.reply + generated) / (lengths.prompt + lengths.reply + generated))


def _one_layer(shape: Shape, number: int) -> float:
    """Bytes of a token while it passes one layer: the residual stream, the feed-forward part and the norms' float32."""
    return (number + 8) * shape.config.hidden_size + 3 * number * inner_size(shape.config)


def _process(kind: str, work: str, number: int, coming_and_going: float) -> float:
    kernels = KERNELS[work, number] if kind == "cpu" else 0.0
    return PROCESS[kind] + kernels + HOLES[kind] * coming_and_going


def _loading(shape: Shape, number: int, beside_weights: float, kind: str) -> float:
    """What loading takes beyond the stage's own work. On a CPU the float32 file is mapped while it is read; then the largest layer and
    the embeddings are in float32 for a while, so that the packed layout can be checked (policy/compute.py)."""
    file = MASTER_BYTES * shape.parameters if kind == "cpu" and number != MASTER_BYTES else 0.0
    check = 0.0 if number == MASTER_BYTES else MASTER_BYTES * (shape.largest_layer + shape.outside_layers)
    return max(0.0, PROCESS[kind] + max(file, check) - beside_weights)
