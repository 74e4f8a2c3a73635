"""The memory table of docs/memory.md: ways of training by sizes of models, which fits a card of 24 GB and one of 80.

python benchmarks/memory_table.py
"""

from __future__ import annotations

from functools import cache

from sparring.config import ModelSection, load_recipe
from sparring.planning import memory
from sparring.planning.estimate import Plan, estimate
from sparring.planning.hardware import DEVICES, Hardware
from sparring.planning.lengths import Given, find_lengths
from sparring.planning.shape import Shape, find_shape
from sparring.policy.footprint import Parallel

MODELS = {
    "1B": "meta-llama/Llama-3.2-1B",
    "7B": "alignment-handbook/zephyr-7b-sft-full",
    "70B": "meta-llama/Llama-3.1-70B",
}
MODES: dict[str, tuple[str, ...]] = {
    "full": (),
    "full, 8-bit optimizer": ("train.optimizer=adamw8bit",),
    "LoRA": ("train.lora={rank: 16}",),
    "QLoRA": ("train.lora={rank: 16, quantize: 4bit}",),
}
SETTINGS = (
    "train.optimizer=adamw",
    "train.gradient_checkpointing=true",
    "train.micro_batch_tokens=2048",
    "sampling.batch_tokens=8192",
    "data.max_examples=10200",
)
MOST_DEVICES = 512
SMALL, LARGE = DEVICES["RTX4090-24G"], DEVICES["A100-80G"]
HEADER = (
    "| model | trained | weights | gradients | optimizer | activations, logits | training | sampling | fits 24 GB | fits 80 GB | FSDP2 |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def memory_table() -> str:
    """Markdown; gigabytes (1e9 bytes) of one device."""
    return "\n".join([HEADER, *(_row(size, mode) for size in MODELS for mode in MODES)]) + "\n"


def plan_of_mode(size: str, mode: str, hardware: Hardware) -> Plan:
    recipe = load_recipe({"run_dir": "run", "model": {"path": MODELS[size]}, "data": {"path": "a/b"}}, [*SETTINGS, *MODES[mode]])
    return estimate(recipe, _shape(size), find_lengths(recipe, Given()), hardware)


@cache
def _shape(size: str) -> Shape:
    return find_shape(ModelSection(path=MODELS[size]))


def _row(size: str, mode: str) -> str:
    plan = plan_of_mode(size, mode, LARGE)
    held = {stage.kind: stage.memory for stage in plan.stages}
    train, drawn = held["train"], held["generate"]
    fits = [_yes(plan_of_mode(size, mode, card).fits) for card in (SMALL, LARGE)]
    parts = (
        train.weights + train.masters,
        train.gradients,
        train.optimizer,
        train.activations + train.logits,
        train.total,
        drawn.total,
    )
    return f"| {size} | {mode} | {' | '.join(map(_gb, parts))} | {' | '.join(fits)} | {_devices(plan)} |"


def _devices(plan: Plan) -> str:
    """How many cards of 80 GB training takes where one is not enough."""
    if plan.fits:
        return "-"
    if not plan.recipe.train.can_be_sharded:
        return "impossible"
    count = devices_needed(plan)
    return f"{count} x 80 GB" if count else "no"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}"


def _yes(fits: bool) -> str:
    return "yes" if fits else "no"


def devices_needed(plan: Plan) -> int | None:
    """The fewest devices of this kind, a power of two, over which training fits when FSDP2 shards it; None where no number does."""
    count = 2
    while count <= MOST_DEVICES:
        cut = Parallel(count, "fsdp2")
        train = max(
            memory.training(plan.shape, plan.recipe.train, plan.lengths, 2, plan.micro_batch_tokens, plan.hardware.kind, cut).total,
            memory.scoring(plan.shape, plan.recipe.train, plan.micro_batch_tokens, plan.hardware.kind, cut).total,
        )
        if train <= plan.hardware.memory:
            return count
        count *= 2
    return None


if __name__ == "__main__":
    print(memory_table(), end="")
