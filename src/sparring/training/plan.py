"""The items and the learning rate of every optimizer step: functions of the settings, so there is no state to save or restore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparring.config import OptimSection, TrainSection, at_iteration
from sparring.console import log

# Upper bound of the steps of a schedule; keeps a horizon over almost no epochs finite
LONGEST_HORIZON = 2**53


@dataclass(frozen=True)
class TrainPlan:
    """Steps, order and schedule of one training stage over `items` items."""

    items: int
    steps: int
    horizon_steps: int
    warmup_steps: int
    batch_size: int
    lr: float
    schedule: str
    seed: int

    def batch(self, step: int) -> list[int]:
        """The `batch_size` items of a step (from 0): the next ones of an endless sequence of permutations, one per epoch.

        So every step is full, no item is missed, and the last batch of an epoch is filled from the next permutation.
        """
        places = (divmod(step * self.batch_size + place, self.items) for place in range(self.batch_size))
        return [int(_permutation(self.seed, epoch, self.items)[place]) for epoch, place in places]

    @property
    def epochs(self) -> float:
        """Passes over the items: the epochs of the settings, rounded up to whole steps."""
        return self.steps * self.batch_size / self.items

    def first_pass_steps(self) -> int:
        """Steps until every item that the plan uses has been used once."""
        return min(self.steps, math.ceil(self.items / self.batch_size))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up (not from 0: a first step without effect would be wasted), then decay to 0 at the horizon."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        share = (step - self.warmup_steps) / max(1, self.horizon_steps - self.warmup_steps)
        if self.schedule == "linear":
            return self.lr * max(0.0, 1 - share)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        return self.lr


def iteration_plan(settings: TrainSection, items: int, seed: int, t: int) -> TrainPlan:
    """The plan of a self-play iteration over its duels; `seed` is the recipe's."""
    lr, epochs = (at_iteration(value, t) for value in (settings.lr, settings.epochs))
    return make_plan(settings, items, lr=lr, epochs=epochs, seed=order_seed(seed, t), name=f"iteration {t}")


def order_seed(seed: int, t: int) -> int:
    """The seed of the order of batches, different in every iteration; `seed` is the recipe's."""
    return seed * 1000 + t + 1


def make_plan(settings: OptimSection, items: int, *, lr: float, epochs: float, seed: int, name: str) -> TrainPlan:
    """The plan for `epochs` passes over `items`. Logs a batch size that has to be smaller than the recipe's."""
    batch_size = min(settings.batch_size, items)
    if batch_size < settings.batch_size:
        log.info(f"{name}: batch_size {settings.batch_size} exceeds the number of items, {items}; every step uses all of them")
    steps = max(1, _whole(epochs * items / batch_size))
    horizon = round(min(steps * (settings.horizon_epochs or epochs) / epochs, LONGEST_HORIZON))
    return steps_plan(settings, items, lr=lr, steps=steps, seed=seed, horizon=horizon)


def steps_plan(settings: OptimSection, items: int, *, lr: float, steps: int, seed: int, horizon: int = 0) -> TrainPlan:
    """The plan for exactly `steps` steps; the schedule ends with them, or at `horizon`, if that is later."""
    horizon = max(steps, horizon)
    warmup = _whole(settings.warmup * horizon) if settings.warmup else 0
    return TrainPlan(items, steps, horizon, warmup, min(settings.batch_size, items), lr, settings.schedule, seed)


def _whole(steps: float) -> int:
    """Steps rounded up, so that an epoch misses no item; float errors do not count, so 0.1 * 70 is 7 steps and not 8."""
    return math.ceil(round(steps, 6))


@lru_cache(maxsize=4)  # a batch touches two epochs at most
def _permutation(seed: int, epoch: int, items: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(items)
