"""The warning that human replies lose log-prob while the margin grows (spin.md 4.8)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from sparring.training.watch import HumanLogpWatch


@pytest.fixture
def see(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], dict[str, Any]]]:
    monkeypatch.setattr(logging.getLogger("sparring"), "propagate", True)

    def watched(margins: list[float], rewards: list[float]) -> tuple[list[str], dict[str, Any]]:
        caplog.clear()
        watch = HumanLogpWatch("iteration 2: training")
        for step, (margin, reward) in enumerate(zip(margins, rewards, strict=True)):
            watch.see({"step": step, "margin": margin, "reward_real": reward})
        return [record.message for record in caplog.records if record.levelno >= logging.WARNING], watch.facts()

    return watched


RISING = [0.1 * step for step in range(60)]
FALLING = [-0.05 * step for step in range(60)]


def test_it_warns_once_and_says_when(see) -> None:
    warnings, facts = see(RISING, FALLING)
    (line,) = warnings
    assert "iteration 2: training" in line and "lose log-prob" in line and "objective.beta" in line
    assert facts == {"human_logp_warning_at_step": 19}, "two windows of ten steps are full"
    assert "-0.725" in line, "mean reward of steps 10 to 19"


@pytest.mark.parametrize(
    ("margins", "rewards"),
    [
        (RISING, [0.01] * 60),  # the human replies hold
        ([0.5] * 60, FALLING),  # the margin does not grow
        ([-0.1 * step for step in range(60)], FALLING),  # the margin falls
        ([-9 + 0.1 * step for step in range(60)], FALLING),  # it grows, but is still below 0
        (RISING[:19], FALLING[:19]),  # too few steps to tell
    ],
)
def test_it_is_silent_otherwise(see, margins: list[float], rewards: list[float]) -> None:
    assert see(margins, rewards) == ([], {})


def test_a_late_fall_is_seen(see) -> None:
    _, facts = see(RISING, [0.5] * 30 + [-0.5] * 30)
    assert facts["human_logp_warning_at_step"] == 35, "once more than half of the last ten are negative"


def test_sft_has_no_margin_to_watch() -> None:
    watch = HumanLogpWatch("sft")
    for step in range(50):
        watch.see({"step": step, "loss": 1.0, "real_logp": -step})
    assert watch.facts() == {}
