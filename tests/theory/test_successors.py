"""SPACE, T-SPIN, alpha-SPIN and the anchor: by hand, at the start, by equivalence, and exactly on the policies of test_tabular.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from test_objectives import ALL_LOSSES, all_true, ell, f64, random_duels
from test_tabular import P_DATA, P_START, best_player, centred, enumerate_duels, gradient, kl, newton, random_policies, theorem_5_4
from torch import Tensor

from sparring.objectives.alpha_spin import mixed_logp
from sparring.objectives.likelihood import nll_anchor
from sparring.objectives.shared import DuelLogps
from sparring.objectives.space import space_loss
from sparring.objectives.spin import LOSSES, LossName, spin_loss
from sparring.objectives.t_spin import TripletLoss, triplet_loss

TRUE = torch.tensor([[True]])
MUS = [0.5, 1.0, 2.0, 7.0]


def sigma(mu: float, z: float) -> float:
    """sigma_mu as SPACE defines it."""
    return 1 / (1 + mu * math.exp(-z))


def column(value: float) -> Tensor:
    return f64(value)[:, None]


# --- the anchor


def test_the_anchor_by_hand() -> None:
    real_D = f64(-6.0, -3.0).requires_grad_()
    found_D = nll_anchor(real_D, torch.tensor([3, 2]))
    found_D.sum().backward()
    assert found_D.tolist() == [2.0, 1.5]
    assert real_D.grad.tolist() == [-1 / 3, -1 / 2]


# --- SPACE


def test_space_by_hand() -> None:
    player = DuelLogps(f64(-10.0, -7.0), torch.tensor([[-12.0, -9.0], [-8.0, 0.0]], dtype=torch.float64))
    opponent = DuelLogps(f64(-11.0, -6.0), torch.tensor([[-11.5, -12.0], [-8.5, 0.0]], dtype=torch.float64))
    out = space_loss(player, opponent, torch.tensor([[True, True], [True, False]]), mu=2.0)
    # First duel: r(y) = 1, r(y') = -0.5 and 3. Second: r(y) = -1, r(y') = 0.5, one reply only.
    first = -math.log(sigma(2, 1)) - (math.log(sigma(0.5, 0.5)) + math.log(sigma(0.5, -3)))
    second = -math.log(sigma(2, -1)) - 2 * math.log(sigma(0.5, -0.5))
    assert out.loss_D.tolist() == pytest.approx([first, second], rel=1e-14)
    assert out.margin_DK.tolist() == [[1.5, -2.0], [-1.5, 0.0]] and out.margin_D.tolist() == [-0.25, -1.5]
    assert out.accuracy_D.tolist() == [0.5, 0.0]
    assert out.reward_real_D.tolist() == [1.0, -1.0] and out.reward_generated_DK.tolist() == [[-0.5, 3.0], [0.5, 0.0]]


@pytest.mark.parametrize("mu", MUS)
def test_space_is_the_cross_entropy_of_telling_one_human_reply_from_mu_of_the_opponents(mu: float) -> None:
    """Noise-contrastive estimation derived anew: classes with prior 1 and mu, densities p and q, the posterior by Bayes."""
    p, q, p_noise, q_noise = 0.03, 0.05, 0.2, 0.08  # p of the player, q of the opponent: of the human reply, then of the opponent's
    is_human, is_noise = p / (p + mu * q), mu * q_noise / (p_noise + mu * q_noise)
    player, opponent = DuelLogps(f64(p).log(), column(p_noise).log()), DuelLogps(f64(q).log(), column(q_noise).log())
    expected = -math.log(is_human) - mu * math.log(is_noise)
    assert space_loss(player, opponent, TRUE, mu=mu).loss_D.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("mu", MUS)
def test_value_and_gradient_of_space_at_the_start(mu: float) -> None:
    player, _ = random_duels(1, d=2, k=4)
    out = space_loss(player, player, all_true(player), mu=mu)
    real, generated = torch.autograd.grad(out.loss_D.sum(), (player.real_D, player.generated_DK))
    assert out.loss_D.tolist() == pytest.approx([math.log(1 + mu) + mu * math.log(1 + 1 / mu)] * 2, rel=1e-14)
    assert real.tolist() == pytest.approx([-mu / (1 + mu)] * 2, rel=1e-14)
    torch.testing.assert_close(generated, torch.full((2, 4), mu / (1 + mu) / 4, dtype=torch.float64), rtol=1e-14, atol=0)
    assert out.margin_DK.count_nonzero() == 0 and (out.accuracy_D == 0.5).all()


def test_space_keeps_the_human_reply_up_where_a_gap_does_not() -> None:
    """Both replies lost 30 nats: the gap is as it was, and SPIN has no more slope than at the start; SPACE pulls with all its weight."""
    player = DuelLogps(f64(-40.0).requires_grad_(), column(-41.0).requires_grad_())
    opponent = DuelLogps(f64(-10.0), column(-11.0))
    (of_spin,) = torch.autograd.grad(spin_loss(player, opponent, TRUE, beta=1.0).loss_D.sum(), player.real_D)
    (of_space,) = torch.autograd.grad(space_loss(player, opponent, TRUE, mu=1.0).loss_D.sum(), player.real_D)
    assert of_spin.item() == -0.5 and of_space.item() == pytest.approx(-1.0, abs=1e-12)


def test_an_identical_reply_of_space_has_a_gradient_of_its_own() -> None:
    """It holds the human reply where the opponent has it: no slope at the start, back to it from either side."""
    slopes = []
    for reward in (-2.0, 0.0, 2.0):
        logp_D = f64(-5.0 + reward).requires_grad_()
        out = space_loss(DuelLogps(logp_D, logp_D[:, None]), DuelLogps(f64(-5.0), column(-5.0)), TRUE, mu=3.0)
        out.loss_D.sum().backward()
        slopes.append(logp_D.grad.item())
    assert slopes[0] < 0 < slopes[2] and slopes[1] == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
def test_empty_columns_of_space_may_hold_anything(junk: float) -> None:
    player, opponent = random_duels(7, d=3, k=2)
    wide = [DuelLogps(s.real_D, torch.cat([s.generated_DK, torch.full((3, 1), junk).double()], dim=1)) for s in (player, opponent)]
    out = space_loss(*wide, torch.tensor([[True, True, False]] * 3), mu=2.0)
    gradients = torch.autograd.grad(out.loss_D.sum(), (player.real_D, player.generated_DK))
    narrow = space_loss(player, opponent, all_true(player), mu=2.0)
    expected = torch.autograd.grad(narrow.loss_D.sum(), (player.real_D, player.generated_DK))
    assert torch.equal(out.loss_D, narrow.loss_D) and torch.equal(out.margin_D, narrow.margin_D)
    assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))


def test_space_is_stable_at_extreme_rewards() -> None:
    zero = DuelLogps(torch.zeros(1), torch.zeros(1, 1))
    won = space_loss(DuelLogps(torch.tensor([1e4]), torch.tensor([[-1e4]])), zero, TRUE, mu=1.0)
    lost = space_loss(DuelLogps(torch.tensor([-1e4]), torch.tensor([[1e4]])), zero, TRUE, mu=1.0)
    assert (won.loss_D.item(), lost.loss_D.item()) == (0.0, 2e4)


def test_gradcheck_of_space() -> None:
    player, opponent = random_duels(10, d=3, k=2)
    mask_DK = torch.tensor([[True, True], [True, False], [False, True]])

    def loss_D(real_D: Tensor, generated_DK: Tensor) -> Tensor:
        return space_loss(DuelLogps(real_D, generated_DK), opponent, mask_DK, mu=1.5).loss_D

    assert torch.autograd.gradcheck(loss_D, (player.real_D, player.generated_DK))


# --- T-SPIN


class Triplets(NamedTuple):
    """Log-probs of human replies, of the opponent's and of the start's, under the player."""

    real_D: Tensor
    generated_DK: Tensor
    start_DK: Tensor


def t_spin(logps: Triplets, mask_DK: Tensor, **options: Any) -> TripletLoss:
    return triplet_loss(DuelLogps(logps.real_D, logps.generated_DK), logps.start_DK, mask_DK, **options)


def triplets(seed: int, d: int = 3, k: int = 2) -> Triplets:
    player, other = random_duels(seed, d, k)
    return Triplets(player.real_D, player.generated_DK, other.generated_DK.requires_grad_())


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_t_spin_by_hand(loss: LossName) -> None:
    player = Triplets(f64(-10.0), f64(-12.0, -9.0)[None, :], f64(-11.0, -9.5)[None, :])
    out = t_spin(player, torch.tensor([[True, True]]), alpha=0.5, history_weight=0.1, loss=loss)
    # gaps y - y': 2 and -1; y' - y0: -1 and 0.5
    expected = (ell(loss, 1.0) + 0.1 * ell(loss, -0.5) + ell(loss, -0.5) + 0.1 * ell(loss, 0.25)) / 2
    assert out.loss_D.item() == pytest.approx(expected, rel=1e-14)
    assert (out.margin_D.item(), out.accuracy_D.item(), out.history_D.item()) == (0.5, 0.5, -0.25)


def test_the_gradient_of_t_spin_by_hand() -> None:
    """Theorem 1 of the paper: ell'(u) pushes y up and y' down, beta * ell'(v) pushes y' up and y0 down."""
    player = Triplets(*(leaf.requires_grad_() for leaf in (f64(-3.0), column(-5.0), column(-4.5))))
    t_spin(player, TRUE, alpha=0.5, history_weight=0.2).loss_D.sum().backward()
    u, v = -1 / (1 + math.exp(0.5 * 2.0)), -1 / (1 + math.exp(0.5 * -0.5))
    found = [leaf.grad.item() for leaf in (player.real_D, player.generated_DK, player.start_DK)]
    assert found == pytest.approx([0.5 * u, -0.5 * u + 0.5 * 0.2 * v, -0.5 * 0.2 * v], rel=1e-14)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_t_spin_in_iteration_0_has_no_history(loss: LossName) -> None:
    """The replies are those of the start: the second term is a constant without a gradient, whatever its weight."""
    player = triplets(3)
    same = Triplets(player.real_D, player.generated_DK, player.generated_DK)
    mask_DK = torch.ones(3, 2, dtype=torch.bool)
    with_it, without = (t_spin(same, mask_DK, alpha=0.7, history_weight=weight, loss=loss) for weight in (0.4, 0.0))
    slopes = [torch.autograd.grad(out.loss_D.sum(), (player.real_D, player.generated_DK)) for out in (with_it, without)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(
        with_it.loss_D - without.loss_D, torch.full((3,), 0.4 * ell(loss, 0.0), dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_t_spin_is_spin_without_a_reference() -> None:
    player, opponent = random_duels(4)
    mask_DK, nothing = all_true(player), DuelLogps(torch.zeros(5).double(), torch.zeros(5, 3).double())
    alone = t_spin(Triplets(player.real_D, player.generated_DK, opponent.generated_DK), mask_DK, alpha=0.3, history_weight=0.0)
    spin = spin_loss(player, nothing, mask_DK, beta=0.3)
    assert torch.equal(alone.loss_D, spin.loss_D) and torch.equal(alone.margin_D, spin.margin_D)


@pytest.mark.parametrize("junk", [0.0, 1e30, float("inf"), float("nan")])
def test_empty_columns_of_t_spin_may_hold_anything(junk: float) -> None:
    player = triplets(7)
    more = torch.full((3, 1), junk).double()
    wide = Triplets(player.real_D, *(torch.cat([part, more], dim=1) for part in (player.generated_DK, player.start_DK)))
    leaves = (player.real_D, player.generated_DK, player.start_DK)
    found, expected = (
        t_spin(logps, torch.tensor([[True, True, False][:k]] * 3), alpha=0.7, history_weight=0.1) for logps, k in ((wide, 3), (player, 2))
    )
    assert torch.equal(found.loss_D, expected.loss_D) and torch.equal(found.history_D, expected.history_D)
    slopes = [torch.autograd.grad(out.loss_D.sum(), leaves) for out in (found, expected)]
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))


def test_gradcheck_of_t_spin() -> None:
    player = triplets(10)
    mask_DK = torch.tensor([[True, True], [True, False], [False, True]])

    def loss_D(*leaves: Tensor) -> Tensor:
        return t_spin(Triplets(*leaves), mask_DK, alpha=0.3, history_weight=0.5).loss_D

    assert torch.autograd.gradcheck(loss_D, (player.real_D, player.generated_DK, player.start_DK))


def test_misshapen_triplets_are_refused() -> None:
    for shapes in (((3,), (3, 2), (3, 1)), ((3,), (2, 2), (2, 2)), ((3, 1), (3, 2), (3, 2))):
        with pytest.raises(AssertionError):
            t_spin(Triplets(*(torch.zeros(shape) for shape in shapes)), torch.ones(3, 2, dtype=torch.bool), alpha=1.0, history_weight=0.1)


# --- alpha-SPIN


def test_the_mixture_by_hand() -> None:
    assert mixed_logp(-4.0, -8.0, 0.75) == -5.0
    assert mixed_logp(-3.3, -3.3, 0.1) == -3.3, "exactly: the first margin of the game is 0"
    assert (mixed_logp(-4.0, -8.0, 1.0), mixed_logp(-4.0, -8.0, 0.0)) == (-4.0, -8.0)


def mixed(p: Tensor, start: Tensor, alpha: float) -> Tensor:
    """The mixture as a policy, normalised."""
    return mixed_logp(p.log(), start.log(), alpha).softmax(0)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_value_and_gradient_of_alpha_spin_at_the_start(loss: LossName) -> None:
    """beta * ell'(beta * m), m the margin that the opponent itself has against the mixture; and the normaliser is not in it."""
    player, start = random_duels(11, d=1, k=1)
    alpha, beta = 0.6, 0.3
    for shift in (0.0, 2.5):
        against = [
            mixed_logp(ours.detach(), base, alpha) + shift for ours, base in zip(vars(player).values(), vars(start).values(), strict=True)
        ]
        out = spin_loss(player, DuelLogps(*against), TRUE, beta=beta, loss=loss)
        real, generated = torch.autograd.grad(out.loss_D.sum(), (player.real_D, player.generated_DK))
        margin = (1 - alpha) * ((player.real_D - start.real_D) - (player.generated_DK - start.generated_DK)[:, 0]).item()
        t = f64(beta * margin).requires_grad_()
        (slope,) = torch.autograd.grad(LOSSES[loss](t).sum(), t)
        assert out.loss_D.item() == pytest.approx(ell(loss, beta * margin), rel=1e-12)
        assert real.item() == pytest.approx(beta * slope.item(), rel=1e-12) == -generated.item()


# --- in exact play


def exact(loss_D: Callable[[Tensor, Tensor], Tensor], probability_D: Tensor) -> Tensor:
    real_D, generated_DK = enumerate_duels(len(P_DATA))
    return (probability_D * loss_D(real_D, generated_DK)).sum()


def against(p_opponent: Tensor) -> Tensor:
    """Probability of every duel of `enumerate_duels`."""
    real_D, generated_DK = enumerate_duels(len(P_DATA))
    return P_DATA[real_D] * p_opponent[generated_DK[:, 0]]


def exact_space(logp: Tensor, p_opponent: Tensor, mu: float) -> Tensor:
    def loss_D(real_D: Tensor, generated_DK: Tensor) -> Tensor:
        player, opponent = (DuelLogps(one[real_D], one[generated_DK]) for one in (logp, p_opponent.log()))
        return space_loss(player, opponent, torch.ones_like(generated_DK, dtype=torch.bool), mu=mu).loss_D

    return exact(loss_D, against(p_opponent))


def best_by_t_spin(p_opponent: Tensor, alpha: float) -> Tensor:
    """Exact minimiser of T-SPIN's first term."""

    def objective(logits: Tensor) -> Tensor:
        def loss_D(real_D: Tensor, generated_DK: Tensor) -> Tensor:
            logp = logits.log_softmax(0)
            player = Triplets(logp[real_D], logp[generated_DK], logp[generated_DK])
            return t_spin(player, torch.ones_like(generated_DK, dtype=torch.bool), alpha=alpha, history_weight=0.0).loss_D

        return exact(loss_D, against(p_opponent))

    return newton(objective, p_opponent.log()).softmax(0)


def best_by_alpha_spin(p_opponent: Tensor, start: Tensor, alpha: float, beta: float) -> Tensor:
    reference = mixed_logp(p_opponent.log(), start.log(), alpha)

    def objective(logits: Tensor) -> Tensor:
        def loss_D(real_D: Tensor, generated_DK: Tensor) -> Tensor:
            player, opponent = (DuelLogps(one[real_D], one[generated_DK]) for one in (logits.log_softmax(0), reference))
            return spin_loss(player, opponent, torch.ones_like(generated_DK, dtype=torch.bool), beta=beta).loss_D

        return exact(loss_D, against(p_opponent))

    return newton(objective, p_opponent.log()).softmax(0)


@pytest.mark.parametrize("mu", MUS)
def test_space_lands_on_p_data_in_one_iteration_for_every_mu(mu: float) -> None:
    found = newton(lambda z: exact_space(z.log_softmax(0), P_START, mu), P_START.log()).softmax(0)
    torch.testing.assert_close(found, P_DATA, rtol=0, atol=1e-8)


def test_space_fits_the_normaliser_too() -> None:
    """Absolute, not a gap: over free log-probs the minimum is log p_data itself, and not log p_data up to a constant."""
    found = newton(lambda logp: exact_space(logp, P_START, 1.0), P_START.log())
    torch.testing.assert_close(found, P_DATA.log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("mu", MUS)
def test_at_p_data_space_has_its_minimum(mu: float) -> None:
    slope = gradient(lambda z: exact_space(z.log_softmax(0), P_DATA, mu), P_DATA.log())
    assert slope.abs().max() < 1e-14
    at_p_data = exact_space(P_DATA.log(), P_DATA, mu).item()
    assert all(exact_space(p.log(), P_DATA, mu).item() > at_p_data for p in random_policies(20, 5))


@pytest.mark.parametrize("mu", MUS)
def test_the_first_gradient_of_space_is_the_sft_gradient(mu: float) -> None:
    """mu / (1 + mu) times it: one half at mu = 1, as SPIN at beta 1, and the likelihood itself for many replies."""
    sft = gradient(lambda z: -(P_DATA * z.log_softmax(0)).sum(), P_START.log())
    found = gradient(lambda z: exact_space(z.log_softmax(0), P_START, mu), P_START.log())
    torch.testing.assert_close(found, mu / (1 + mu) * sft, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_where_an_iteration_of_t_spin_without_history_lands(alpha: float) -> None:
    """Theorem 5.4 with nothing in the opponent's place: (p_data / p_t) ** (1 / alpha), from whatever start."""
    expected = ((P_DATA.log() - P_START.log()) / alpha).softmax(0)
    torch.testing.assert_close(best_by_t_spin(P_START, alpha), expected, rtol=0, atol=1e-8)


def test_p_data_is_no_fixed_point_of_t_spin() -> None:
    """Against replies that cannot be told from the human ones every reply wins half its duels: all become equally likely."""
    torch.testing.assert_close(best_by_t_spin(P_DATA, 1.0), torch.full((5,), 0.2, dtype=torch.float64), rtol=0, atol=1e-8)


def test_exact_t_spin_is_an_orbit_of_period_two() -> None:
    one = best_by_t_spin(P_START, 1.0)
    torch.testing.assert_close(best_by_t_spin(one, 1.0), P_START, rtol=0, atol=1e-7)
    assert kl(P_DATA, one) > 0.05 and kl(P_DATA, P_START) > 0.4, "and neither is p_data"


def test_alpha_1_is_spin() -> None:
    found = best_by_alpha_spin(P_START, P_START.flip(0), 1.0, 0.7)
    torch.testing.assert_close(found, best_player(P_START, P_DATA, 0.7), rtol=0, atol=1e-8)
    torch.testing.assert_close(found, theorem_5_4(P_START, P_DATA, 0.7), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("alpha", "beta"), [(0.9, 1.0), (0.5, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_alpha_spin_goes_to_a_mixture_of_data_and_start(alpha: float, beta: float) -> None:
    """Its fixed point is p_start ** w * p_data ** (1 - w), w = (1 - alpha) / (1 - alpha + 1 / beta); the way to it shrinks by
    |alpha - 1 / beta| in every iteration."""
    w = (1 - alpha) / (1 - alpha + 1 / beta)
    target = (w * P_START.log() + (1 - w) * P_DATA.log()).softmax(0)
    torch.testing.assert_close(best_by_alpha_spin(target, P_START, alpha, beta), target, rtol=0, atol=1e-8)
    p = P_DATA.flip(0)
    one = best_by_alpha_spin(p, P_START, alpha, beta)
    ways = [centred(policy.log()) - centred(target.log()) for policy in (p, one)]
    for before, after in pairwise(ways):
        torch.testing.assert_close(after, (alpha - 1 / beta) * before, rtol=1e-6, atol=1e-7)


def test_the_default_alpha_keeps_ten_elevenths_of_the_data() -> None:
    """What docs/theory.md says of 0.9 at beta 1."""
    w = (1 - 0.9) / (1 - 0.9 + 1)
    assert w == pytest.approx(1 / 11)
    found = best_by_alpha_spin((w * P_START.log() + (1 - w) * P_DATA.log()).softmax(0), P_START, 0.9, 1.0)
    assert kl(P_DATA, found) < 0.02 * kl(P_DATA, P_START)
