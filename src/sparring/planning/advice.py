"""What to change where a plan does not fit: every proposal is planned for itself, so that only what helps is named."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sparring.config import Recipe, load_recipe
from sparring.errors import UserError
from sparring.planning import memory
from sparring.planning.estimate import Plan, estimate
from sparring.planning.parallel import CUTTABLE, Parallel

MOST_PROPOSALS = 4
MOST_DEVICES = 512


@dataclass(frozen=True)
class Proposal:
    """Options that make the plan fit, as they are written on the command line, and the largest stage's bytes and the hours then."""

    changes: tuple[str, ...]
    devices: int
    peak: float
    hours: float


def advise(plan: Plan) -> list[Proposal]:
    """What makes the plan fit: first on the devices that are there, then on more of them. Empty where nothing known helps."""
    if plan.fits:
        return []
    here = list(_that_fit(plan, _on_one_device(plan)))
    # the number of devices alone: nothing that a proposal above has changed already
    return (here + list(_on_more(plan)))[:MOST_PROPOSALS]


def _that_fit(plan: Plan, candidates: Iterator[tuple[str, ...]]) -> Iterator[Proposal]:
    """The candidates that fit, without those that another one is a part of."""
    found: list[tuple[str, ...]] = []
    for changes in candidates:
        if any(set(known) <= set(changes) for known in found):
            continue
        tried = _tried(plan, changes, plan.hardware.count)
        if tried is not None and tried.fits:
            found.append(changes)
            yield Proposal(changes, plan.hardware.count, tried.peak.memory.total, tried.seconds / 3600)


def _tried(plan: Plan, changes: tuple[str, ...], devices: int) -> Plan | None:
    """The plan with some options changed; None where the recipe or a run refuses them."""
    try:
        recipe = load_recipe(plan.recipe, changes)
        require_playable(recipe, plan.hardware.kind)
    except UserError:
        return None
    return estimate(recipe, plan.shape, plan.lengths, replace(plan.hardware, count=devices))


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
    if recipe.train.four_bit and recipe.sampling.inner_engine != "transformers":
        raise UserError("train.lora.quantize needs the engine transformers", where="sampling.engine")
    if recipe.sampling.inner_engine == "vllm" and recipe.train.lora and recipe.train.lora.dora:
        raise UserError("vLLM serves no DoRA adapters", where="sampling.engine", remedy="take transformers, or leave out train.lora.dora")


def _on_one_device(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Changes that leave the number of devices as it is, from those that cost the least."""
    recipe, fewer = plan.recipe, _no_more_than(plan)
    again = _of_training(recipe, "gradient_checkpointing=true")
    smaller = _of_training(recipe, "micro_batch_tokens=1024")
    state = _of_training(recipe, f"optimizer={'adamw8bit' if recipe.train.optimizer.startswith('adamw') else 'rmsprop8bit'}")
    cache = ("sampling.batch_tokens=4096",)
    adapter, four_bit = _of_training(recipe, "lora={rank: 16}"), _of_training(recipe, "lora={rank: 16, quantize: 4bit}")
    apart = ("evaluate.benchmarks=null",) if recipe.evaluate.benchmarks else ()  # and played by another program
    shared = () if "launcher=inline" in fewer else _shared(recipe)
    for start in dict.fromkeys(((), apart, *shared, state, adapter, four_bit)):
        for extra in ((), again, smaller, cache, (*again, *smaller), (*again, *cache), (*again, *smaller, *cache)):
            if fewer or start or extra:
                yield (*fewer, *start, *extra)


def _no_more_than(plan: Plan) -> tuple[str, ...]:
    """Options that ask for no more devices than there are, where the recipe's do."""
    launcher, count = plan.recipe.launcher, plan.hardware.count
    split = plan.recipe.sampling.vllm.tensor_parallel if plan.recipe.sampling.inner_engine == "vllm" else 1
    if plan.wanted[0] <= count:
        return ()
    changes = [f"sampling.vllm.tensor_parallel={2 ** int(math.log2(count))}"] if split > count else []
    if count == 1 and launcher.kind != "inline":
        return ("launcher=inline", *changes)
    changes += ["launcher.machines=1"] if launcher.machines > 1 else []
    return (*changes, f"launcher.processes={count}") if plan.parallel.devices > count else tuple(changes)


def _of_training(recipe: Recipe, option: str) -> tuple[str, ...]:
    """The option for every section that trains."""
    return tuple(f"{section}.{option}" for section in ("train", *(["sft"] if recipe.sft else [])))


def _shared(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    """Training cut over all the devices that there are."""
    if recipe.launcher.kind == "inline" or recipe.launcher.strategy != "fsdp2":
        yield ("launcher={kind: accelerate, strategy: fsdp2}",)


def devices_needed(plan: Plan) -> int | None:
    """The fewest devices of this kind, a power of two, over which training fits when FSDP2 cuts it; None where no number does."""
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


def _on_more(plan: Plan) -> Iterator[Proposal]:
    """Training cut over more devices of this kind, and where one of them cannot hold the weights, replies by vLLM over several."""
    if plan.hardware.kind == "cpu":
        return
    cut = ("launcher={kind: accelerate, strategy: fsdp2}", *_of_training(plan.recipe, "gradient_checkpointing=true"))
    for sampled in ((), ("sampling.engine=vllm", "sampling.vllm.tensor_parallel=8")):
        count = 2 * plan.hardware.count
        while count <= MOST_DEVICES:
            tried = _tried(plan, (*cut, *sampled), count)
            if tried is not None and tried.fits:
                yield Proposal((*cut, *sampled), count, tried.peak.memory.total, tried.seconds / 3600)
                return
            count *= 2
