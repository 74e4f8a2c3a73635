"""`sparring plan`: from a recipe to the plan as tables and as JSON, and the change that makes it fit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import Recipe, load_recipe, require_shardable
from sparring.config.specs import DEFAULT, ON_GPU
from sparring.errors import UserError
from sparring.launch import with_config
from sparring.planning.estimate import Plan, StagePlan, contest_branches, estimate, with_format
from sparring.planning.given_shape import GivenShape
from sparring.planning.hardware import find_hardware
from sparring.planning.lengths import Given, find_lengths
from sparring.planning.memory import Memory
from sparring.planning.shape import find_shape
from sparring.planning.work import assumed_rates

SMALLER = ("train.gradient_checkpointing=true", "train.micro_batch_tokens=1024")
CACHE = ("sampling.batch_tokens=4096",)
# Cheapest first; an option of `train` means that of `sft` too
CHANGES = (
    ("evaluate.benchmarks=null",),  # they can be run by another program
    SMALLER,
    CACHE,
    (*SMALLER, *CACHE),
    ("launcher={kind: accelerate, strategy: fsdp2}", "train.gradient_checkpointing=true", *CACHE),
    ("train.optimizer=rmsprop8bit", *SMALLER, *CACHE),
    ("train.lora={rank: 16}", *SMALLER, *CACHE),
    ("train.lora={rank: 16, quantize: 4bit}", *SMALLER, *CACHE),
)


def advise(plan: Plan) -> tuple[tuple[str, ...], Plan] | None:
    """The first of CHANGES with which the game fits, as on the command line, and the plan with it; None if none is needed or helps.

    Options that it fits without are left out: they cost time.
    """
    if plan.fits:
        return None
    found = next(((change, changed) for change in CHANGES if (changed := _changed(plan, change)) is not None), None)
    if found is None:
        return None
    needed: tuple[str, ...] = found[0]
    changed = found[1]
    for option in found[0]:
        left = tuple(one for one in needed if one != option)
        if (fewer := _changed(plan, left)) is not None:
            needed, changed = left, fewer
    return _of_sft_too(plan, needed), changed


def _of_sft_too(plan: Plan, change: tuple[str, ...]) -> tuple[str, ...]:
    return (*change, *(f"sft.{option.removeprefix('train.')}" for option in change if option.startswith("train.") and plan.recipe.sft))


def _changed(plan: Plan, change: tuple[str, ...]) -> Plan | None:
    """The plan with the change if the game fits; None if it does not, or if the recipe or a run refuses the change."""
    with contextlib.suppress(UserError):
        recipe = load_recipe(plan.recipe, _of_sft_too(plan, change))
        require_playable(recipe, plan.hardware.kind)
        changed = estimate(recipe, plan.shape, plan.lengths, plan.hardware)
        return changed if changed.fits else None
    return None


def require_playable(recipe: Recipe, kind: str) -> None:
    """Raise UserError for combinations of valid options that `sparring run` refuses on such a device ("cuda" or "cpu")."""
    for name, section in recipe.trained.items():
        if with_config(recipe.launcher).shards:
            require_shardable(section, name)
        if kind == "cpu" and section.four_bit:
            remedy = "name a GPU in --hardware, or leave it out"
            raise UserError("4-bit bases need a CUDA device", where=f"{name}.lora.quantize", remedy=remedy)


MEMORY_ROWS = {
    "weights": "weights that compute",
    "masters": "float32 weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "logits": "logits, one chunk",
    "cache": "key-value cache",
    "loading": "more while loading",
    "process": "process, allocator",
}
assert list(MEMORY_ROWS) == [field.name for field in fields(Memory)]


def plan_of(recipe: Recipe, hardware: str | None = None, given: Given | None = None, model: GivenShape | None = None) -> Plan:
    """The plan of a recipe; the other arguments are as on the command line. Loads no weights. Raises UserError if it cannot be planned."""
    device = find_hardware(hardware, recipe.train.precision)  # first, so that a wrong name is reported before the data is read
    require_playable(recipe, device.kind)
    shape = find_shape(recipe.model, model)
    return estimate(with_format(recipe, device), shape, find_lengths(recipe, given or Given()), device)


def as_json(plan: Plan) -> dict[str, Any]:
    """The content of the tables, unrounded: bytes, hours, tokens, operations."""
    return {
        "model": {"name": plan.shape.name, "source": plan.shape.source, "parameters": plan.shape.parameters},
        "data": asdict(plan.lengths),
        "hardware": asdict(plan.hardware),
        "training_devices": asdict(plan.parallel),
        "micro_batch_tokens": plan.micro_batch_tokens,
        "assumptions": assumptions(plan),
        "stages": [_stage(stage, plan) for stage in plan.stages],
        "hours": plan.seconds / 3600,
        "disk_bytes": plan.disk,
        "peak_bytes": plan.peak.memory.total,
        "fits": plan.fits,
        "try": None if (found := advise(plan)) is None else found[0],
    }


def _stage(stage: StagePlan, plan: Plan) -> dict[str, Any]:
    return {
        "stage": f"{stage.owner}/{stage.kind}",
        "tokens": stage.work.tokens,
        "operations": stage.work.flops,
        "hours": stage.seconds / 3600,
        "bytes": {**asdict(stage.memory), "total": stage.memory.total},
        "fits": stage.memory.total <= plan.device.memory,
    }


def print_plan(plan: Plan, console: Console) -> None:
    """Print the inputs of the plan, work and memory, the assumptions, and the verdict."""
    _print_lines(_facts(plan), console)
    console.print(_work_table(plan))
    console.print(_memory_table(plan))
    _print_lines(["Assumed:", *(f"- {line}" for line in assumptions(plan)), *verdict(plan)], console)


def verdict(plan: Plan) -> list[str]:
    """Lines with hours and disk, whether the plan fits, and else what to change."""
    peak, count, (wanted, option) = plan.peak, plan.hardware.count, plan.wanted
    costly = max(plan.stages, key=lambda stage: stage.seconds).kind
    share = sum(stage.seconds for stage in plan.stages if stage.kind == costly) / plan.seconds
    accuracy = "at most" if plan.lengths.are_bounds else "about"
    hours = f"Time{'' if plan.fits else ', if it fitted'}: {accuracy} {estimated_time(plan.seconds)}"
    cost = f"{hours}, {share:.0%} of it {costly}. Disk: {_gb(plan.disk)} GB at most."
    needed = f"{peak.owner}/{peak.kind} needs {_gb(peak.memory.total)} of {_gb(plan.device.memory)} GB"
    if plan.fits:
        return [cost, f"Fits: {needed}."]
    if wanted > count:
        return [cost, f"Does not fit: {option} needs {wanted} devices of {count}. Lower it, or plan for more devices."]
    if (found := advise(plan)) is None:
        return [cost, f"Does not fit: {needed}.", "Use a smaller model, or more or larger devices."]
    changes = " ".join(f"'{change}'" if " " in change else change for change in found[0])
    return [cost, f"Does not fit: {needed}.", f"Try: {changes} ({_gb(found[1].peak.memory.total)} GB, {estimated_time(found[1].seconds)})"]


def assumptions(plan: Plan) -> list[str]:
    """The assumptions behind hours and tokens, one line each."""
    recipe, spec = plan.recipe, plan.recipe.sampling.inner
    count, scores = contest_branches(recipe), recipe.objective.kind.uses_margins
    trained = f"{count} replies, winners and losers" if scores else f"{count} winners"
    applies = {
        assumed_rates(plan.device, spec): True,
        f"without sampling.engine, {DEFAULT} is assumed; where {ON_GPU} is installed a run uses it: sampling.engine={ON_GPU} plans that": (
            plan.hardware.kind == "cuda" and recipe.may_use_vllm
        ),
        f"every prompt is trained on with {trained}, the most that the recipe allows, as long as other replies of the model"
        f"{'' if scores else '; no opponent log-probs are computed'}": recipe.target.uses_grades,
        "grading is not counted": recipe.target.checker is not None,
        f"every held-out prompt gets evaluate.samples ({recipe.evaluate.samples}) replies from every player": recipe.evaluate.samples > 1,
        "every URL of the server samples as fast as one of these devices; its memory is its own": spec.urls is not None,
        f"all of this is the game of one seed, and the recipe plays {len(recipe.seeds or ())}": recipe.seeds is not None,
        "benchmarks: memory is counted, time is not": recipe.evaluate.benchmarks is not None,
        "preference pairs are as many and as long as the rows of data": any(section.pairs for section in recipe.controls),
    }
    return [line for line, is_made in applies.items() if is_made]


def estimated_time(seconds: float) -> str:
    """Seconds as a text for people, in s, min or h, rounded as estimates are."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.2f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def _facts(plan: Plan) -> list[str]:
    shape, lengths, device = plan.shape, plan.lengths, plan.hardware.label
    if plan.hardware.kind == "cpu" and plan.parallel.devices > 1:
        device += f", shared by {plan.parallel.devices} ranks ({plan.parallel.strategy})"
    elif plan.hardware.count > 1 or plan.parallel.devices > 1:
        device += f", of which {plan.parallel.devices} train ({plan.parallel.strategy})"
    asked = f"; {lengths.unanswered_rows:,} prompts without replies, of {lengths.unanswered_prompt:.0f} tokens"
    parameters = f"{shape.parameters / 1e9:.2f}B" if shape.parameters >= 1e9 else f"{shape.parameters / 1e6:.1f}M"
    return [
        f"Model: {shape.name}, {parameters} parameters ({shape.source})",
        f"Data: {lengths.train_rows:,} rows to train on, {lengths.held_out_rows:,} held out; {lengths.prompt:.0f} prompt, "
        f"{lengths.reply:.0f} reply and {lengths.generated:.0f} generated tokens a row ({lengths.source})"
        f"{asked if lengths.unanswered_rows else ''}",
        f"Device: {device}; micro-batches of {plan.micro_batch_tokens} tokens",
    ]


def _gb(count: float) -> str:
    gigabytes = count / 1e9
    return f"{gigabytes:.0f}" if gigabytes >= 100 else f"{gigabytes:.1f}" if gigabytes >= 0.95 else f"{gigabytes:.2f}"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _work_table(plan: Plan) -> Table:
    table = _table("Work", "stage", "tokens", "operations", "GB per device")
    for stage in plan.stages:
        table.add_row(f"{stage.owner}/{stage.kind}", *_amounts([stage]), _gb(stage.memory.total))
    table.add_section()
    table.add_row("together", *_amounts(plan.stages), _gb(plan.peak.memory.total), style="bold")
    return table


def _amounts(stages: Sequence[StagePlan]) -> list[str]:
    tokens, operations = (sum(values) for values in zip(*((one.work.tokens, one.work.flops) for one in stages), strict=True))
    return [f"{tokens / 1e6:,.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:,.1f}k", f"{operations:.2e}"]


def _memory_table(plan: Plan) -> Table:
    """A column for every kind of stage, with the memory of its largest stage."""
    kinds: dict[str, Memory] = {}
    for stage in plan.stages:
        kind = "sft" if stage.owner == "sft" else stage.kind
        kinds[kind] = max(kinds.get(kind, Memory()), stage.memory, key=lambda held: held.total)
    table = _table("Memory per device, GB", "", *kinds)
    for name, words in MEMORY_ROWS.items():
        values = [getattr(held, name) for held in kinds.values()]
        if any(values):
            table.add_row(words, *(_gb(value) if value else "-" for value in values))
    table.add_section()
    table.add_row("together", *(_gb(held.total) for held in kinds.values()), style="bold")
    return table


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(Text(line))
