"""The game: Algorithm 1 of the paper (arXiv 2401.01335), one stage a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparring.config import Recipe, load_recipe, to_yaml
from sparring.console import log, log_file
from sparring.evaluation.stop import stop_reason
from sparring.report.summary import publish
from sparring.rundir import Manifest, RunDir, write_text
from sparring.stage_names import stages_from
from sparring.stages import Stages


def run(recipe: str | Path | dict[str, Any] | Recipe, overrides: Sequence[str] = (), restart_from: str | None = None) -> dict[str, Any]:
    """Play a whole game, or go on with one: stages that are finished with equal inputs are skipped.

    recipe: a YAML file, a dict or a Recipe; overrides: `section.key=value`; restart_from: a stage to redo on purpose, with all after it.
    Returns the summary (also in summary.json): baseline, iterations with their scores, best, stop_reason, cost per stage.
    Raises UserError for bad input.
    """
    checked = load_recipe(recipe, list(overrides))
    directory = RunDir(Path(checked.run_dir))
    with directory.lock(), log_file(directory.root / "run.log"), Manifest(directory).attempt():
        try:
            if restart_from:
                redo(checked, directory, restart_from)
            write_text(directory.root / "recipe.yaml", to_yaml(checked))
            return play(checked, directory)
        except Exception:
            log.debug("the run ended here", exc_info=True)  # the traceback goes to run.log alone
            raise


def play(recipe: Recipe, directory: RunDir) -> dict[str, Any]:
    """Algorithm 1: the opponent is the previous player; it samples, the player learns to tell its replies from the human ones."""
    stages = Stages(recipe, directory)
    stages.check_context()
    start = player = stages.evaluate_baseline(stages.sft())
    iterations: list[Any] = []
    reason = None
    while reason is None:
        t, opponent = len(iterations), player
        stages.generate(opponent, t)
        window = stages.window(t)
        if not window.duels:
            reason = "indistinguishable: every reply of the opponent equals the human one"
            break
        player = stages.train(opponent, window, t)
        player = stages.evaluate(player, opponent, t)
        iterations.append(stages.scores(player))
        publish(directory.root, recipe, stages.scores(start), iterations, None)
        reason = stop_reason(recipe, stages.scores(start), iterations)
    log.info(f"the game ends - {reason}")
    stages.continued_sft(start, len(iterations))
    return publish(directory.root, recipe, stages.scores(start), iterations, reason)


def redo(recipe: Recipe, directory: RunDir, name: str) -> None:
    """Delete the stage `name` and every later one, the last first, so that a kill in between leaves a run that can go on."""
    for stage in reversed(stages_from(name, directory.root, recipe.iterations)):
        if directory.remove_stage(stage):
            log.info(f"removed stage {stage}: it will be done again")
