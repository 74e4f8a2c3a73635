"""The plan for people: what it stands on, work and hours of every stage, memory per device, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparring.planning.advice import Proposal
from sparring.planning.contests import assumptions_of_answers
from sparring.planning.estimate import Plan, StagePlan
from sparring.planning.hours import assumptions
from sparring.planning.memory import Memory
from sparring.planning.published import Published

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


def print_plan(plan: Plan, proposals: Sequence[Proposal], published: Sequence[Published], console: Console) -> None:
    """Three tables and the verdict."""
    _print_lines(_facts(plan), console)
    console.print(_work_table(plan))
    console.print(_memory_table(plan))
    if published:
        console.print(_published_table(published))
    console.print("Assumed:")
    sampling = plan.recipe.sampling
    assumed = [*assumptions(plan.device, sampling.inner_engine), *assumptions_of_answers(plan.recipe)]
    if sampling.engine == "server":
        assumed.append(f"{len(sampling.server.urls)} servers draw, each as fast as one of these devices; their memory is their own")
    if plan.recipe.seeds is not None:
        assumed.append(f"all of this is the game of one seed, and the recipe plays {len(plan.recipe.seeds)}")
    if plan.recipe.evaluate.benchmarks is not None:
        assumed.append("benchmarks: the memory of the one process that plays them is counted, their time is not")
    if any(section.pairs for section in plan.recipe.controls):
        assumed.append("preference pairs are as many and as long as the rows of data")
    _print_lines([f"- {line}" for line in assumed], console)
    _print_lines(verdict(plan, proposals), console)


def verdict(plan: Plan, proposals: Sequence[Proposal]) -> list[str]:
    """Fits or not, in what time, what the time goes into; and what to try."""
    peak = plan.peak
    needed = f"{peak.owner}/{peak.kind} needs {_gb(peak.memory.total)} of {_gb(plan.device.memory)} GB"
    if plan.fits:
        return [f"Fits: {needed}. It takes {_cost(plan)}"]
    wanted, option = plan.wanted
    if wanted > plan.hardware.count:
        needed = f"{option} wants {wanted} devices of {plan.hardware.count}"
    lines = [f"Does not fit: {needed}. (If it did: {_cost(plan)})"]
    if not proposals:
        return [*lines, "No change that plan knows of makes it fit: take a smaller model, or more or larger devices."]
    return [*lines, "Try one of:", *(f"- {_proposal(proposal, plan)}" for proposal in proposals)]


def _cost(plan: Plan) -> str:
    """Time and what it goes into; disk."""
    about = "at most" if plan.lengths.are_bounds else "about"
    costly = max(plan.stages, key=lambda stage: stage.seconds)
    share = sum(stage.seconds for stage in plan.stages if stage.kind == costly.kind) / plan.seconds
    spent = f"{about} {duration(plan.seconds)}; {share:.0%} of it is {costly.kind}, bound by {costly.driver}"
    return f"{spent}. Disk: {_gb(plan.disk)} GB at most."


def _proposal(proposal: Proposal, plan: Plan) -> str:
    on = "" if proposal.devices == plan.hardware.count else f" on {proposal.devices}x {plan.hardware.name}"
    return f"{' '.join(_quoted(change) for change in proposal.changes)}{on} ({_gb(proposal.peak)} GB, {duration(proposal.hours * 3600)})"


def _quoted(change: str) -> str:
    return f"'{change}'" if " " in change else change


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.2f} h" if seconds < 36_000 else f"{seconds / 3600:.0f} h"


def _facts(plan: Plan) -> list[str]:
    shape, lengths = plan.shape, plan.lengths
    device = plan.hardware.label
    if plan.hardware.kind == "cpu" and plan.parallel.devices > 1:
        device += f", shared by {plan.parallel.devices} ranks ({plan.parallel.strategy})"
    elif plan.hardware.count > 1 or plan.parallel.devices > 1:
        device += f", of which {plan.parallel.devices} train ({plan.parallel.strategy})"
    asked = f"; {lengths.unanswered_rows:,} prompts that nobody has answered, of {lengths.unanswered_prompt:.0f} tokens"
    asked = asked if lengths.unanswered_rows else ""
    return [
        f"Model: {shape.name}, {_count(shape.parameters)} parameters ({shape.source})",
        f"Data: {lengths.train_rows:,} rows to train on, {lengths.held_out_rows:,} held out; {lengths.prompt:.0f} prompt, "
        f"{lengths.reply:.0f} reply and {lengths.generated:.0f} generated tokens a row ({lengths.source}){asked}",
        f"Device: {device}; micro-batches of {plan.micro_batch_tokens} tokens",
    ]


def _count(number: float) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def _gb(count: float) -> str:
    gigabytes = count / 1e9
    return f"{gigabytes:.0f}" if gigabytes >= 100 else f"{gigabytes:.1f}" if gigabytes >= 0.95 else f"{gigabytes:.2f}"


def _work_table(plan: Plan) -> Table:
    table = Table(title="Work", title_justify="left")
    for name in ("stage", "tokens", "operations", "time", "bound by"):
        table.add_column(name, justify="left" if name in ("stage", "bound by") else "right", no_wrap=True)
    for owner in plan.owners:
        stages = plan.stages_of(owner)
        for stage in stages:
            table.add_row(f"{owner}/{stage.kind}", *_work_cells([stage]), stage.driver)
        if len(stages) > 1:
            table.add_row(owner, *_work_cells(stages), "", style="bold", end_section=True)
    table.add_row("together", *_work_cells(plan.stages), "", style="bold")
    return table


def _work_cells(stages: Sequence[StagePlan]) -> list[str]:
    tokens, operations, seconds = (sum(values) for values in zip(*((s.work.tokens, s.work.flops, s.seconds) for s in stages), strict=True))
    return [_thousands(tokens), f"{operations:.2e}", duration(seconds)]


def _thousands(tokens: float) -> str:
    return f"{tokens / 1e6:,.1f}M" if tokens >= 1e6 else f"{tokens / 1e3:,.1f}k"


def _memory_table(plan: Plan) -> Table:
    """A column for every kind of stage, at its largest."""
    kinds: dict[str, StagePlan] = {}
    for stage in sorted(plan.stages, key=lambda stage: stage.memory.total):
        kinds["sft" if stage.owner == "sft" else stage.kind] = stage
    order = [kind for kind in ("sft", "generate", "score", "score-start", "train", "measure", "headroom", "benchmarks") if kind in kinds]
    table = Table(title="Memory per device, GB", title_justify="left")
    table.add_column("", no_wrap=True)
    for kind in order:
        table.add_column(kind, justify="right", no_wrap=True)
    for name, words in MEMORY_ROWS.items():
        values = [getattr(kinds[kind].memory, name) for kind in order]
        if any(values):
            table.add_row(words, *(_gb(value) if value else "-" for value in values))
    table.add_section()
    totals = [kinds[kind].memory.total for kind in order]
    table.add_row("together", *map(_gb, totals), style="bold")
    table.add_row(f"fits {_gb(plan.device.memory)} GB", *("yes" if total <= plan.device.memory else "no" for total in totals))
    return table


def _published_table(published: Sequence[Published]) -> Table:
    table = Table(title="As the published code computes, on all devices", title_justify="left")
    for name in ("iteration", "generation", "training"):
        table.add_column(name, justify="right", no_wrap=True)
    for iteration, hours in enumerate(published):
        table.add_row(str(iteration), duration(hours.generation * 3600), duration(hours.training * 3600))
    return table


def _print_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(Text(line))
