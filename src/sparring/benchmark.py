"""`sparring evaluate`: benchmarks on players of a run or on a model, outside of a game."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sparring.config import BenchmarksSection
from sparring.console import log, log_file
from sparring.evaluation.harness import HarnessModel, benchmark_inputs, require_harness, run_benchmarks
from sparring.players import LOG, EvaluatedPlayer, Results, default_out, remade_stage, resolve_models, slug
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.load import DTYPES
from sparring.report.tables import TableRow, print_benchmarks
from sparring.rundir import RunDir, StageRecord, write_json

DEFAULT_SEED = BenchmarksSection.model_fields["seed"].default


def evaluate(
    target: str, section: BenchmarksSection, wanted: Sequence[str] = (), out: Path | None = None, dtype: str | None = None
) -> Results:
    """Run the benchmarks of `section` on players of the run `target`, or on the model of that name.

    Finished results with equal inputs are kept, and those with other inputs are stored next to them. dtype: that of the run's
    recipe when None, float32 for a model. Raises UserError.
    """
    require_harness(section)
    out = out or default_out(target)
    name = result_name(section, dtype)
    run = RunDir(out)
    with run.lock(), log_file(out / LOG):
        players = resolve_models(target, wanted, out)
        stages = {player.title: _stage(run, f"{player.name}/{name}", section, player, dtype) for player in players}
        found = Results.of(stages, out)
        write_json(out / f"{name}.json", found.scores)
    return found


def result_name(section: BenchmarksSection, dtype: str | None) -> str:
    """The name of the results' folder: the tasks, and options that are not at their defaults, so that a quick run replaces no long one."""
    parts = {"limit-{}": section.limit, "seed-{}": None if section.seed == DEFAULT_SEED else section.seed, "{}": dtype}
    named = [form.format(value) for form, value in parts.items() if value is not None]
    return "-".join([slug([*section.suites, *section.tasks]), *named, *(["chat-template"] if section.chat_template else [])])


def _stage(run: RunDir, name: str, section: BenchmarksSection, player: EvaluatedPlayer, dtype: str | None) -> StageRecord:
    train = player.recipe.train
    compute_dtype = DTYPES[dtype] if dtype else COMPUTE_DTYPES[train.number_format]
    template = player.chat.template if section.chat_template else None
    model = HarnessModel(player.folder, compute_dtype, template, train.four_bit)
    inputs = {**benchmark_inputs(section), "model": player.hash, "dtype": str(compute_dtype), "chat": template}
    log.info(f"benchmarks: {player.title}")
    return remade_stage(run, name, inputs, lambda stage: run_benchmarks(stage, section, model))


def print_evaluated(found: Results, console: Console) -> None:
    """Print the scores of all benchmarks and the folder that holds them."""
    print_benchmarks(list(starmap(TableRow, found.scores.items())), next(iter(found.facts.values())), console)
    console.print(Text(f"Scores, samples and settings: {found.folder}"))
