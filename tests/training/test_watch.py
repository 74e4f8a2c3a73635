"""The warning that human replies lose log-prob while the margin grows (spin.md 4.8)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from sparring.training.fit import HumanLogpWatch


@pytest.fixture
def see(caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    def watched(margins: list[float], rewards: list[float]) -> tuple[list[str], dict[str, Any]]:
        caplog.clear()
        watch = HumanLogpWatch("iteration 2: training")
        for step, (margin, reward) in enumerate(zip(margins, rewards, strict=True)):
            watch.add({"step": step, "margin": margin, "reward_real": reward})
        watch.end()
        return [record.message for record in caplog.records if record.levelno >= logging.WARNING], watch.facts()

    return watched


RISING = [0.1 * step for step in range(60)]
FALLING = [-0.05 * step for step in range(60)]


def test_it_warns_once_and_says_when(see) -> None:
    warnings, facts = see(RISING, FALLING)
    (line,) = warnings
    assert "iteration 2: training" in line and "lose log-prob" in line and "objective.beta" in line
    assert facts == {"human_logp_warning_at_step": 7}, "four steps against four"
    assert "mean reward -0.275 over the last 4 steps" in line


@pytest.mark.parametrize(
    ("margins", "rewards"),
    [
        (RISING, [0.01] * 60),  # the human replies hold
        ([0.5] * 60, FALLING),  # the margin does not grow
        ([-0.1 * step for step in range(60)], FALLING),  # the margin falls
        ([-9 + 0.1 * step for step in range(60)], FALLING),  # it grows, but is still below 0
        (RISING[:3], FALLING[:3]),  # too few steps to tell
        (RISING[:4], [0.0, 0.0, -0.02, 0.01]),  # the reward of a small batch, a little off 0 by chance
        (RISING, [0.3 * (-1) ** step - 0.01 for step in range(60)]),  # as many up as down
    ],
)
def test_it_is_silent_otherwise(see, margins: list[float], rewards: list[float]) -> None:
    assert see(margins, rewards) == ([], {})


def test_a_late_fall_is_seen(see) -> None:
    _, facts = see(RISING, [0.5] * 30 + [-0.5] * 30)
    assert facts["human_logp_warning_at_step"] == 37, "once the mean of the last ten is below 0 by two standard errors"


def test_a_phase_of_few_steps_is_judged_at_its_end(see) -> None:
    """What recipes/tiny.yaml shows with train.lr=0.05: four steps, and the model is gone."""
    margins, rewards = [0.0, -18.3, 587.6, 340.5], [0.0, -59.1, -306.8, -210.5]
    warnings, facts = see(margins, rewards)
    assert facts == {"human_logp_warning_at_step": 3} and "mean reward -258.650 over the last 2 steps" in warnings[0]


def test_a_fall_that_ten_steps_cannot_tell_is_seen_at_the_end(see) -> None:
    """The rewards scatter, one up for two down."""
    rewards = [1.0 if step % 3 == 0 else -1.0 for step in range(120)]
    _, facts = see([0.1 * step for step in range(120)], rewards)
    assert facts == {"human_logp_warning_at_step": 119}


def test_sft_has_no_margin_to_watch() -> None:
    watch = HumanLogpWatch("sft")
    for step in range(50):
        watch.add({"step": step, "loss": 1.0, "real_logp": -step})
    watch.end()
    assert watch.facts() == {}
