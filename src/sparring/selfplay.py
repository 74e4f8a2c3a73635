"""The game: Algorithm 1 of the paper (arXiv 2401.01335), one stage per line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparring import interrupts
from sparring.config import Recipe, convert_layout, to_yaml
from sparring.console import RUN_LOG, log, log_file
from sparring.control import GameResult, check_controls, from_iteration, play_controls
from sparring.evaluation.stop import PlayerScores, best_iteration, is_better, stop_reason
from sparring.headroom import measure_headroom
from sparring.launch import follow, open_calls, with_config
from sparring.opponent.engines import with_engine
from sparring.policy.compute import make_accelerator, memory_error
from sparring.policy.machine import with_precision
from sparring.policy.player import Player
from sparring.progress import written_to
from sparring.report.health import log_new_symptoms
from sparring.report.outcome import REPORT
from sparring.report.summary import SUMMARY, publish, read_summary
from sparring.rundir import RECIPE, RunDir, read_json, write_text
from sparring.stage_names import place_in, seed_folder, stages_from
from sparring.stages.check import check
from sparring.stages.context import RunContext
from sparring.stages.generate import generate, nothing_to_learn, warn_of_collapse, window_at
from sparring.stages.grade import grade, graded_vote_shares
from sparring.stages.regrade import regrade
from sparring.stages.results import evaluate, scores_of
from sparring.stages.train import score, sft, train
from sparring.tracking.sending import tracked

UPDATE_SECONDS = 60.0  # the age of a report from which it is rendered again


def run(recipe: Recipe, restart_from: str | None = None, command: str | None = None) -> dict[str, Any]:
    """Play or resume the game of one seed and return its summary. `game.run` calls it for each seed of the recipe.

    restart_from: a stage to recompute, with all stages after it; command: the command that `sparring status` shows to resume the run.
    """
    directory = RunDir(Path(recipe.run_dir))
    if recipe.launcher.machine_rank > 0:
        follow(recipe, directory.root)
        return read_json(directory.root / SUMMARY)
    progress_file = written_to(directory.root, command, place_in(directory.root, recipe))
    with directory.lock(), log_file(directory.root / RUN_LOG), directory.attempt(), progress_file:
        try:
            convert_layout(directory.root)
            games = directory.root, *_other_seeds(directory.root)
            kind = "cpu" if with_config(recipe.launcher).cpu else make_accelerator().device.type
            recipe = with_precision(with_engine(recipe, *games), kind, *games)
            if restart_from is not None:
                controls = [section.folder for section in recipe.controls]
                directory.redo(stages_from(restart_from, directory.root, recipe.iterations, controls))
            if not (directory.root / RECIPE).exists():
                write_text(directory.root / RECIPE, to_yaml(recipe))
            with open_calls(recipe, directory.root) as calls, tracked(recipe, directory):
                return play(RunContext(recipe, directory, calls=calls))
        except Exception as error:
            log.debug("the run ended here", exc_info=True)  # the traceback goes to run.log alone
            if interrupts.were_received():
                raise KeyboardInterrupt from error
            if (problem := memory_error(error)) is not None:
                raise problem from error
            raise
        finally:
            if directory.redone:
                log.warning("--restart-from has deleted nothing: the run ended before it got to the stage; give the option again")


def _other_seeds(root: Path) -> list[Path]:
    """The games of the same recipe with other seeds, where `root` is one of them."""
    return sorted(root.parent.glob(seed_folder("*"))) if root.match(seed_folder("*")) else []


def play(context: RunContext, finished: Sequence[Player] = ()) -> dict[str, Any]:
    """Algorithm 1: the opponent is the previous player; it samples, and the player learns to distinguish its replies from human ones.

    finished: on ranks, the players of the first iterations, which are not read again; without ranks all stages are checked for changes.
    """
    recipe = context.recipe
    context.on_redo = partial(_redo, context)
    if not context.is_rank:
        check(context)
        check_controls(context)
        regrade(context)
    start = evaluate(context, sft(context), None, sampling_round=0)
    measure_headroom(context, start)
    players = _of_this_game(context, scores_of(start), finished)
    iterations = [scores_of(one) for one in players]
    context.on_redo = partial(_redo, context, start=scores_of(start), iterations=iterations)
    player = players[-1] if players else start
    reason = stop_reason(recipe, scores_of(start), iterations, graded_vote_shares(context, len(iterations)))
    while reason is None:
        t, opponent = len(iterations), player
        generate(context, opponent, t)
        grade(context, t)
        window = window_at(context, t)
        if (reason := nothing_to_learn(context, window, t)) is not None:
            break
        scored = score(context, opponent, window, t)
        player = train(context, opponent, scored, t)
        player = evaluate(context, player, opponent, sampling_round=t + 1)
        players.append(player)
        iterations.append(scores_of(player))
        publish_iteration(context, scores_of(start), iterations)
        reason = stop_reason(recipe, scores_of(start), iterations, graded_vote_shares(context, len(iterations)))
    log.info(f"the game ends - {reason}")
    best = best_iteration(iterations, recipe.metric) if iterations else None
    controls = play_controls(context, GameResult(start, players, best))
    scores = {name: scores_of(player) for name, player in controls.items()}
    if context.run.redone:  # this game no longer has any of them
        context.on_redo()
    return _publish(context, scores_of(start), iterations, scores, reason)


def _of_this_game(context: RunContext, start: PlayerScores, finished: Sequence[Player]) -> list[Player]:
    """The finished players up to the stop rule: a recipe with more iterations may have played on before."""
    scores = [scores_of(one) for one in finished]

    def ends(count: int) -> bool:
        return stop_reason(context.recipe, start, scores[:count], graded_vote_shares(context, count)) is not None

    return list(finished[: next(filter(ends, range(len(scores))), len(scores))])


def publish_iteration(context: RunContext, start: PlayerScores, iterations: Sequence[PlayerScores]) -> None:
    """Publish the results of an iteration, unless the summary has later ones: resuming must not roll the summary back."""
    if context.is_rank:
        return
    published = read_summary(context.run.root)
    if published is None or len(iterations) > len(published["iterations"]):
        _publish(context, start, iterations, {}, None)
    warn_of_collapse(context, start, iterations)


def _redo(context: RunContext, start: PlayerScores | None = None, iterations: Sequence[PlayerScores] = ()) -> None:
    """Delete the stages to redo, and before them the results that describe them; then publish the iterations that are kept."""
    for derived in (SUMMARY, REPORT, "best"):
        (context.run.root / derived).unlink(missing_ok=True)
    for name in context.run.delete_redone():
        log.info(f"removed stage {name} (--restart-from)")
    if start is not None and iterations:
        _publish(context, start, iterations, {}, None)


def _publish(
    context: RunContext,
    start: PlayerScores,
    iterations: Sequence[PlayerScores],
    controls: Mapping[str, PlayerScores],
    reason: str | None,
) -> dict[str, Any]:
    """Write the summary, and the recipe that produced it: a recipe that is refused before this point leaves the old one."""
    if context.is_rank:  # the game ends before the stage that it was started for, which `one_stage` reports
        return {}
    recipe, root = context.recipe, context.run.root
    write_text(root / RECIPE, to_yaml(recipe))
    metric = recipe.metric
    t = best_iteration(iterations, metric) if iterations else None
    best = None
    if t is not None:
        ours, first = iterations[t][metric], start[metric]
        values = {"value": ours["value"], "start_value": first["value"], "beats_start": is_better(ours, first)}
        best = {"iteration": t, "metric": metric, **values}
    shown = [
        {
            "name": section.title,
            "stage": section.folder,
            "from_iteration": from_iteration(section, t),
            "scores": controls[section.folder],
        }
        for section in recipe.controls
        if section.folder in controls
    ]
    before = read_summary(root)
    summary = publish(root, recipe, "SFT" if recipe.sft else "start", start, iterations, shown, best, reason)
    log_new_symptoms(before, summary, recipe)
    if recipe.report:
        update_report(root, is_over=reason is not None)
    return summary


def update_report(root: Path, is_over: bool) -> None:
    """Render the report of a running game. Errors, also of the plotting library, are logged and do not end the game.

    While the game runs, a page younger than a minute is kept: rendering takes seconds, which would slow short iterations down.
    """
    page = root / REPORT
    try:
        if is_over or not page.exists() or time.time() - page.stat().st_mtime >= UPDATE_SECONDS:
            from sparring.report.run_page import write_report  # imported late: it loads Matplotlib

            write_report(root)
    except Exception as error:
        log.warning(f"{REPORT} was not rendered ({type(error).__name__}; the traceback is in run.log): `sparring report {root}` retries")
        log.debug("the report ended here", exc_info=True)
