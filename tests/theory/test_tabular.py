"""The theorems of arXiv 2401.01335 on policies small enough for exact expectations: every pair (y, y') is enumerated, nothing is sampled.

`pytest tests/theory/test_tabular.py -s` prints the tables of docs/theory.md; a test compares them with the page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from sparring.objectives.shared import DuelLogps
from sparring.objectives.spin import LOSSES, LossName, spin_loss

ALL_LOSSES = list(LOSSES)
SLOPE_AT_ZERO = {"logistic": -0.5, "hinge": -1.0, "exponential": -1.0, "correlation": -1.0}
THEORY_PAGE = Path(__file__).parents[2] / "docs" / "theory.md"

# Five replies to one prompt: what humans write, and what the SFT model gives.
P_DATA = torch.tensor([0.40, 0.30, 0.15, 0.10, 0.05], dtype=torch.float64)
P_START = torch.tensor([0.20, 0.10, 0.10, 0.25, 0.35], dtype=torch.float64)


# --- exact expectations


def enumerate_duels(n: int, k: int = 1) -> tuple[Tensor, Tensor]:
    """Every human reply against every k-tuple of opponent replies, as outcome numbers: [n ** (k + 1)] and [n ** (k + 1), k]."""
    combinations = torch.tensor(list(product(range(n), repeat=k + 1)))
    return combinations[:, 0], combinations[:, 1:]


def duel_losses(logp: Tensor, opponent_logp: Tensor, beta: float, loss: LossName, k: int = 1) -> Tensor:
    """Equation 4.7 [n ** (k + 1)] of every duel, in the order of `enumerate_duels`, from log-probs [n] of all replies to one prompt."""
    real_D, generated_DK = enumerate_duels(len(logp), k)
    player, opponent = (DuelLogps(p[real_D], p[generated_DK]) for p in (logp, opponent_logp))
    return spin_loss(player, opponent, torch.ones_like(generated_DK, dtype=torch.bool), beta=beta, loss=loss).loss_D


def exact_loss(logp: Tensor, opponent_logp: Tensor, p_data: Tensor, beta: float, loss: LossName = "logistic", k: int = 1) -> Tensor:
    """E[eq. 4.7] with y ~ p_data and y'_1..k ~ opponent: a scalar."""
    real_D, generated_DK = enumerate_duels(len(logp), k)
    probability_D = p_data[real_D] * opponent_logp.detach().exp()[generated_DK].prod(dim=1)
    return (probability_D * duel_losses(logp, opponent_logp, beta, loss, k)).sum()


def kl(p: Tensor, q: Tensor) -> float:
    return (p * (p / q).log()).sum().item()


def centred(logp: Tensor) -> Tensor:
    """The vector up to the constant that a normaliser would fix."""
    return logp - logp.mean(dim=-1, keepdim=True)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    parameters = at.clone().requires_grad_()
    return torch.autograd.grad(function(parameters), parameters)[0]


def newton(function: Callable[[Tensor], Tensor], start: Tensor, steps: int = 200) -> Tensor:
    """The minimiser of a smooth convex function, by damped Newton steps (a pseudo-inverse passes over the flat directions)."""
    x = start.clone()
    for _ in range(steps):
        slope = gradient(function, x)
        direction = -torch.linalg.pinv(hessian(function, x), hermitian=True, rtol=1e-13) @ slope
        size = 1.0
        while function(x + size * direction) > function(x) + 0.25 * size * (slope @ direction) and size > 1e-3:
            size /= 2
        x = x + size * direction
        if direction.abs().max() < 1e-12:
            return x
    raise AssertionError(f"no convergence in {steps} Newton steps, the last was {direction.abs().max():.1e}")


def best_player(p_opponent: Tensor, p_data: Tensor, beta: float, loss: LossName = "logistic") -> Tensor:
    """p_{t+1} = argmin of the exact objective over all softmax policies, found numerically."""
    logp_opponent = p_opponent.log()
    logits = newton(lambda z: exact_loss(z.log_softmax(0), logp_opponent, p_data, beta, loss), logp_opponent)
    return logits.softmax(0)


def play(p_start: Tensor, p_data: Tensor, beta: float, iterations: int) -> Iterator[Tensor]:
    """p_0, p_1, ... of self-play in which every iteration is minimised exactly."""
    p = p_start
    yield p
    for _ in range(iterations):
        p = best_player(p, p_data, beta)
        yield p


def theorem_5_4(p_opponent: Tensor, p_data: Tensor, beta: float) -> Tensor:
    """p_t * (p_data / p_t) ** (1 / lambda), normalised."""
    return (p_opponent.log() + (p_data.log() - p_opponent.log()) / beta).softmax(0)


def random_policies(count: int, n: int, scale: float = 2.0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [(scale * torch.randn(n, generator=rng, dtype=torch.float64)).softmax(0) for _ in range(count)]


# --- theorem 5.2: the fixed point


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_at_p_data_the_player_cannot_do_better(loss: LossName, beta: float) -> None:
    """Theorem 5.2, first half: with p_t = p_data the gradient is zero and no policy scores below ell(0)."""
    opponent_logp = P_DATA.log()
    at_start = exact_loss(opponent_logp, opponent_logp, P_DATA, beta, loss).item()
    slope = gradient(lambda z: exact_loss(z.log_softmax(0), opponent_logp, P_DATA, beta, loss), opponent_logp)
    assert slope.abs().max() < 1e-14
    for p in random_policies(50, 5):
        assert exact_loss(p.log(), opponent_logp, P_DATA, beta, loss).item() >= at_start - 1e-13


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_away_from_p_data_a_small_lambda_has_a_better_point(loss: LossName) -> None:
    """Theorem 5.2, second half: p_data itself beats p_t, at first by -ell'(0) * lambda * (KL(p_data, p_t) + KL(p_t, p_data))."""
    for p in random_policies(10, 5):
        at_start = exact_loss(p.log(), p.log(), P_DATA, 1.0, loss).item()
        for beta in (1e-2, 1e-4, 1e-6):
            assert exact_loss(P_DATA.log(), p.log(), P_DATA, beta, loss).item() < at_start
        slope = (exact_loss(P_DATA.log(), p.log(), P_DATA, 1e-6, loss).item() - at_start) / 1e-6
        assert slope == pytest.approx(SLOPE_AT_ZERO[loss] * (kl(P_DATA, p) + kl(p, P_DATA)), rel=1e-4)


@pytest.mark.parametrize("loss", ["logistic", "hinge", "exponential"])
def test_at_a_large_lambda_p_data_can_score_worse_than_the_start(loss: LossName) -> None:
    """Why the theorem has to choose lambda: not every lambda prefers p_data."""
    start = exact_loss(P_START.log(), P_START.log(), P_DATA, 20.0, loss)
    assert exact_loss(P_DATA.log(), P_START.log(), P_DATA, 20.0, loss) > start


def test_the_correlation_loss_has_no_minimum_away_from_p_data() -> None:
    """Its gradient in the logits is lambda * (p_t - p_data) wherever the player stands, so it falls for ever."""
    for p in random_policies(5, 5):
        slope = gradient(lambda z: exact_loss(z.log_softmax(0), P_START.log(), P_DATA, 0.3, "correlation"), p.log())
        torch.testing.assert_close(slope, 0.3 * (P_START - P_DATA), rtol=1e-12, atol=1e-14)


# --- theorem 5.4: where an exactly minimised iteration lands


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.5, 1.0, 2.0, 5.0])
def test_exact_minimiser_is_theorem_5_4(beta: float) -> None:
    """The margin is a difference, so the normaliser of p_{t+1} cancels in it and the theorem holds with the softmax in place."""
    first, second, third, fourth = random_policies(4, 6, scale=1.0)
    for p_start, p_data in [(P_START, P_DATA), (first, second), (third, fourth)]:
        p = best_player(p_start, p_data, beta)
        torch.testing.assert_close(centred(p.log()), centred(theorem_5_4(p_start, p_data, beta).log()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("beta", [0.25, 0.5, 2.0])
def test_the_exponential_loss_lands_where_logistic_does_at_twice_lambda(beta: float) -> None:
    """Ours: a e^-t + b e^t is least at t = log(a / b) / 2, where a log(1 + e^-t) + b log(1 + e^t) is least at log(a / b)."""
    p = best_player(P_START, P_DATA, beta, "exponential")
    torch.testing.assert_close(p, theorem_5_4(P_START, P_DATA, 2 * beta), rtol=1e-9, atol=1e-12)


def test_several_prompts_are_several_games() -> None:
    """A shared objective over prompts is minimised by every prompt's own closed form."""
    opponent_XY, data_XY = torch.stack([P_START, P_DATA.flip(0), P_START]), torch.stack([P_DATA, P_DATA, P_START])
    weight_X = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def loss(flat: Tensor) -> Tensor:
        logp_XY = flat.view(3, 5).log_softmax(1)
        each = [exact_loss(logp, q.log(), p, 0.5) for logp, q, p in zip(logp_XY, opponent_XY, data_XY, strict=True)]
        return weight_X @ torch.stack(each)

    found_XY = newton(loss, opponent_XY.log().flatten()).view(3, 5).softmax(1)
    expected_XY = torch.stack([theorem_5_4(q, p, 0.5) for q, p in zip(opponent_XY, data_XY, strict=True)])
    torch.testing.assert_close(found_XY, expected_XY, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0])
def test_an_iteration_multiplies_the_log_ratio_by_one_minus_one_over_lambda(beta: float) -> None:
    """log p_{t+1} / p_data = (1 - 1 / lambda) * log p_t / p_data + constant: contraction for lambda > 1/2 only, factor -9 at 0.1."""
    before = centred((P_START / P_DATA).log())
    after = centred((best_player(P_START, P_DATA, beta) / P_DATA).log())
    torch.testing.assert_close(after, (1 - 1 / beta) * before, rtol=0, atol=1e-8)


def test_lambda_one_lands_on_p_data_in_one_step() -> None:
    torch.testing.assert_close(best_player(P_START, P_DATA, 1.0), P_DATA, rtol=1e-10, atol=0)


def test_lambda_two_takes_a_quarter_of_the_distance_each_iteration() -> None:
    """The log ratio halves, and near p_data the KL divergence goes with its square."""
    distances = [kl(P_DATA, p) for p in play(P_START, P_DATA, 2.0, 6)]
    ratios = [after / before for before, after in pairwise(distances)]
    assert all(0.18 < ratio < 0.28 for ratio in ratios)
    assert ratios[-1] == pytest.approx(0.25, abs=0.005)


def test_lambda_one_half_is_an_orbit_of_period_two() -> None:
    p0, p1, p2, p3 = play(P_START, P_DATA, 0.5, 3)
    torch.testing.assert_close(p2, p0, rtol=1e-9, atol=0)
    torch.testing.assert_close(p3, p1, rtol=1e-9, atol=0)
    assert (p1 - p0).abs().max() > 0.1


def test_a_small_lambda_passes_near_p_data_on_its_way_to_the_overshoot() -> None:
    """Why the published lambda of 0.1 can work: its steps are few and small, and its exact minimiser is never reached."""
    distances = kl_along_descent(beta=0.1)
    assert min(distances) < 0.1 * distances[0]
    assert distances[-1] > distances[0]


def kl_along_descent(beta: float, steps: int = 300, rate: float = 10.0) -> list[float]:
    """KL(p_data, player) after each step of plain gradient descent on one iteration's objective."""
    logits, distances = P_START.log(), []
    for _ in range(steps):
        distances.append(kl(P_DATA, logits.softmax(0)))
        logits = logits - rate * gradient(lambda z: exact_loss(z.log_softmax(0), P_START.log(), P_DATA, beta), logits)
    return distances


# --- the first step is the SFT gradient


def linear_policy(parameters: Tensor) -> Tensor:
    """Log-probs [3 prompts, 4 replies] of a policy whose prompts share 5 parameters: it cannot represent every distribution."""
    features_XYP = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (features_XYP @ parameters).log_softmax(dim=1)


LINEAR_START = torch.tensor([0.7, -0.4, 1.1, 0.2, -0.9], dtype=torch.float64)
LINEAR_DATA = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25, 0.5, 0.05, 0.2]], dtype=torch.float64)


def linear_spin(parameters: Tensor, opponent: Tensor, beta: float, loss: LossName, k: int) -> Tensor:
    """The exact SPIN objective of the linear policy, mean over its prompts."""
    pairs = zip(linear_policy(parameters), linear_policy(opponent), LINEAR_DATA, strict=True)
    return torch.stack([exact_loss(logp, q, p, beta, loss, k) for logp, q, p in pairs]).mean()


def linear_sft(parameters: Tensor) -> Tensor:
    """Its SFT objective: mean over the prompts of E[-log p(y|x)]."""
    return -(LINEAR_DATA * linear_policy(parameters)).sum(dim=1).mean()


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_expected_first_gradient_is_the_sft_gradient(loss: LossName, beta: float, k: int) -> None:
    """E[grad L_SPIN] = -ell'(0) * lambda * grad L_SFT at theta = theta_t, for any number of replies per prompt."""
    spin = gradient(lambda theta: linear_spin(theta, LINEAR_START, beta, loss, k), LINEAR_START)
    sft = gradient(linear_sft, LINEAR_START)
    assert sft.norm() > 0.1
    torch.testing.assert_close(spin, -SLOPE_AT_ZERO[loss] * beta * sft, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_the_identity_holds_for_every_single_human_reply(loss: LossName) -> None:
    """E over y' alone, y fixed: the opponent's replies bring no bias, only noise."""
    for y in range(5):
        point = torch.zeros(5, dtype=torch.float64)
        point[y] = 1.0
        spin = gradient(lambda z, point=point: exact_loss(z.log_softmax(0), P_START.log(), point, 0.7, loss), P_START.log())
        sft = gradient(lambda z, y=y: -z.log_softmax(0)[y], P_START.log())
        torch.testing.assert_close(spin, -SLOPE_AT_ZERO[loss] * 0.7 * sft, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_a_converged_sft_model_is_stationary(loss: LossName) -> None:
    """Where the SFT gradient vanishes so does SPIN's, although this policy cannot represent p_data and is far from it."""
    converged = newton(linear_sft, LINEAR_START)
    assert (linear_policy(converged).exp() - LINEAR_DATA).abs().max() > 0.1
    assert gradient(lambda theta: linear_spin(theta, converged, 1.0, loss, 1), converged).abs().max() < 1e-13


def first_gradient_noise(k: int, beta: float = 1.0, loss: LossName = "logistic") -> float:
    """E |g - E g|^2 of the first gradient over the opponent's k replies, human reply fixed: what the sampling of y' adds."""
    jacobian_DP = torch.autograd.functional.jacobian(lambda z: duel_losses(z.log_softmax(0), P_START.log(), beta, loss, k), P_START.log())
    real_D, generated_DK = enumerate_duels(5, k)
    probability_D = (P_DATA[real_D] * P_START[generated_DK].prod(dim=1))[:, None]
    second_moment = (probability_D * jacobian_DP**2).sum().item()
    sums_YP = torch.zeros(5, 5, dtype=torch.float64).index_add(0, real_D, probability_D * jacobian_DP)
    return second_moment - (sums_YP**2 / P_DATA[:, None]).sum().item()


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_k_replies_divide_the_noise_by_k(loss: LossName) -> None:
    """The noise is (ell'(0) * lambda)^2 * tr(Fisher) / k; a softmax's Fisher information has trace 1 - sum p^2."""
    fisher_trace = 1 - (P_START**2).sum().item()
    for k in (1, 2, 3, 4):
        expected = (SLOPE_AT_ZERO[loss] * 0.7) ** 2 * fisher_trace / k
        assert first_gradient_noise(k, 0.7, loss) == pytest.approx(expected, rel=1e-10)


# --- the tables of docs/theory.md


def lambda_table() -> list[str]:
    rows = []
    for beta, iterations in ((0.1, 1), (0.3, 2), (0.5, 4), (0.75, 4), (1.0, 4), (2.0, 4), (5.0, 4)):
        distances = [f"{abs(kl(P_DATA, p)):.3f}" for p in play(P_START, P_DATA, beta, iterations)]
        rows.append(f"| {beta:g} | {1 - 1 / beta:+.2f} | " + " | ".join(distances + [""] * (4 - iterations)) + " |")
    return rows


def noise_table() -> list[str]:
    slope = gradient(lambda z: exact_loss(z.log_softmax(0), P_START.log(), P_DATA, 1.0), P_START.log())
    return [f"| {k} | {math.sqrt(first_gradient_noise(k)) / slope.norm().item():.2f} |" for k in (1, 2, 4)]


@pytest.mark.parametrize("table", [lambda_table, noise_table])
def test_the_page_shows_these_numbers(table: Callable[[], list[str]]) -> None:
    rows = table()
    print("\n" + "\n".join(rows))
    page = [line.strip() for line in THEORY_PAGE.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if row not in page] == []


def test_the_tests_that_the_page_names_exist() -> None:
    here = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].glob("t[hr]*/test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", THEORY_PAGE.read_text(encoding="utf-8")))
    assert {name for name in named if f"def {name}(" not in here} == set()
    assert len(named) > 10
