"""Rejection-sampling fine-tuning (arXiv 2308.01825) as a control: the start trained on human replies and on its own that passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import ControlSection, TrainSection, at_iteration, control_batch_size, control_lr
from sparring.console import counted, log
from sparring.cost import sampling_cost
from sparring.data.records import Contest
from sparring.policy.player import Player
from sparring.stage_names import control_stage, iteration_stage
from sparring.stages.context import Common, RunContext
from sparring.stages.fitting import fit_model
from sparring.stages.grade import candidates_at
from sparring.targets import TARGETS
from sparring.targets.select import rules_of
from sparring.targets.window import select_window
from sparring.training.contests import WinnersTask
from sparring.training.plan import order_seed, steps_plan


def train_rft(context: RunContext, section: ControlSection, start: Player, played: int, forward_tokens: int) -> Player:
    """Likelihood of the human replies and of the replies of iteration 0 that passed, which the start has given.

    forward_tokens: what it may cost where the recipe names no epochs, the sampling of those replies included.
    """
    name, recipe = control_stage(section.folder, "train"), context.recipe
    winners = _winners(context)
    settings = recipe.train.model_copy(update={"batch_size": control_batch_size(recipe, section), "horizon_epochs": None})
    batch_size = min(settings.batch_size, len(winners))
    if section.epochs is None:
        task = WinnersTask(winners)
        tokens = sum(task.branches(index).tokens("tree") for index in range(len(task))) / len(task)
        left = max(0, forward_tokens - sampling_cost(context.run, recipe, iteration_stage(0, "generate")))
        steps = max(1, round(left / settings.forward_passes / tokens / batch_size))
        cost = f"with the sampling, cost as many floating-point operations as {counted(played, 'iteration')} of the game"
        log.info(f"{section.title}: {counted(steps, 'step')}, {cost}")
    else:
        steps = max(1, round(section.epochs * len(winners) / batch_size))
    train = context.with_budget(settings.model_copy(update={"lr": control_lr(recipe, section), "epochs": None}))
    work = partial(_train, context.common(name), played, train=train, steps=steps, winners=winners, start=start, seed=recipe.seed)
    return Player.of_stage(context.stages.run_stage(name, work))


def _train(
    common: Common, played: int, stage: Path, *, train: TrainSection, steps: int, winners: Sequence[Contest], start: Player, seed: int
) -> dict[str, Any]:
    """played: iterations of the game, which give the order of batches but are no input: finished runs were made without."""
    plan = steps_plan(train, len(winners), lr=at_iteration(train.lr, 0), steps=steps, seed=order_seed(seed, played))
    return fit_model(common, stage, start, WinnersTask(winners), plan, train)


def _winners(context: RunContext) -> list[Contest]:
    """By the recipe's rules, but verified whatever its target is, and with the human reply always among the winners."""
    rules = replace(rules_of(context.recipe), human="mix")
    prompts = {example.row_id: example.prompt_ids for example in context.played_examples}
    window = select_window(prompts, {0: candidates_at(context, 0)}, TARGETS["verified"], rules, uses_margins=False, uses_likelihood=True)
    return [duel for duel in window.duels if isinstance(duel, Contest)]
