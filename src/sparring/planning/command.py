"""`sparring plan`: from a recipe to the plan as tables and as JSON, with changes that make it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.config import Recipe, load_recipe
from sparring.config.engines import DEFAULT, ENGINES, ON_GPU
from sparring.errors import UserError
from sparring.files import require_folder_of
from sparring.launch import with_config
from sparring.planning.estimate import Plan, StagePlan, contest_branches, estimate
from sparring.planning.given_shape import GivenShape
from sparring.planning.hardware import find_hardware
from sparring.planning.lengths import Given, find_lengths
from sparring.planning.memory import Memory
from sparring.planning.shape import find_shape
from sparring.planning.work import assumed_rates
from sparring.rundir import write_json

MOST_PROPOSALS, MOST_DEVICES = 2, 512
SHARDABLE = ("rmsprop", "adamw")  # optimizers whose states can be sharded

SMALLER = ("train.gradient_checkpointing=true", "train.micro_batch_tokens=1024")
CACHE = ("sampling.batch_tokens=4096",)
SHARED = ("launcher={kind: accelerate, strategy: fsdp2}", "train.gradient_checkpointing=true")
# Cheapest first; an option of `train` means that of `sft` too
CHANGES = (
    (),
    ("evaluate.benchmarks=null",),  # they can be run by another program
    SMALLER,
    CACHE,
    (*SMALLER, *CACHE),
    (*SHARED, *CACHE),
    ("train.optimizer=rmsprop8bit", *SMALLER, *CACHE),
    ("train.lora={rank: 16}", *SMALLER, *CACHE),
    ("train.lora={rank: 16, quantize: 4bit}", *SMALLER, *CACHE),
)
ON_MORE_DEVICES = (SHARED, (*SHARED, f"sampling.engine={ON_GPU}", f"sampling.{ENGINES[ON_GPU].devices}=8"))


@dataclass(frozen=True)
class Proposal:
    """Options that make the plan fit, as on the command line; with them, the bytes of the largest stage and the hours."""

    changes: tuple[str, ...]
    devices: int
    peak: float
    hours: float


def advise(plan: Plan) -> list[Proposal]:
    """Changes that make the plan fit on the available devices, else on more of them. Empty if it fits already, or no change helps."""
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
    """The proposal without changes that are not necessary; those in `kept` stay."""
    for change in found.changes:
        left = tuple(one for one in found.changes if one != change)
        shorter = None if change in kept else _proposal(plan, left, found.devices)
        found = shorter or found
    return found


def _on_more(plan: Plan) -> Iterator[Proposal]:
    """Proposals with the fewest devices of this kind, at double, four times, ... the available number."""
    doubled = math.floor(math.log2(MOST_DEVICES / plan.hardware.count)) if plan.hardware.kind == "cuda" else 0
    for change in ON_MORE_DEVICES:
        tried = (_proposal(plan, _of_all(plan.recipe, change), plan.hardware.count * 2**power) for power in range(1, doubled + 1))
        yield from [proposal for proposal in tried if proposal is not None][:1]


def _proposal(plan: Plan, changes: tuple[str, ...], devices: int) -> Proposal | None:
    """The proposal of these options; None if the plan does not fit with them, or the recipe or a run refuses them."""
    try:
        recipe = load_recipe(plan.recipe, changes)
        require_playable(recipe, plan.hardware.kind)
    except UserError:
        return None
    tried = estimate(recipe, plan.shape, plan.lengths, replace(plan.hardware, count=devices))
    return Proposal(changes, devices, tried.peak.memory.total, tried.seconds / 3600) if tried.fits else None


def require_playable(recipe: Recipe, kind: str) -> None:
    """Raise UserError for combinations of valid options that `sparring run` refuses on such a device ("cuda" or "cpu")."""
    sections = [section for section in (recipe.train, recipe.sft) if section]
    if with_config(recipe.launcher).shards and any(section.four_bit or section.optimizer not in SHARDABLE for section in sections):
        raise UserError(
            "4-bit bases, Adafactor and 8-bit optimizers do not work if the launcher shards the model",
            where="launcher.strategy",
            remedy="use ddp (MULTI_GPU in a config file), or rmsprop or adamw without quantize",
        )
    if kind == "cpu" and any(section.four_bit for section in sections):
        raise UserError("4-bit bases need a CUDA device", where="lora.quantize", remedy="name a GPU in --hardware, or leave it out")


def _of_all(recipe: Recipe, changes: tuple[str, ...]) -> tuple[str, ...]:
    """The options for every section that trains; those for benchmarks only if the recipe has any."""
    of_sft = [f"sft.{change.removeprefix('train.')}" for change in changes if change.startswith("train.") and recipe.sft]
    return (*(change for change in changes if recipe.evaluate.benchmarks or "benchmarks" not in change), *of_sft)


def _no_more_than(plan: Plan) -> tuple[str, ...]:
    """Options that reduce the number of devices to the available ones; empty if the recipe needs no more."""
    recipe, count = plan.recipe, plan.hardware.count
    if plan.wanted[0] <= count:
        return ()
    fewer = [f"sampling.{recipe.sampling.inner.devices}={2 ** int(math.log2(count))}"] if recipe.sampling.devices_of_a_copy > count else []
    if count == 1 and recipe.launcher.kind != "inline":
        return ("launcher=inline", *fewer)
    fewer += ["launcher.machines=1"] if recipe.launcher.machines > 1 else []
    return (*fewer, f"launcher.processes={count}") if plan.parallel.devices > count else tuple(fewer)


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
    return estimate(recipe, shape, find_lengths(recipe, given or Given()), device)


def show_plan(
    recipe: Recipe,
    hardware: str | None,
    given: Given,
    model: GivenShape,
    json_file: Path | None,
    console: Console,
    headrooms: Mapping[int, Mapping[str, Any]],
) -> None:
    """Print the plan, and write it to `json_file` when there is one, with the headrooms (seed -> what was measured)."""
    require_folder_of(json_file, "--json")
    plan = plan_of(recipe, hardware, given, model)
    proposals = advise(plan)
    if json_file is not None:
        measured = [{"seed": seed, **found} for seed, found in headrooms.items()]
        write_json(json_file, {**as_json(plan, proposals), "headroom": measured})
    print_plan(plan, proposals, console)


def as_json(plan: Plan, proposals: Sequence[Proposal]) -> dict[str, Any]:
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
        "try": [asdict(proposal) for proposal in proposals],
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


def print_plan(plan: Plan, proposals: Sequence[Proposal], console: Console) -> None:
    """Print the inputs of the plan, work and memory, the assumptions, and the verdict."""
    _print_lines(_facts(plan), console)
    console.print(_work_table(plan))
    console.print(_memory_table(plan))
    _print_lines(["Assumed:", *(f"- {line}" for line in assumptions(plan)), *verdict(plan, proposals)], console)


def verdict(plan: Plan, proposals: Sequence[Proposal]) -> list[str]:
    """Lines with hours and disk, whether the plan fits, and what to try."""
    peak, count = plan.peak, plan.hardware.count
    costly = max(plan.stages, key=lambda stage: stage.seconds).kind
    share = sum(stage.seconds for stage in plan.stages if stage.kind == costly) / plan.seconds
    accuracy = "at most" if plan.lengths.are_bounds else "about"
    hours = f"Time{'' if plan.fits else ', if it fitted'}: {accuracy} {estimated_time(plan.seconds)}"
    cost = f"{hours}, {share:.0%} of it {costly}. Disk: {_gb(plan.disk)} GB at most."
    needed = f"{peak.owner}/{peak.kind} needs {_gb(peak.memory.total)} of {_gb(plan.device.memory)} GB"
    if plan.fits:
        return [cost, f"Fits: {needed}."]
    wanted, option = plan.wanted
    lines = [cost, f"Does not fit: {f'{option} needs {wanted} devices of {count}' if wanted > count else needed}."]
    if not proposals:
        return [*lines, "None of the changes that plan tries makes it fit: use a smaller model, or more or larger devices."]
    return [*lines, "Try:", *(f"- {_in_words(proposal, plan)}" for proposal in proposals)]


def _in_words(proposal: Proposal, plan: Plan) -> str:
    on = "" if proposal.devices == plan.hardware.count else f" on {proposal.devices}x {plan.hardware.name}"
    changes = " ".join(f"'{change}'" if " " in change else change for change in proposal.changes)
    return f"{changes}{on} ({_gb(proposal.peak)} GB, {estimated_time(proposal.hours * 3600)})"


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
