"""The controls of a game: continued SFT, rejection-sampling fine-tuning (RFT, arXiv 2308.01825) and DPO (dpo.py), from the same start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import ControlSection, OptimSection, Recipe, TrainSection, at_iteration, control_batch_size, control_lr, sft_settings
from sparring.console import counted, log
from sparring.cost import cost_of, iterations_cost
from sparring.data.records import Contest
from sparring.dpo import check_pairs, train_dpo
from sparring.policy.player import Player
from sparring.stage_names import iteration_stage
from sparring.stages.context import Common, RunContext
from sparring.stages.grade import candidates_at
from sparring.stages.results import evaluate
from sparring.stages.train import fit_model, sft_stage
from sparring.targets import TARGETS
from sparring.targets.select import rules_of
from sparring.targets.window import select_window
from sparring.training.plan import order_seed, steps_plan
from sparring.training.tasks import WinnersTask


def train_rft(context: RunContext, section: ControlSection, start: Player, played: int, forward_tokens: int) -> Player:
    """Train the start by maximum likelihood on the human replies and on those of its own replies, iteration 0's, that the checker passed.

    forward_tokens: the budget if the recipe gives no epochs; the sampling of those replies is part of it.
    """
    name, recipe = f"{section.folder}/train", context.recipe
    winners = _winners(context)
    if sum(len(one.winners) for one in winners) == len(context.train_examples):
        log.warning(f"{section.title}: its winners are the human replies alone, so it learns what continued SFT does")
    settings = recipe.train.model_copy(update={"batch_size": control_batch_size(recipe, section), "horizon_epochs": None})
    task, sampled = WinnersTask(winners), cost_of(context.run, recipe, [iteration_stage(0, "generate")]).forward_tokens
    tokens = [task.branches(index).tokens("tree") for index in range(len(task))]
    steps = _steps(section, settings, tokens, max(0, forward_tokens - sampled), played, " and the sampling of its replies")
    train = context.with_budget(settings.model_copy(update={"lr": control_lr(recipe, section), "epochs": None}))
    common = context.common(name)
    work = partial(_train_on_winners, common, played, train=train, steps=steps, winners=winners, start=start, seed=recipe.seed)
    return Player.of_stage(context.run_stage(name, work))


def _train_on_winners(
    common: Common, played: int, stage: Path, *, train: TrainSection, steps: int, winners: Sequence[Contest], start: Player, seed: int
) -> dict[str, Any]:
    """played: the number of iterations of the game. It seeds the order of batches but is not part of the fingerprint: finished runs were
    made without it."""
    plan = steps_plan(train, len(winners), lr=at_iteration(train.lr, 0), steps=steps, seed=order_seed(seed, played))
    return fit_model(common, stage, start, WinnersTask(winners), plan, train)


def _winners(context: RunContext) -> list[Contest]:
    """The winners by the recipe's rules, but with the verified target whatever the recipe's is, and always with the human reply, which
    takes no place of a generated one if it takes none in the game."""
    rules = rules_of(context.recipe)
    rules = replace(rules, human="mix", max_winners=rules.max_winners + (rules.human != "mix"))
    prompts = {example.row_id: example.prompt_ids for example in context.prompt_rows}
    candidates = {0: candidates_at(context, 0)}
    return select_window(prompts, candidates, TARGETS["verified"], rules, uses_margins=False, uses_likelihood=True).contests


FAIR_FACTOR = 3.0  # ratio of two learning rates from which on they alone may explain a difference between arms


@dataclass(frozen=True)
class GameResult:
    """A finished game: its start, the player of every iteration, and the best iteration."""

    start: Player
    players: Sequence[Player]
    best: int | None


def check_controls(context: RunContext) -> None:
    """Raise UserError for labelled pairs that cannot be read, before the game starts; log where a comparison may be unfair."""
    for section in context.recipe.controls:
        if (unlike := unlike_lr(context.recipe, section)) is not None:
            log.info(f"{section.title}: {unlike}")
        if (unused := unused_prompts(context.recipe, section)) is not None:
            log.info(f"{section.title}: {unused}")
        if section.pairs is not None:
            check_pairs(context, section)


def unlike_lr(recipe: Recipe, section: ControlSection) -> str | None:
    """Warning for a control whose learning rate is far from the game's first one; None if it is near, or part of a search."""
    own, game = control_lr(recipe, section), at_iteration(recipe.train.lr, 0)
    several = {control_lr(recipe, other) for other in recipe.controls if other.kind == section.kind}
    if len(several) > 1 or max(own, game) <= FAIR_FACTOR * min(own, game) * (1 + 1e-9):
        return None
    remedy = f"controls.search='{{lr: [{own:g}, {game:g}]}}' tries both"
    return f"its learning rate is {own:g} and the game's {game:g}: a difference between the two may be due to that alone; {remedy}"


def unused_prompts(recipe: Recipe, section: ControlSection) -> str | None:
    """Warning for RFT in a majority game whose `data.prompts` have no answers; None otherwise."""
    if section.kind != "rft" or recipe.data.prompts is None or recipe.grades_prompts:
        return None
    return "data.prompts have no answers, so it cannot learn from its replies to them as the game does; data.prompts.answer names a column"


def play_controls(context: RunContext, game: GameResult) -> dict[str, Player]:
    """Train and evaluate every control of the recipe. Returns folder -> model; one without a cost to match or a start is left out."""
    played = [section for section in context.recipe.controls if _can_be_trained(section, game)]
    return {
        section.folder: evaluate(context, train_control(context, section, game), reference(section, game), len(game.players) + 1)
        for section in played
    }


def train_control(context: RunContext, section: ControlSection, game: GameResult) -> Player:
    """Train one control; if the recipe gives no epochs, with as many floating-point operations as all iterations together."""
    cost = iterations_cost(context.run, context.recipe, len(game.players)).forward_tokens
    if section.kind == "dpo":
        return train_dpo(context, section, reference(section, game), len(game.players), cost)
    if section.kind == "rft":
        return train_rft(context, section, game.start, len(game.players), cost)
    return _continue_sft(context, section, game, cost)


def reference(section: ControlSection, game: GameResult) -> Player:
    """The model that the control starts from, which is also the reference of its loss."""
    if section.start == "start":
        return game.start
    assert game.best is not None
    return game.players[game.best]


def from_iteration(section: ControlSection, best: int | None) -> int | None:
    """The iteration that it starts from, None for the start of the game."""
    return best if section.start == "best" else None


def _can_be_trained(section: ControlSection, game: GameResult) -> bool:
    if game.players or (section.epochs is not None and section.start == "start"):
        return True
    log.info(f"{section.title}: no iteration was played, so there is no cost to match; left out")
    return False


def _continue_sft(context: RunContext, section: ControlSection, game: GameResult, forward_tokens: int) -> Player:
    settings, played = sft_settings(context.recipe, section), len(game.players)
    tokens = [len(example.prompt_ids) + len(example.reply_ids) - 1 for example in context.train_examples]
    steps = _steps(section, settings, tokens, forward_tokens, played)
    return sft_stage(context, f"{section.folder}/train", game.start, settings, steps, played)


def _steps(section: ControlSection, settings: OptimSection, tokens: Sequence[int], forward_tokens: int, played: int, more: str = "") -> int:
    """Steps for the control's epochs, or that cost `forward_tokens`. tokens: of every item; more: what else is in the cost."""
    items = len(tokens)
    batch_size = min(settings.batch_size, items)
    if section.epochs is not None:
        return max(1, round(section.epochs * items / batch_size))
    steps = max(1, round(forward_tokens / settings.forward_passes / (sum(tokens) / items) / batch_size))
    same = f"as many floating-point operations as {counted(played, 'iteration')} of the game"
    log.info(f"{section.title}: {counted(steps, 'step')}{more} cost {same}")
    return steps
