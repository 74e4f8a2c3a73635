"""What every rank of a launched stage runs: `sparring stage RECIPE STAGE`, under accelerate launch, torchrun or srun."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sparring.config import Recipe, require_layout
from sparring.console import RUN_LOG, be_silent, log, log_file, set_up_logging
from sparring.errors import UserError
from sparring.launch import QUIET, REPORTS, with_config
from sparring.opponent.engines import with_engine
from sparring.policy.compute import memory_error
from sparring.policy.machine import fast_precision, with_precision
from sparring.policy.player import Player
from sparring.policy.ranks import AgreedError, from_main, is_main, join, rank, require_equal
from sparring.progress import read_progress, written_to
from sparring.rundir import RunDir, write_json
from sparring.selfplay import play
from sparring.stage_names import OF_CONTROL, OF_ITERATION, OF_OWNER, iteration_name, iteration_of, place_in, stage_of, stages_of_game
from sparring.stages.context import RunContext
from sparring.stages.run_stage import TargetReached


def run_stage(recipe: Recipe, name: str) -> None:
    """Compute stage `name` of the recipe's run as one of its ranks, which play the game up to it. All earlier stages must be finished;
    rank 0 commits.

    Raises UserError. If `sparring run` has started the ranks, it reports the error.
    """
    set_up_logging(quiet=QUIET in os.environ)
    with _reported():
        if recipe.seeds is not None:
            raise AgreedError("a stage belongs to the game of one seed", where="seeds", remedy="seeds=null seed=N run_dir=RUN/seed-N")
        launcher = with_config(recipe.launcher)
        accelerator = join(launcher.strategy, launcher.cpu)
        if not is_main():
            be_silent()
        root = Path(recipe.run_dir)
        recipe, kind = with_engine(recipe, root), accelerator.device.type
        if REPORTS not in os.environ:  # else `sparring run` has chosen the number format, with a warning if it is slow
            recipe = with_precision(recipe, kind, root, fast=from_main(partial(fast_precision, kind)))  # of rank 0's device, on all ranks
        require_equal(_compared(recipe, name), "was started with another recipe", "give all ranks the same recipe, overrides and stage")
        directory = RunDir(Path(recipe.run_dir))
        with _writer(recipe, directory):
            _compute(recipe, directory, name)
        accelerator.end_training()  # destroys the process group


def _compute(recipe: Recipe, directory: RunDir, name: str) -> None:
    require_layout(directory.root)
    stage = stage_of(name)
    if stage is not None and stage.on_ranks is not None and name in stages_of_game(directory.root, recipe):
        context = RunContext(recipe, directory, target=name)
        if REPORTS in os.environ:
            log.setLevel(logging.WARNING)  # until the stage begins: `sparring run` has logged the earlier ones
        try:
            play(context, _finished_players(context, iteration_of(name)))
        except TargetReached:
            return
    raise AgreedError(f"{name!r} is not a stage of this game that runs on ranks", where="STAGE", remedy=f"there are {_names()}")


def _finished_players(context: RunContext, end: int | None) -> list[Player]:
    """The players of the iterations before `end`, as far as they are evaluated; the stages behind them need not be read again."""
    players: list[Player] = []
    while len(players) != end:
        owner = iteration_name(len(players))
        trained, evaluated = (context.run.finished(f"{owner}/{part}") for part in ("train", "evaluate"))
        if trained is None or evaluated is None:
            break
        benchmarks = context.run.finished(f"{owner}/benchmarks")
        measured = context.run.root / f"{owner}/measure"
        players.append(Player.of_stage(trained).with_results(measured, evaluated.path, None if benchmarks is None else benchmarks.path))
    return players


def _names() -> str:
    owners = {**OF_OWNER, "iterations/NNN": OF_ITERATION, "CONTROL": OF_CONTROL}
    shown = [f"{owner}/{stage.part}".lstrip("/") for owner, stages in owners.items() for stage in stages if stage.on_ranks is not None]
    return ", ".join(shown)


def _compared(recipe: Recipe, name: str) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    values["launcher"].pop("machine_rank")
    return {"stage": name, **values}


@contextlib.contextmanager
def _writer(recipe: Recipe, directory: RunDir) -> Iterator[None]:
    """Rank 0 holds the ranks' lock and writes the log; ranks that were not started by `sparring run` hold its lock as well."""
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
    """Write an error to a file for the process that started the ranks, if there is one."""
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
        write_json(Path(folder, f"{rank():05d}.json"), {"rank": rank(), **report})  # atomic: the launcher may end this rank at any moment
        if not isinstance(user, AgreedError):
            raise  # the launcher ends the other ranks, which wait for this one


def _raise_alone(user: BaseException, error: BaseException) -> NoReturn:
    if isinstance(user, AgreedError) and not is_main():
        raise SystemExit(2) from None  # rank 0 reports it
    raise user from (None if user is error else error)
