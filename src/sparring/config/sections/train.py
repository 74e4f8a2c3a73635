"""How weights are trained: options of the SFT stage, of self-play and of both, and adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from sparring.config.option_types import (
    Fraction,
    NonNegativeFloat,
    PerIteration,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    Texts,
    at_iteration,
)
from sparring.errors import UserError

Optimizer = Literal["rmsprop", "adamw", "adafactor", "rmsprop8bit", "adamw8bit"]
Precision = Literal["bf16", "fp32"]


class LoraSection(Section):
    """An adapter by PEFT (arXiv 2106.09685); PEFT's names are in brackets."""

    rank: PositiveInt = 16
    """Inner size of the two factors (r); 8 to 64 is usual."""
    alpha: PositiveFloat = 32.0
    """Their product is scaled by alpha / rank (lora_alpha); twice the rank is usual."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that training drops (lora_dropout). Above 0 the first-step margin of the second iteration and later ones
    is no longer exactly 0, since the opponent never drops any."""
    targets: Text | Texts = "all-linear"
    """Modules that get an adapter (target_modules): `all-linear` is every linear layer but the head; or a list of the model's module names,
    or a regular expression over them."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (use_rslora, arXiv 2312.03732)."""
    dora: bool = False
    """Train the norms of the weights in addition to their directions (use_dora, arXiv 2402.09353)."""
    quantize: Literal["4bit"] | None = None
    """4bit keeps the frozen base in 4 bits (QLoRA, NF4 by bitsandbytes, `sparring[8bit]`), while it samples and scores too; on CUDA
    only."""

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is kept in 4 bits."""
        return self.quantize == "4bit"


class OptimSection(Section):
    """Options that the SFT stage and the self-play stage share."""

    optimizer: Optimizer = "rmsprop"
    """The paper trains with rmsprop. adafactor keeps only means of rows and columns as its state, and multiplies `lr` by each matrix's root
    mean square, so it needs a larger `lr`; the 8-bit ones need `sparring[8bit]`. Bytes per parameter: docs/fast-path.md."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    warmup: Fraction = 0.1
    """Share of the schedule's horizon over which the learning rate rises from 0."""
    horizon_epochs: PositiveFloat | None = None
    """Epochs after which the schedule would reach its end, when that is later than the stop at `epochs` (the published scripts schedule 6
    and stop early); equal to `epochs` when null."""
    batch_size: PositiveInt = 64
    """Duels (or SFT rows) per optimizer step, whatever the micro-batches."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled for adamw and adafactor, L2 term of rmsprop; the paper uses none."""
    max_grad_norm: PositiveFloat | None = 1.0
    """The gradient is scaled down to this norm; null never scales it."""
    precision: Precision | None = None
    """Number format of the computation. When null, bf16, or fp32 on a device without fast bfloat16 products, such as a CPU that has no
    AVX-512; logged, and kept for the whole run. The weights that are trained and saved stay in float32."""
    lora: LoraSection | None = None
    """Train an adapter on the frozen model instead of all weights; `lora: {}` takes all defaults. It needs a larger `lr` than full
    training. After an SFT stage the adapter is merged into the weights; a player keeps its adapter separate."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens, padding included, computed at once; bounds the memory. When null, chosen from the model's size, its sharding by the launcher
    and the memory that is free when the run starts, at most 1024 on a CPU (512 in float32), where more is not faster; logged, and kept for
    the whole run."""
    checkpoint_every: PositiveInt = 50
    """Optimizer steps between checkpoints; a kill loses at most these."""

    @property
    def four_bit(self) -> bool:
        """Whether the frozen base is kept in 4 bits."""
        return self.lora is not None and self.lora.four_bit

    @property
    def can_be_sharded(self) -> bool:
        """Whether a launcher can shard the training: not with a 4-bit base, or optimizer states of another shape than the weights."""
        return not self.four_bit and self.optimizer in ("rmsprop", "adamw")

    @property
    def forward_passes(self) -> int:
        """Cost of training on a token in forward passes of 2 N floating-point operations: 1 forward plus 2 backward, or 1 if frozen."""
        return 2 if self.lora else 3

    @property
    def number_format(self) -> Precision:
        """`precision`; if null, a run chooses it before anything is computed."""
        assert self.precision is not None
        return self.precision

    @property
    def max_tokens(self) -> int:
        """`micro_batch_tokens`; if null, a run chooses it before anything is computed."""
        assert self.micro_batch_tokens is not None
        return self.micro_batch_tokens

    @field_validator("epochs", check_fields=False)  # the subclasses define epochs, each in its own type
    @classmethod
    def _stops_within_horizon(cls, epochs: float | tuple[float, ...], info: ValidationInfo) -> float | tuple[float, ...]:
        horizon = info.data.get("horizon_epochs")
        last = max(epochs, default=0) if isinstance(epochs, tuple) else epochs
        if horizon is not None and last > horizon:
            raise ValueError(f"the stop at {last:g} epochs is after horizon_epochs, {horizon:g}, where the schedule ends")
        return epochs


class TrainSection(OptimSection):
    """Options of the training of each iteration."""

    lr: PerIteration = 5e-7
    """Peak learning rate, one value or one per iteration; the paper uses 5e-7, later 1e-7."""
    epochs: PerIteration = 2.0
    """Passes over the duels after which an iteration stops, rounded up to whole steps; one value or one per iteration."""

    def at(self, iteration: int) -> TrainSection:
        """The options with their values in an iteration (from 0)."""
        return self.model_copy(update={name: at_iteration(getattr(self, name), iteration) for name in ("lr", "epochs")})


class SftSection(OptimSection):
    """Options of the SFT stage before the game."""

    lr: PositiveFloat = 2e-5
    """Peak learning rate."""
    epochs: PositiveFloat = 1.0
    """Passes over the training rows, rounded up to whole steps."""
    optimizer: Optimizer = "adamw"
    """The usual choice for SFT is adamw."""


def require_shardable(settings: OptimSection, section: str) -> None:
    """Raise UserError for options that do not work with sharding; `section`: the key of the settings."""
    if settings.can_be_sharded:
        return
    option, value = ("lora.quantize", "4bit") if settings.four_bit else ("optimizer", settings.optimizer)
    remedy = "use rmsprop or adamw without quantize, or launcher.strategy: ddp, where every rank holds the whole model"
    raise UserError(f"{value} does not work if the launcher shards the model", where=f"{section}.{option}", remedy=remedy)
