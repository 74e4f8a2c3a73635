"""Which items a step takes and at which learning rate: values by hand, and every item once per epoch."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.config import TrainSection
from sparring.training.plan import TrainPlan, make_plan, steps_plan


def plan(items: int = 100, lr: float = 1.0, epochs: float = 1.0, seed: int = 0, **options: object) -> TrainPlan:
    return make_plan(TrainSection(batch_size=10, **options), items, lr=lr, epochs=epochs, seed=seed, name="iteration 0")


def rates(found: TrainPlan) -> list[float]:
    return [found.learning_rate(step) for step in range(found.steps)]


# --- the order


@given(items=st.integers(1, 60), batch_size=st.integers(1, 70), epochs=st.sampled_from([1, 2, 3]), seed=st.integers(0, 2**32 - 1))
def test_every_item_once_per_epoch_and_every_batch_full(items: int, batch_size: int, epochs: int, seed: int) -> None:
    found = make_plan(TrainSection(batch_size=batch_size), items, lr=1.0, epochs=float(epochs), seed=seed, name="test")
    assert found.batch_size == min(batch_size, items)
    batches = [found.batch(step) for step in range(found.steps)]
    assert all(len(batch) == found.batch_size for batch in batches)
    order = [item for batch in batches for item in batch]
    assert 0 <= len(order) - epochs * items < found.batch_size, "no item is missed; the next permutation fills the last batch"
    for start in range(0, len(order) - items + 1, items):
        assert sorted(order[start : start + items]) == list(range(items))
    used_in_first_pass = {item for batch in batches[: found.first_pass_steps()] for item in batch}
    assert used_in_first_pass == set(order), "the opponent pass covers all that training uses"


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = plan(epochs=2.0)
    order = [first.batch(step) for step in range(20)]
    assert order[:10] != order[10:], "a new order every epoch"
    assert [first.batch(step) for step in reversed(range(20))] == order[::-1], "nothing is drawn in passing"
    assert [plan(epochs=5.0, lr=0.1).batch(step) for step in range(20)] == order
    assert plan(seed=1).batch(0) != order[0]
    assert sorted(order[0]) != order[0]


def test_steps_by_hand() -> None:
    assert plan(items=100).steps == 10
    assert plan(items=100, epochs=0.25).steps == 3
    assert plan(items=95).epochs == 100 / 95, "a whole step where half of one was asked for"
    assert plan(items=104).steps == 11 and plan(items=110).steps == 11
    assert plan(items=100, epochs=0.01).steps == 1, "never none"
    assert plan(items=700, warmup=0.1).warmup_steps == 7, "0.1 * 70 is a little more than 7 in floating point"


def test_a_batch_larger_than_the_items_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sparring")
    assert plan(items=10).batch_size == 10 and not caplog.messages
    found = plan(items=7, epochs=3.0)
    assert (found.batch_size, found.steps) == (7, 3)
    (line,) = caplog.messages
    assert "iteration 0" in line and "batch_size 10 exceeds the number of items, 7" in line


# --- the learning rate


def test_linear_by_hand() -> None:
    """Ten steps, no warm-up: from the peak down by a tenth a step; the last step still does something."""
    assert rates(plan(warmup=0.0)) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_warm_up_by_hand() -> None:
    """Four of twenty steps rise in fifths, the fifth has the peak, and the rest fall over sixteen steps."""
    expected = [0.2, 0.4, 0.6, 0.8, *(1 - step / 16 for step in range(16))]
    assert rates(plan(epochs=2.0, warmup=0.2)) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    expected = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates(plan(warmup=0.0, schedule="cosine")) == pytest.approx(expected)
    assert rates(plan(warmup=0.0, schedule="cosine"))[5] == pytest.approx(0.5)


def test_constant_by_hand() -> None:
    assert rates(plan(warmup=0.2, schedule="constant")) == pytest.approx([1 / 3, 2 / 3, *[1.0] * 8])


def test_a_horizon_after_the_stop() -> None:
    """The published scripts schedule six epochs and stop after two: the rate falls from 1 to 2/3, and the warm-up is a tenth of six."""
    found = plan(epochs=2.0, warmup=0.0, horizon_epochs=6.0)
    assert (found.steps, found.horizon_steps) == (20, 60)
    assert rates(found) == pytest.approx([1 - step / 60 for step in range(20)])
    warm = plan(epochs=2.0, warmup=0.1, horizon_epochs=6.0)
    assert warm.warmup_steps == 6
    assert rates(warm)[5:8] == pytest.approx([6 / 7, 1.0, 1 - 1 / 54])
    cosine = plan(epochs=2.0, warmup=0.0, horizon_epochs=6.0, schedule="cosine")
    assert cosine.learning_rate(15) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@given(
    items=st.integers(1, 500),
    epochs=st.floats(0.1, 5),
    longer=st.floats(1, 4),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_every_rate_is_above_0_and_at_most_the_peak(items: int, epochs: float, longer: float, warmup: float, schedule: str) -> None:
    section = TrainSection(batch_size=10, epochs=epochs, horizon_epochs=epochs * longer, warmup=warmup, schedule=schedule)
    found = make_plan(section, items, lr=5e-7, epochs=epochs, seed=0, name="test")
    assert all(0 < rate <= 5e-7 for rate in rates(found)), "a step without effect is waste"


def test_a_plan_of_given_steps() -> None:
    found = steps_plan(TrainSection(batch_size=10, warmup=0.0), 40, lr=1.0, steps=6, seed=0)
    assert (found.steps, found.horizon_steps, found.batch_size, found.epochs) == (6, 6, 10, 1.5)


@pytest.mark.parametrize("epochs", [1e-300, 5e-324, 1e-9, 0.3])
@pytest.mark.parametrize("horizon", [None, 6.0, 1e38])
def test_next_to_no_epochs_are_one_step(epochs: float, horizon: float | None) -> None:
    settings = TrainSection(batch_size=64, horizon_epochs=horizon, epochs=0.1)
    found = make_plan(settings, 64, lr=1e-3, epochs=epochs, seed=0, name="train")
    assert found.steps == 1 and found.batch(0) and 0 < found.learning_rate(0) <= 1e-3
