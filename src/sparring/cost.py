"""What stages have cost, counted one way: for controls at equal cost and for quality beside compute."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparring.rundir import RunDir
from sparring.stage_names import OF_ITERATION, OF_PLAYER, iteration_stage

# a token of training through all weights: forward 1, backward 2
FULL_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """`tokens` were computed, padding left out; `forward_tokens` counts each as often as it passed the weights: once in sampling and
    scoring, 3 times in training (2 times where the weights are frozen). `wall_seconds` are those of every stage's last attempt."""

    tokens: int = 0
    forward_tokens: int = 0
    wall_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def flops(self, weights: float) -> float:
        """Floating-point operations of a model with `weights` in the matrices that a token passes; attention is not counted."""
        return 2 * weights * self.forward_tokens


def cost_of(run: RunDir, stages: Iterable[str]) -> Cost:
    """Of these stages together; one that was never begun cost nothing."""
    return sum((_stage_cost(run, name) for name in stages), Cost())


def iterations_cost(run: RunDir, played: int) -> Cost:
    """Of the first `played` iterations, without what is measured of their players."""
    parts = [part for part in OF_ITERATION if part not in OF_PLAYER]
    return cost_of(run, [iteration_stage(t, part) for t in range(played) for part in parts])


def _stage_cost(run: RunDir, name: str) -> Cost:
    record = run.finished(name)
    if record is None:
        return Cost()
    facts = record.facts
    once = facts.get("sampled_tokens", 0) + facts.get("scored_tokens", 0)
    trained = facts.get("trained_tokens", 0)
    return Cost(once + trained, once + facts.get("passes", FULL_PASSES) * trained, facts["wall_seconds"])
