"""Run a recipe: one game, or one game per seed with statistics over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring import selfplay
from sparring.comparison.seeds import over_seeds_summary
from sparring.config import Recipe, load_recipe, to_yaml
from sparring.console import log
from sparring.errors import UserError
from sparring.report.summary import SUMMARY
from sparring.rundir import CALLS_TOKEN, MANIFEST, RECIPE, RunDir, read_json, write_json, write_text
from sparring.stage_names import seed_folder


def run(
    recipe: str | Path | dict[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    restart_from: str | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Play a whole game or resume one: stages that are finished with equal inputs are skipped. With `seeds`, one game per seed.

    recipe: a YAML file, a dict or a Recipe; overrides: `section.key=value`; restart_from: a stage to recompute, with all stages after it;
    command: the command that `sparring status` shows to resume the run.
    Returns the summary (also in summary.json): start, iterations with their scores, best, stop_reason, cost per stage; for several
    seeds the mean and spread of every player's scores and the tests over seeds. Raises UserError for bad input.
    """
    checked = load_recipe(recipe, list(overrides))
    root = Path(checked.run_dir)
    if checked.seeds is None:
        if any(root.glob(f"{seed_folder('*')}/{RECIPE}")):
            raise _taken("the games of several seeds", root)
        return selfplay.run(checked, restart_from, command)
    if (root / MANIFEST).exists():
        raise _taken("a game of one seed", root)
    return _run_all(checked, checked.seeds, root, restart_from, command)


def _run_all(recipe: Recipe, seeds: Sequence[int], root: Path, restart_from: str | None, command: str | None) -> dict[str, Any]:
    """Play the games one after the other, each in its own run directory; finished stages are skipped."""
    games = [recipe.model_copy(update={"run_dir": str(root / seed_folder(seed)), "seed": seed, "seeds": None}) for seed in seeds]
    if recipe.launcher.machine_rank > 0:  # its ranks join one game after the other; machine 0 owns the folder and writes the summary
        for game in games:
            selfplay.run(game)
        return read_json(root / SUMMARY) if (root / SUMMARY).exists() else {}
    with RunDir(root).lock():
        (root / SUMMARY).unlink(missing_ok=True)  # of other seeds, or of shorter games
        for game in games:  # else a machine that waits for a later game could read that it is over
            (Path(game.run_dir) / CALLS_TOKEN).unlink(missing_ok=True)
        write_text(root / RECIPE, to_yaml(recipe))
        for number, game in enumerate(games, 1):
            log.info(f"seed {game.seed}: game {number} of {len(games)}")
            selfplay.run(game, restart_from, command)
        summary = over_seeds_summary(root)
        write_json(root / SUMMARY, summary)
    return summary


def _taken(what: str, root: Path) -> UserError:
    return UserError(f"this run directory holds {what}", where=f"run_dir ({root})", remedy="choose another, or delete this one")
