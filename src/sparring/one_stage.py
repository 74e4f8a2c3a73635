"""What every rank of a launched stage runs: `sparring stage RECIPE STAGE`, under accelerate launch, torchrun or srun."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.console import RUN_LOG, be_silent, log_file, set_up_logging
from sparring.control import GameResult, measure_control, score_control, train_control
from sparring.errors import UserError
from sparring.evaluation.stop import Scores, best_iteration, stop_reason
from sparring.game_place import place_in
from sparring.launch import QUIET, REPORTS
from sparring.policy.compute import memory_error
from sparring.policy.player import Policy
from sparring.policy.ranks import AgreedError, from_main, is_main, rank, require_equal
from sparring.policy.strategies import join
from sparring.progress import read_progress, written_to
from sparring.rundir import RunDir, read_json
from sparring.stage_names import SCORES, SFT, START, evaluate_stage, iteration_name, iteration_stage, measure_stage
from sparring.stages.context import RunContext
from sparring.stages.generate import generate, window_at
from sparring.stages.results import measure
from sparring.stages.score import score, score_start
from sparring.stages.sft import sft
from sparring.stages.train import train

OF_GAME = "sft, iterations/NNN/generate, score, score-start, train and measure, start/measure"
SHARED = f"{OF_GAME}, continued-sft/train and measure, dpo/score too"
OF_ITERATION = re.compile(r"iterations/(\d{3})/(generate|score|score-start|train|measure)")


def run_stage(recipe: Recipe, name: str) -> None:
    """Compute stage `name` of the recipe's run as one of its ranks. What comes before it must be finished; rank 0 commits.

    Raises UserError; where the ranks were started by `sparring run` it is left to that process to report it.
    """
    set_up_logging(quiet=QUIET in os.environ)
    with _reported():
        if recipe.seeds is not None:
            raise AgreedError("a stage belongs to the game of one seed", where="seeds", remedy="seeds=null seed=N run_dir=RUN/seed-N")
        accelerator = join(recipe.launcher.strategy, recipe.launcher.cpu)
        if not is_main():
            be_silent()
        require_equal(_compared(recipe, name), "was started with another recipe", "give all ranks the same recipe, overrides and stage")
        directory = RunDir(Path(recipe.run_dir))
        with _writer(recipe, directory):
            _compute(RunContext(recipe, directory, target=name), name)
        accelerator.end_training()  # leaves the group of ranks in good order


def _compute(context: RunContext, name: str) -> None:
    found = OF_ITERATION.fullmatch(name)
    if found is not None:
        _compute_of_iteration(context, int(found[1]), found[2])
    elif name == SFT:
        sft(context)
    elif name == measure_stage(START):
        measure(context, START, sft(context), None, sampling_round=0)
    elif not _compute_of_control(context, name):
        raise AgreedError(f"{name!r} is no stage that ranks compute together", where="STAGE", remedy=f"there are {SHARED}")


def _compute_of_control(context: RunContext, name: str) -> bool:
    """False where `name` is no such stage."""
    folder, _, part = name.partition("/")
    section = next((section for section in context.recipe.controls if section.folder == folder), None)
    parts = {"train": train_control, "measure": measure_control}
    if section is not None and section.kind == "dpo":
        parts["score"] = score_control
    if section is None or part not in parts:
        return False
    parts[part](context, section, _played(context))
    return True


def _compute_of_iteration(context: RunContext, t: int, part: str) -> None:
    opponent = _player(context, t - 1)
    if part == "generate":
        generate(context, opponent, t)
    elif part == "measure":
        measure(context, iteration_name(t), _player(context, t), opponent, sampling_round=t + 1)
    elif part == "score-start":
        score_start(context, window_at(context, t), t)
    else:
        work = {"score": score, "train": train}[part]
        work(context, opponent, window_at(context, t), t)


def _player(context: RunContext, t: int) -> Policy:
    """Who came out of iteration t with its measurements, as far as there are any; the start of the game for -1."""
    if t < 0:
        return _measured(context, START, sft(context))
    record = context.run.finished(iteration_stage(t, "train"))
    if record is None:
        what = f"{iteration_stage(t, 'train')} is not finished"
        raise AgreedError(what, where=str(context.run.root), remedy="`sparring run` plays up to it")
    return _measured(context, iteration_name(t), Policy.of_stage(record))


def _measured(context: RunContext, owner: str, player: Policy) -> Policy:
    return player.with_results(context.run.root / measure_stage(owner), context.run.root / evaluate_stage(owner))


def _played(context: RunContext) -> GameResult:
    """The game before its controls: up to the stop rule, as the game itself judges it."""
    start = _scores(context, START)
    iterations: list[Scores] = []
    while context.run.finished(evaluate_stage(iteration_name(len(iterations)))):
        iterations.append(_scores(context, iteration_name(len(iterations))))
        if stop_reason(context.recipe, start, iterations):
            break
    best = best_iteration(iterations, context.recipe.metric) if iterations else None
    return GameResult(_player(context, -1), [_player(context, t) for t in range(len(iterations))], best)


def _scores(context: RunContext, owner: str) -> Scores:
    return read_json(context.run.root / evaluate_stage(owner) / SCORES)


def _compared(recipe: Recipe, name: str) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    values["launcher"].pop("machine_rank")
    return {"stage": name, **values}


@contextlib.contextmanager
def _writer(recipe: Recipe, directory: RunDir) -> Iterator[None]:
    """Rank 0 holds the run directory and its log; started by hand it is the one that works here, and not by `sparring run`."""
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            if REPORTS not in os.environ:
                stack.enter_context(directory.lock())
            stack.enter_context(directory.ranks_lock())
            stack.enter_context(log_file(directory.root / RUN_LOG))
            typed = read_progress(directory.root).get("command")
            stack.enter_context(written_to(directory.root, typed, place_in(directory.root, recipe)))

        from_main(enter)
        yield


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Leave word of an error for the process that waits for the ranks, where there is one."""
    try:
        yield
    except Exception as error:
        user = memory_error(error) or error
        folder = os.environ.get(REPORTS)
        if folder is None:
            _raise_alone(user, error)
        if isinstance(user, UserError):
            what = user.what if isinstance(user, AgreedError) else f"rank {rank()}: {user.what}"
            report = {"what": what, "where": user.where, "remedy": user.remedy}
        else:
            report = {"fault": f"{type(error).__name__}: {error}"}
        Path(folder, f"{rank():05d}.json").write_text(json.dumps({"rank": rank(), **report}), encoding="utf-8")
        if not isinstance(user, AgreedError):
            raise  # the launcher ends the other ranks, which wait for this one


def _raise_alone(user: BaseException, error: BaseException) -> None:
    if isinstance(user, AgreedError) and not is_main():
        raise SystemExit(2) from None  # rank 0 tells it
    raise user from (None if user is error else error)
