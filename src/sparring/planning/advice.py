"""Changes that make a plan fit: a table of changes, each planned separately, so that only those that help are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sparring.config import Recipe, load_recipe
from sparring.errors import UserError
from sparring.planning.estimate import Plan, estimate

MOST_PROPOSALS, MOST_DEVICES = 2, 512
# Optimizers whose states can be sharded
CUTTABLE = ("rmsprop", "adamw")

SMALLER = ("train.gradient_checkpointing=true", "train.micro_batch_tokens=1024")
CACHE = ("sampling.batch_tokens=4096",)
SHARED = ("launcher={kind: accelerate, strategy: fsdp2}", "train.gradient_checkpointing=true")
# Cheapest first; an option of `train` means that of `sft` too
CHANGES = (
    (),
    ("evaluate.benchmarks=null",),  # and played by another program
    SMALLER,
    CACHE,
    (*SMALLER, *CACHE),
    (*SHARED, *CACHE),
    ("train.optimizer=rmsprop8bit", *SMALLER, *CACHE),
    ("train.lora={rank: 16}", *SMALLER, *CACHE),
    ("train.lora={rank: 16, quantize: 4bit}", *SMALLER, *CACHE),
)
ON_MORE_DEVICES = (SHARED, (*SHARED, "sampling.engine=vllm", "sampling.vllm.tensor_parallel=8"))


@dataclass(frozen=True)
class Proposal:
    """Options that make the plan fit, as they are written on the command line, and the largest stage's bytes and the hours then."""

    changes: tuple[str, ...]
    devices: int
    peak: float
    hours: float


def advise(plan: Plan) -> list[Proposal]:
    """What makes the plan fit: on the devices that are there, else on more of them. Empty where it fits, or nothing known helps."""
    if plan.fits:
        return []
    fewer, found = _no_more_than(plan), list[Proposal]()
    for change in CHANGES:
        changes = (*fewer, *_of_all(plan.recipe, change))
        proposal = _proposal(plan, changes, plan.hardware.count)
        if proposal is not None and not any(set(known.changes) <= set(changes) for known in found):
            found.append(_shortened(plan, proposal, kept=fewer))
    return found[:MOST_PROPOSALS] or list(_on_more(plan))[:MOST_PROPOSALS]


def _shortened(plan: Plan, found: Proposal, kept: tuple[str, ...]) -> Proposal:
    """Without the changes that it fits without as well, `kept` apart."""
    for change in found.changes:
        left = tuple(one for one in found.changes if one != change)
        shorter = None if change in kept else _proposal(plan, left, found.devices)
        found = shorter or found
    return found


def _on_more(plan: Plan) -> Iterator[Proposal]:
    """The fewest devices of this kind, doubled from those that are there."""
    doubled = math.floor(math.log2(MOST_DEVICES / plan.hardware.count)) if plan.hardware.kind == "cuda" else 0
    for change in ON_MORE_DEVICES:
        tried = (_proposal(plan, _of_all(plan.recipe, change), plan.hardware.count * 2**power) for power in range(1, doubled + 1))
        yield from [proposal for proposal in tried if proposal is not None][:1]


def _proposal(plan: Plan, changes: tuple[str, ...], devices: int) -> Proposal | None:
    """None where the plan does not fit with these options either, or the recipe or a run refuses them."""
    try:
        recipe = load_recipe(plan.recipe, changes)
        require_playable(recipe, plan.hardware.kind)
    except UserError:
        return None
    tried = estimate(recipe, plan.shape, plan.lengths, replace(plan.hardware, count=devices))
    return Proposal(changes, devices, tried.peak.memory.total, tried.seconds / 3600) if tried.fits else None


def require_playable(recipe: Recipe, kind: str) -> None:
    """Raise UserError for combinations that `sparring run` refuses on such a device ("cuda" or "cpu"), though each option is right."""
    sections = [section for section in (recipe.train, recipe.sft) if section]
    if recipe.launcher.shards and any(section.four_bit or section.optimizer not in CUTTABLE for section in sections):
        raise UserError(
            "bases in 4 bits, Adafactor and 8-bit optimizers do not work where the launcher shards the model",
            where="launcher.strategy",
            remedy="use ddp, or rmsprop or adamw without quantize",
        )
    if kind == "cpu" and any(section.four_bit for section in sections):
        raise UserError("bases in 4 bits need a CUDA device", where="lora.quantize", remedy="name a GPU in --hardware, or leave it out")


def _of_all(recipe: Recipe, changes: tuple[str, ...]) -> tuple[str, ...]:
    """The options for every section that trains, and for benchmarks where there are any."""
    of_sft = [f"sft.{change.removeprefix('train.')}" for change in changes if change.startswith("train.") and recipe.sft]
    return (*(change for change in changes if recipe.evaluate.benchmarks or "benchmarks" not in change), *of_sft)


def _no_more_than(plan: Plan) -> tuple[str, ...]:
    """Options that ask for no more devices than there are, where the recipe's do."""
    recipe, count = plan.recipe, plan.hardware.count
    if plan.wanted[0] <= count:
        return ()
    fewer = [f"sampling.{recipe.sampling.inner.devices}={2 ** int(math.log2(count))}"] if recipe.sampling.devices_of_a_copy > count else []
    if count == 1 and recipe.launcher.kind != "inline":
        return ("launcher=inline", *fewer)
    fewer += ["launcher.machines=1"] if recipe.launcher.machines > 1 else []
    return (*fewer, f"launcher.processes={count}") if plan.parallel.devices > count else tuple(fewer)
