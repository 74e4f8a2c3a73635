"""Equation 4.7 by hand, by property and by equivalence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparring.objectives import OBJECTIVES
from sparring.objectives.shared import DuelLogps, SpinLoss, accuracy, mean_over_replies
from sparring.objectives.spin import LOSSES, LossName, Spin, spin_loss

ALL_LOSSES = list(LOSSES)
AT_ZERO = {"logistic": math.log(2), "hinge": 1.0, "exponential": 1.0, "correlation": 1.0}
SLOPE_AT_ZERO = {"logistic": -0.5, "hinge": -1.0, "exponential": -1.0, "correlation": -1.0}
margins = st.floats(min_value=-50, max_value=50)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ell(loss: LossName, t: float) -> float:
    return LOSSES[loss](f64(t)).item()


def duel(real: float, generated: list[float], *, player: bool = True) -> DuelLogps:
    """One duel's log-probs as leaves that collect a gradient."""
    return DuelLogps(f64(real).requires_grad_(player), f64(*generated)[None, :].requires_grad_(player))


def random_duels(seed: int, d: int = 5, k: int = 3) -> tuple[DuelLogps, DuelLogps]:
    """Player and opponent log-probs [d], [d, k] of the size of a ten-token reply's."""
    rng = torch.Generator().manual_seed(seed)
    draws = [-20 + 5 * torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((d,), (d, k), (d,), (d, k))]
    return DuelLogps(draws[0].requires_grad_(), draws[1].requires_grad_()), DuelLogps(draws[2], draws[3])


def all_true(logps: DuelLogps) -> Tensor:
    return torch.ones_like(logps.generated_DK, dtype=torch.bool)


# --- the four functions ell


@pytest.mark.parametrize(
    ("loss", "t", "value"),
    [
        ("logistic", -1.0, 1.3132616875182228),
        ("logistic", 2.0, 0.1269280110429725),
        ("hinge", -1.0, 2.0),
        ("hinge", 0.25, 0.75),
        ("hinge", 3.0, 0.0),
        ("exponential", -1.0, math.e),
        ("exponential", 2.0, 0.1353352832366127),
        ("correlation", -1.0, 2.0),
        ("correlation", 3.0, -2.0),
    ],
)
def test_ell_by_hand(loss: LossName, t: float, value: float) -> None:
    assert ell(loss, t) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_ell_at_zero_and_its_slope(loss: LossName) -> None:
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = LOSSES[loss](t)
    value.backward()
    assert value.item() == AT_ZERO[loss]
    assert t.grad.item() == SLOPE_AT_ZERO[loss]


@pytest.mark.parametrize("loss", ALL_LOSSES)
@given(a=margins, b=margins, w=st.floats(min_value=0, max_value=1))
def test_ell_is_decreasing_and_convex(loss: LossName, a: float, b: float, w: float) -> None:
    at_a, at_b = ell(loss, a), ell(loss, b)
    rounding = 1e-12 * max(1.0, abs(at_a), abs(at_b))
    assert (at_a - at_b) * (a - b) <= rounding
    assert ell(loss, w * a + (1 - w) * b) <= w * at_a + (1 - w) * at_b + rounding


@given(t=st.floats(min_value=-1e4, max_value=1e4))
def test_logistic_reflects(t: float) -> None:
    assert ell("logistic", t) - ell("logistic", -t) == pytest.approx(-t, rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("t", [-30.0, -20.5, 19.0, 25.0, 700.0])
def test_logistic_is_exact_far_from_zero(t: float) -> None:
    exact = math.log1p(math.exp(-t)) if t > 0 else -t + math.log1p(math.exp(t))
    assert ell("logistic", t) == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("margin", "value", "slope"), [(1e4, 0.0, 0.0), (-1e4, 1e4, -1.0)])
def test_logistic_is_stable_at_extreme_margins(dtype: torch.dtype, margin: float, value: float, slope: float) -> None:
    real_D = torch.tensor([margin], dtype=dtype, requires_grad=True)
    zero_DK = torch.zeros(1, 1, dtype=dtype)
    out = spin_loss(DuelLogps(real_D, zero_DK), DuelLogps(torch.zeros_like(real_D), zero_DK), zero_DK == 0, beta=1.0)
    out.loss_D.sum().backward()
    assert (out.loss_D.item(), real_D.grad.item()) == (value, slope)


def test_losses_are_the_ones_of_the_recipe() -> None:
    assert list(OBJECTIVES) == [*ALL_LOSSES, "space", "t-spin", "alpha-spin", "sft", "path/to/file.py:function"]
    assert list(Spin.names) == ALL_LOSSES


# --- equation 4.7


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_spin_loss_by_hand(loss: LossName) -> None:
    player = DuelLogps(f64(-10.0, -7.0), torch.tensor([[-12.0, -9.0], [-8.0, 0.0]], dtype=torch.float64))
    opponent = DuelLogps(f64(-11.0, -6.0), torch.tensor([[-11.5, -12.0], [-8.5, 0.0]], dtype=torch.float64))
    out = spin_loss(player, opponent, torch.tensor([[True, True], [True, False]]), beta=0.5, loss=loss)
    # First duel: r(y) = 1, r(y') = -0.5 and 3, margins 1.5 and -2. Second: r(y) = -1, r(y') = 0.5, margin -1.5, one reply only.
    assert out.margin_DK.tolist() == [[1.5, -2.0], [-1.5, 0.0]]
    assert out.margin_D.tolist() == [-0.25, -1.5]
    assert out.accuracy_D.tolist() == [0.5, 0.0]
    assert out.reward_real_D.tolist() == [0.5, -0.5]
    assert out.reward_generated_DK.tolist() == [[-0.25, 1.5], [0.25, 0.0]]
    assert out.loss_D[0].item() == pytest.approx((ell(loss, 0.75) + ell(loss, -1.0)) / 2, rel=1e-15)
    assert out.loss_D[1].item() == pytest.approx(ell(loss, -0.75), rel=1e-15)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_first_step_has_margin_zero_and_loss_ell_of_zero(loss: LossName, beta: float) -> None:
    player, _ = random_duels(0)
    out = spin_loss(player, player, all_true(player), beta=beta, loss=loss)
    assert out.margin_DK.count_nonzero() == 0 and out.margin_D.count_nonzero() == 0
    assert (out.accuracy_D == 0.5).all()
    torch.testing.assert_close(out.loss_D, torch.full_like(out.loss_D, AT_ZERO[loss]), rtol=1e-15, atol=0)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_the_players_gradient_is_beta_times_the_slope(loss: LossName) -> None:
    player = duel(-3.0, [-4.0, -5.0])
    opponent = duel(-3.0, [-4.0, -5.0], player=False)
    spin_loss(player, opponent, all_true(player), beta=0.5, loss=loss).loss_D.sum().backward()
    assert player.real_D.grad.tolist() == [0.5 * SLOPE_AT_ZERO[loss]]
    assert player.generated_DK.grad.tolist() == [[-0.25 * SLOPE_AT_ZERO[loss]] * 2]


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_an_identical_pair_has_exactly_zero_gradient(loss: LossName) -> None:
    weights = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    logp_D = (weights * f64(0.3, -2.0, 1.7, 0.9)).sum()[None]
    opponent_D = f64(-7.1)
    mask_DK = torch.tensor([[True]])
    out = spin_loss(DuelLogps(logp_D, logp_D[:, None]), DuelLogps(opponent_D, opponent_D[:, None]), mask_DK, beta=1.0, loss=loss)
    out.loss_D.sum().backward()
    assert weights.grad.tolist() == [0.0] * 4
    assert out.loss_D.item() == AT_ZERO[loss]


def test_swapping_the_sides_negates_the_margin() -> None:
    player, opponent = random_duels(2, k=1)
    swapped = [DuelLogps(side.generated_DK[:, 0], side.real_D[:, None]) for side in (player, opponent)]
    mask_DK = all_true(player)
    one, other = spin_loss(player, opponent, mask_DK, beta=0.3), spin_loss(*swapped, mask_DK, beta=0.3)
    assert torch.equal(one.margin_DK, -other.margin_DK)
    torch.testing.assert_close(one.loss_D - other.loss_D, -0.3 * one.margin_D, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(one.accuracy_D, 1 - other.accuracy_D, rtol=0, atol=0)


def test_rewards_are_scaled_and_margins_are_not() -> None:
    player, opponent = random_duels(3)
    out = spin_loss(player, opponent, all_true(player), beta=0.1)
    torch.testing.assert_close(out.reward_real_D[:, None] - out.reward_generated_DK, 0.1 * out.margin_DK, rtol=1e-13, atol=1e-13)


def test_the_opponent_is_constant_and_only_the_loss_carries_a_gradient() -> None:
    player, leaves = random_duels(4)
    opponent = DuelLogps(leaves.real_D.requires_grad_(), leaves.generated_DK.requires_grad_())
    out = spin_loss(player, opponent, all_true(player), beta=1.0)
    out.loss_D.sum().backward()
    assert opponent.real_D.grad is None and opponent.generated_DK.grad is None
    assert {name for name in SpinLoss._fields if getattr(out, name).requires_grad} == {"loss_D"}


# --- several replies per prompt


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_k_replies_are_the_mean_of_k_single_replies(loss: LossName) -> None:
    player, opponent = random_duels(5, k=4)
    together = spin_loss(player, opponent, all_true(player), beta=0.7, loss=loss)
    columns = [[DuelLogps(side.real_D, side.generated_DK[:, [j]]) for side in (player, opponent)] for j in range(4)]
    alone = [spin_loss(*pair, all_true(pair[0]), beta=0.7, loss=loss) for pair in columns]
    for name in ("loss_D", "margin_D", "accuracy_D"):
        expected = torch.stack([getattr(one, name) for one in alone]).mean(dim=0)
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-14, atol=1e-14)


def _loss_and_gradient(player: DuelLogps, *args: Tensor | DuelLogps, loss: LossName) -> tuple[SpinLoss, tuple[Tensor, Tensor]]:
    out = spin_loss(player, *args, beta=0.7, loss=loss)
    return out, torch.autograd.grad(out.loss_D.sum(), (player.real_D, player.generated_DK))


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_identical_replies_count_as_explicit_columns_would(loss: LossName) -> None:
    player, opponent = random_duels(6, d=3, k=2)
    identical_D = torch.tensor([0, 1, 3])
    counted, gradient = _loss_and_gradient(player, opponent, all_true(player), identical_D, loss=loss)

    explicit = [DuelLogps(s.real_D, torch.cat([s.generated_DK, s.real_D[:, None].expand(3, 3)], dim=1)) for s in (player, opponent)]
    mask_DK = torch.cat([all_true(player), torch.arange(3)[None, :] < identical_D[:, None]], dim=1)
    computed = spin_loss(*explicit, mask_DK, beta=0.7, loss=loss)
    expected = torch.autograd.grad(computed.loss_D.sum(), (player.real_D, player.generated_DK))
    for name in ("loss_D", "margin_D", "accuracy_D"):
        torch.testing.assert_close(getattr(counted, name), getattr(computed, name), rtol=1e-14, atol=1e-14)
    for one, other in zip(gradient, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
def test_empty_columns_may_hold_anything(loss: LossName, junk: float) -> None:
    player, opponent = random_duels(7, d=3, k=2)
    padded = [DuelLogps(s.real_D, torch.cat([s.generated_DK, torch.full((3, 1), junk).double()], dim=1)) for s in (player, opponent)]
    padded[0].generated_DK.retain_grad()
    mask_DK = torch.tensor([[True, True, False]] * 3)
    out = spin_loss(*padded, mask_DK, beta=0.7, loss=loss)
    out.loss_D.sum().backward()
    expected, (real_gradient, generated_gradient) = _loss_and_gradient(player, opponent, mask_DK[:, :2], loss=loss)
    assert torch.equal(out.loss_D, expected.loss_D) and torch.equal(out.margin_D, expected.margin_D)
    assert torch.equal(player.real_D.grad, real_gradient)
    assert torch.equal(padded[0].generated_DK.grad[:, :2], generated_gradient)
    for column_of_zeros in (padded[0].generated_DK.grad, out.margin_DK, out.reward_generated_DK):
        assert column_of_zeros[:, 2].tolist() == [0.0] * 3


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_a_duel_of_identical_replies_only(loss: LossName) -> None:
    player, opponent = random_duels(8, d=2, k=0)
    out, (real_gradient, _) = _loss_and_gradient(player, opponent, all_true(player), torch.tensor([1, 4]), loss=loss)
    assert out.loss_D.tolist() == [AT_ZERO[loss]] * 2
    assert (out.margin_D.tolist(), out.accuracy_D.tolist(), real_gradient.tolist()) == ([0.0] * 2, [0.5] * 2, [0.0] * 2)


def test_a_duel_without_any_reply_is_nan_and_not_zero() -> None:
    player, opponent = random_duels(9, d=2, k=1)
    out = spin_loss(player, opponent, torch.tensor([[True], [False]]), beta=1.0)
    assert out.loss_D.isnan().tolist() == [False, True]


def test_accuracy_by_hand() -> None:
    margin_DK = f64(3.0, -1e-9, 0.0, 5.0)[None, :]
    mask_DK = torch.tensor([[True, True, True, False]])
    assert accuracy(margin_DK, mask_DK).tolist() == [0.5]
    assert accuracy(margin_DK, torch.tensor([[True, False, True, False]])).tolist() == [0.75]
    assert accuracy(margin_DK, torch.tensor([[True, False, False, True]]), torch.tensor([2])).tolist() == [0.75]


def test_mean_over_replies_by_hand() -> None:
    value_DK = torch.tensor([[1.0, 2.0], [5.0, float("nan")]])
    mask_DK = torch.tensor([[True, True], [True, False]])
    assert mean_over_replies(value_DK, mask_DK, value_of_identical=9.0).tolist() == [1.5, 5.0]
    assert mean_over_replies(value_DK, mask_DK, torch.tensor([1, 0]), value_of_identical=9.0).tolist() == [4.0, 5.0]


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_gradcheck(loss: LossName) -> None:
    player, opponent = random_duels(10, d=3, k=2)
    mask_DK = torch.tensor([[True, True], [True, False], [False, False]])
    identical_D = torch.tensor([0, 2, 1])

    def loss_D(real_D: Tensor, generated_DK: Tensor) -> Tensor:
        return spin_loss(DuelLogps(real_D, generated_DK), opponent, mask_DK, identical_D, beta=0.2, loss=loss).loss_D

    assert torch.autograd.gradcheck(loss_D, (player.real_D, player.generated_DK))


def test_misshapen_log_probs_are_refused() -> None:
    with pytest.raises(AssertionError):
        DuelLogps(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(AssertionError):
        DuelLogps(torch.zeros(3), torch.zeros(3))
