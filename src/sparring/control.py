"""The control: the start of the game trained further on the human replies, at the cost of all self-play iterations together."""

from __future__ import annotations

from sparring.config import OptimSection, Recipe, SftSection
from sparring.console import log
from sparring.policy.player import Policy
from sparring.rundir import RunDir
from sparring.stage_names import CONTROL, CONTROL_TRAIN, iteration_stage
from sparring.stages import Stages, fingerprinted
from sparring.training.plan import steps_plan

DEFAULT_LR = 1e-5
ONCE = (("generate", "sampled_tokens", 1), ("score", "scored_tokens", 1), ("score-start", "scored_tokens", 1))


def continued_sft(stages: Stages, start: Policy, played: int) -> Policy | None:
    """Train and evaluate the control for `played` iterations; None when the recipe wants none or there is no cost to match."""
    if stages.recipe.baseline is None:
        return None
    if played == 0:
        log.info(f"{CONTROL}: no iteration was played, so there is no cost to match; left out")
        return None
    player = train_control(stages, start, played)
    return stages.results(CONTROL, player, start, round_index=played + 1, derived=True)


def measure_control(stages: Stages, start: Policy, played: int) -> None:
    """What its weights are needed for after that."""
    stages.measure(CONTROL, train_control(stages, start, played), start, round_index=played + 1, derived=True)


def train_control(stages: Stages, start: Policy, played: int) -> Policy:
    """Its training alone, with as many floating-point operations as the `played` iterations."""
    recipe, examples = stages.recipe, stages.train_examples
    assert recipe.baseline is not None
    settings = control_settings(recipe)
    tokens = sum(len(example.prompt_ids) + len(example.reply_ids) - 1 for example in examples) / len(examples)
    batch_size = min(settings.batch_size, len(examples))
    cost = forward_tokens(stages.run, played, recipe.train.passes)
    steps = max(1, round(cost / settings.passes / tokens / batch_size))
    epochs = steps * batch_size / len(examples)
    log.info(f"{recipe.baseline.kind}: {steps} steps cost as many floating-point operations as the {played} iterations")
    plan = steps_plan(settings, len(examples), lr=settings.lr, steps=steps, epochs=epochs, seed=stages.order_seed(played))
    inputs = {"sft": fingerprinted(settings), "steps": steps, "iterations": played}
    return stages.sft_stage(CONTROL_TRAIN, start, plan, settings, inputs, derived=True)


def control_settings(recipe: Recipe) -> SftSection:
    """The SFT stage's settings, or train's where there is none, with the recipe's own lr and batch size on top."""
    section, sft, train = recipe.baseline, recipe.sft, recipe.train
    shared = OptimSection.model_fields.keys() - {"optimizer"}
    inherited = sft or SftSection(**{name: getattr(train, name) for name in shared}, lr=DEFAULT_LR)
    changes = {"lr": section.lr or inherited.lr, "batch_size": section.batch_size or inherited.batch_size, "horizon_epochs": None}
    return inherited.model_copy(update=changes)


def forward_tokens(run: RunDir, played: int, passes: int) -> float:
    """Cost of the iterations in tokens times forward passes, without padding: sampling and scoring count once, training `passes` times."""
    cost = 0.0
    for t in range(played):
        for name, fact, each in (*ONCE, ("train", "trained_tokens", passes)):
            stage = run.finished(iteration_stage(t, name))
            cost += each * stage.facts[fact] if stage else 0  # not every objective needs every stage
    return cost
