"""The cost of stages, counted in one way: for controls at equal cost and for quality against compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparring.config import Recipe
from sparring.rundir import RunDir
from sparring.stage_names import OF_CONTROL, OF_ITERATION, OF_PLAYER, is_used, iteration_stage

MEASURED = {stage.part for stage in OF_PLAYER}  # not part of a player's cost
# a token of training through all weights: forward 1, backward 2
FULL_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """`tokens` were computed, padding left out; `forward_tokens` counts each as often as it passed the weights: once in sampling and
    scoring, 3 times in training (2 times where the weights are frozen). `wall_seconds` are those of all attempts at every stage."""

    tokens: int = 0
    forward_tokens: int = 0
    wall_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def flops(self, weights: float) -> float:
        """Floating-point operations of a model with `weights` in the matrices that a token passes; attention is not counted."""
        return 2 * weights * self.forward_tokens


def iterations_cost(run: RunDir, recipe: Recipe, played: int) -> Cost:
    """Cost of the first `played` iterations, without the stages that evaluate their players."""
    return cost_of(run, recipe, [iteration_stage(t, stage.part) for t in range(played) for stage in OF_ITERATION])


def control_cost(run: RunDir, recipe: Recipe, control: str) -> Cost:
    """Cost of a control's own training, without evaluation; for RFT also of sampling iteration 0's replies, which it is trained on."""
    is_rft = any(section.folder == control and section.kind == "rft" for section in recipe.controls)
    sampled = [iteration_stage(0, "generate")] if is_rft else []
    return cost_of(run, recipe, [*sampled, *(f"{control}/{stage.part}" for stage in OF_CONTROL)])


def cost_of(run: RunDir, recipe: Recipe, stages: Iterable[str]) -> Cost:
    """Cost of those of the stages that the recipe uses; a stage that is not finished counts 0."""
    own = [name for name in stages if is_used(name, recipe) and name.rpartition("/")[2] not in MEASURED]
    return sum((_stage_cost(run, name) for name in own), Cost())


def _stage_cost(run: RunDir, name: str) -> Cost:
    record = run.finished(name)
    if record is None:
        return Cost()
    facts = record.facts
    once = facts.get("sampled_tokens", 0) + facts.get("scored_tokens", 0)
    trained = facts.get("trained_tokens", 0)
    return Cost(once + trained, once + facts.get("passes", FULL_PASSES) * trained, facts["wall_seconds"])
