"""The peak memory of a stage on one device, in bytes, by item."""

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

# Measured on CPU with torch 2.13 on Linux, assumed on CUDA: PROCESS is Python, torch and transformers after import (on CUDA: the
# context). KERNELS are those that oneDNN and torch cache by shape (policy/compute.py limits them), with a backward pass and without, by
# bytes of a number. HOLES is the share of temporary memory that the allocator cannot use again (fragmentation).
PROCESS = {"cpu": 0.42e9, "cuda": 1.0e9}
KERNELS = {("training", 2): 0.25e9, ("training", 4): 0.3e9, ("forward", 2): 0.28e9, ("forward", 4): 0.1e9}
HOLES = {"cpu": 0.25, "cuda": 0.10}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. `weights` are those that compute, `process` the libraries and the allocator's fragmentation."""

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
    """Memory of training. tokens: of a micro-batch; replies: branches of a tree, the human one included; kind: "cuda" or "cpu"."""
    number = NUMBER_BYTES[settings.number_format]
    trained, frozen = trained_weights(shape, settings), settings.lora is not None
    weights = computing_bytes(shape, settings) if frozen else computing_copy_bytes(settings.number_format) * shape.parameters
    temporary = 0.0 if frozen else _temporary_gradients(shape, settings, parallel)
    activations = tokens * _kept(shape, settings, lengths, replies, kind)
    logits = 2 * logits_bytes(shape.config, number, tokens * _scored(lengths, replies))
    return Memory(
        weights=weights * parallel.part * (frozen or not parallel.is_sharded) + _gathered(shape, number, parallel),
        masters=MASTER_BYTES * trained * parallel.part,
        gradients=GRADIENT_BYTES * trained * parallel.part + temporary,
        optimizer=OPTIMIZER_BYTES[settings.optimizer] * trained * parallel.part,
        activations=activations,
        logits=logits,
        process=_process(kind, "training", number, activations + logits),
    )


def _temporary_gradients(shape: Shape, settings: OptimSection, parallel: Parallel) -> float:
    """Gradients that exist until they are added: at most two of the largest matrix, in bfloat16. With sharded weights, those of a whole
    layer, or of embedding and head, and a float32 copy of them to be reduced."""
    if parallel.is_sharded:
        return (NUMBER_BYTES[settings.number_format] + GRADIENT_BYTES) * max(shape.largest_layer, shape.outside_layers)
    return 2 * computing_copy_bytes(settings.number_format) * shape.largest_matrix


def scoring(shape: Shape, settings: OptimSection, tokens: int, kind: str, parallel: Parallel) -> Memory:
    """Memory of log-probs without a gradient: the weights, the activations of one layer, one chunk of logits."""
    number = NUMBER_BYTES[settings.number_format]
    held = computing_bytes(shape, settings) * parallel.part + _gathered(shape, number, parallel)
    activations = tokens * _one_layer(shape, number)
    logits = logits_bytes(shape.config, number, tokens)
    process = _process(kind, "forward", number, activations + logits)
    loading = 0.0 if parallel.is_sharded else _loading(shape, number, activations + logits + process, kind)
    return Memory(weights=held, activations=activations, logits=logits, loading=loading, process=process)


def sampling(shape: Shape, recipe: Recipe, lengths: Lengths, rows: int, replicas: int, hardware: Hardware, samplers: Samplers) -> Memory:
    """Memory of sampling: weights, the key-value cache of all rows that are sampled together, their logits, and the prompts of one
    forward."""
    kind, number = hardware.kind, NUMBER_BYTES[recipe.sampling_dtype]
    if recipe.sampling.inner.urls:  # the check of its log-probs loads the player here, if a device has room for it
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


def measuring(sampled: Memory, scored: Memory, recipe: Recipe, kind: str) -> Memory:
    """Memory of replies, then log-probs, in one process: the larger of both, plus on a CPU the kernels that the other one leaves cached."""
    larger = max(sampled, scored, key=lambda held: held.total)
    if kind != "cpu" or not recipe.sampling.spec.on_ranks:
        return larger
    return replace(larger, process=larger.process + KERNELS["forward", NUMBER_BYTES[recipe.sampling_dtype]])


def _filled(recipe: Recipe, weights: float, row: float, working: float, hardware: Hardware) -> Memory:
    """Memory of an engine that fills its share of the device with cache, which must have room for at least `row` bytes."""
    share = recipe.sampling.inner.fills
    assert share is not None, "called only for such an engine"
    taken = recipe.sampling.option(share) * hardware.memory
    cache = max(row, taken - weights - working)
    return Memory(weights=weights, cache=cache, activations=working, process=PROCESS[hardware.kind])


def trained_weights(shape: Shape, settings: OptimSection) -> float:
    """All parameters of the model, or those of the adapters (and DoRA's norms) of its linear layers."""
    lora = settings.lora
    if lora is None:
        return shape.parameters
    return sum(lora.rank * (linear.inputs + linear.outputs) + lora.dora * linear.outputs for linear in _targets(shape, lora.targets))


def computing_bytes(shape: Shape, settings: OptimSection) -> float:
    """Bytes of the model in the number format that computes, with its linear layers in 4 bits if the recipe sets that."""
    number = NUMBER_BYTES[settings.number_format]
    if not settings.four_bit:
        return number * shape.parameters
    return number * (shape.parameters - shape.in_linears) + FOUR_BIT_BYTES * shape.in_linears


def _targets(shape: Shape, targets: str | tuple[str, ...]) -> list[Linear]:
    """The linear layers that PEFT selects by `target_modules`: a word, names of modules (or their ends), or a regular expression."""
    import re

    if targets == "all-linear":
        return list(shape.linears)
    if isinstance(targets, str):
        return [linear for linear in shape.linears if re.fullmatch(targets, linear.name)]
    return [linear for linear in shape.linears if any(f".{linear.name}".endswith(f".{name}") for name in targets)]


def _kept(shape: Shape, settings: OptimSection, lengths: Lengths, replies: int, kind: str) -> float:
    """Bytes that autograd keeps per token."""
    number = NUMBER_BYTES[settings.number_format]
    layer = activation_bytes(shape.config, number, _scores(lengths, replies) if kind == "cpu" else 0)
    if settings.lora is not None:
        # PEFT casts the input of every adapter to its float32
        layer += 4 * sum(linear.inputs for linear in _targets(shape, settings.lora.targets)) / shape.layers
    if settings.gradient_checkpointing:
        return layer + number * shape.config.hidden_size * shape.layers
    return layer * shape.layers


def _scores(lengths: Lengths, replies: int) -> float:
    """Attention scores kept per token and head on a CPU; 0 if they are so many that they are recomputed (policy/tree_attention.py)."""
    first = lengths.prompt + lengths.reply
    squares = first**2 + (replies - 1) * (lengths.prompt + lengths.generated) * lengths.generated
    scores = squares / (first + (replies - 1) * lengths.generated)
    return scores if scores <= KEPT_SCORES else 0.0


def _gathered(shape: Shape, number: int, parallel: Parallel) -> float:
    """Bytes of sharded weights that are gathered at a time."""
    return number * gathered_at_once(shape.largest_layer, shape.outside_layers) if parallel.is_sharded else 0.0


def _scored(lengths: Lengths, replies: int) -> float:
    """The share of a tree's positions whose logits are needed."""
    generated = (replies - 1) * lengths.generated
    return min(1.0, (lengths.reply + generated) / (lengths.prompt + lengths.reply + generated))


def _one_layer(shape: Shape, number: int) -> float:
    """Bytes per token in one layer: the residual stream, the feed-forward part and the norms' float32."""
    return (number + 8) * shape.config.hidden_size + 3 * number * inner_size(shape.config)


def _process(kind: str, work: str, number: int, temporary: float) -> float:
    kernels = KERNELS[work, number] if kind == "cpu" else 0.0
    return PROCESS[kind] + kernels + HOLES[kind] * temporary


def _loading(shape: Shape, number: int, other_memory: float, kind: str) -> float:
    """Memory that loading needs in addition to that of the stage. On a CPU the float32 file is mapped while it is read; then the largest
    layer and the embeddings are in float32 for a while, to check the packed layout (policy/compute.py)."""
    file = MASTER_BYTES * shape.parameters if kind == "cpu" and number != MASTER_BYTES else 0.0
    check = 0.0 if number == MASTER_BYTES else MASTER_BYTES * (shape.largest_layer + shape.outside_layers)
    return max(0.0, PROCESS[kind] + max(file, check) - other_memory)
