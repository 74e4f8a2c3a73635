"""Targets that move, on policies small enough for exact expectations: duels and likelihood of winners, what they reach and what not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import pytest
import torch
from enumerated import (
    CHECKER,
    PASSES,
    best_of_pairs,
    checked,
    closed_form,
    descend,
    entropy,
    given,
    likelihood_loss,
    most_likely,
    outcomes,
    pair_weights,
    pairs_loss,
    winner_weights,
)
from test_tabular import (
    ALL_LOSSES,
    LINEAR_START,
    P_DATA,
    P_START,
    SLOPE_AT_ZERO,
    best_player,
    centred,
    gradient,
    linear_policy,
    random_policies,
)
from torch import Tensor

from sparring.objectives.shared import DuelLogps
from sparring.objectives.spin import LossName, spin_loss

INFINITE: list[LossName] = ["logistic", "exponential"]


# --- winners and losers of any two distributions


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
def test_duels_multiply_the_player_by_the_ratio_of_winners_to_losers(beta: float) -> None:
    """p_{t+1} proportional to p_t * (p_w / p_l) ** (1 / beta)."""
    policies = random_policies(9, 5, scale=1.0)
    for p, p_w, p_l in zip(policies[::3], policies[1::3], policies[2::3], strict=True):
        found = best_of_pairs(p, torch.outer(p_w, p_l), beta)
        torch.testing.assert_close(centred(found.log()), centred(closed_form(p, p_w, p_l, beta).log()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("beta", [0.3, 1.0, 3.0])
def test_human_winners_against_the_opponents_own_replies_are_spin(beta: float) -> None:
    found = best_of_pairs(P_START, torch.outer(P_DATA, P_START), beta)
    torch.testing.assert_close(found, best_player(P_START, P_DATA, beta), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_winners_and_losers_of_one_prompt_are_independent(k: int) -> None:
    """All pairs of k judged replies: p given a pass times p given a fail, as often as the k neither all pass nor all fail."""
    p, passes = P_START[:4] / P_START[:4].sum(), torch.tensor([0.9, 0.2, 0.5, 0.0], dtype=torch.float64)
    rate = (p @ passes).item()
    expected = (1 - rate**k - (1 - rate) ** k) * torch.outer(given(p, passes), given(p, 1 - passes))
    torch.testing.assert_close(pair_weights(p, k, checked(passes)), expected, rtol=1e-12, atol=1e-15)


def test_pairs_that_are_not_independent_land_elsewhere() -> None:
    """Pairing by length ties the loser to its winner, and the same winners and losers then lead to another player."""
    weight_WL = torch.tensor([[0.00, 0.30, 0.05], [0.05, 0.00, 0.30], [0.20, 0.10, 0.00]], dtype=torch.float64)
    p_w, p_l, p = weight_WL.sum(1), weight_WL.sum(0), torch.full((3,), 1 / 3, dtype=torch.float64)
    assert (best_of_pairs(p, weight_WL, 1.0) - closed_form(p, p_w, p_l, 1.0)).abs().max() > 0.02


# --- a checker without errors: no finite optimum


def failing_losers(p: Tensor = P_START) -> Tensor:
    """The weights [n, n] of `verified` duels: winners p given a pass, losers p given a fail."""
    return torch.outer(given(p, PASSES), given(p, ~PASSES))


def verified(beta: float, loss: LossName = "logistic") -> Callable[[Tensor], Tensor]:
    """The exact loss of those duels as a function of the player's logits."""
    return lambda z: pairs_loss(z.log_softmax(0), P_START.log(), failing_losers(), beta, loss)


APART = CHECKER - (1 - CHECKER)  # the direction that parts the replies that pass from those that fail


@pytest.mark.parametrize("loss", INFINITE)
def test_a_checker_without_errors_leaves_no_finite_optimum(loss: LossName) -> None:
    """From wherever the player stands the loss falls along APART towards 0, its infimum, and never reaches it."""
    for p in [P_START, *random_policies(5, 5)]:
        values = [verified(1.0, loss)(p.log() + scale * APART).item() for scale in (0, 1, 2, 4, 8, 16)]
        assert all(after < before for before, after in pairwise(values))
        assert 0 < values[-1] < 1e-8
        assert gradient(verified(1.0, loss), p.log()) @ APART < 0


def test_descent_parts_winners_from_losers_for_ever() -> None:
    path = list(descend(verified(0.5), P_START.log(), rate=5.0, steps=300))
    losses = [verified(0.5)(z).item() for z in path]
    narrowest = [(z - P_START.log())[PASSES].min().item() - (z - P_START.log())[~PASSES].max().item() for z in path]
    assert all(after < before for before, after in pairwise(losses))
    assert all(after > before for before, after in pairwise(narrowest))
    assert gradient(verified(0.5), path[-1]).norm() > 0


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_a_finite_number_of_steps_keeps_the_margin_finite(beta: float) -> None:
    """One reply that passes, one that fails: after n steps of rate eta the margin is near log(1 + 2 eta beta^2 n) / beta."""
    p, weight_WL = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    rate, steps = 0.5 / beta**2, 1000
    *_, logits = descend(lambda z: pairs_loss(z.log_softmax(0), p.log(), weight_WL, beta), p.log(), rate, steps)
    expected = math.log(1 + 2 * rate * beta**2 * steps) / beta
    assert (logits[0] - logits[1]).item() == pytest.approx(expected, rel=0.02)


def test_of_the_other_losses_hinge_stops_and_correlation_has_no_bound() -> None:
    beta, start = 0.5, P_START.log()
    margin = APART / (2 * beta)  # a margin of 1 / beta for every pair
    assert verified(beta, "hinge")(start + margin).item() == pytest.approx(0, abs=1e-14)
    assert gradient(verified(beta, "hinge"), start + 1.01 * margin).abs().max() == 0
    values = [verified(beta, "correlation")(start + scale * APART).item() for scale in (0, 10, 1000)]
    assert values == pytest.approx([1, 1 - 10, 1 - 1000])


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_checker_that_errs_makes_the_optimum_finite(beta: float) -> None:
    """Each reply is multiplied by the odds of its passing, to the power of 1 / beta."""
    passes = torch.tensor([0.95, 0.02, 0.8, 0.1, 0.3], dtype=torch.float64)
    expected = P_START * (passes / (1 - passes)) ** (1 / beta)
    found = best_of_pairs(P_START, pair_weights(P_START, 3, checked(passes)), beta)
    torch.testing.assert_close(found, expected / expected.sum(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_every_policy_that_always_passes_is_at_rest(loss: LossName) -> None:
    """No loser, no pair; and likelihood of the winners gives back the policy. No policy that passes sometimes is at rest."""
    p = given(P_START, PASSES)
    assert pair_weights(p, 3, checked(CHECKER)).count_nonzero() == 0
    torch.testing.assert_close(most_likely(winner_weights(p, 3, checked(CHECKER))), p, rtol=1e-10, atol=1e-14)
    for player in random_policies(10, 5):
        assert gradient(lambda z, q=player: pairs_loss(z.log_softmax(0), q.log(), failing_losers(q), 1.0, loss), player.log()).norm() > 0.1


# --- the anchor: what it bounds and what it does not


LENGTHS = torch.tensor([2.0, 5.0, 8.0, 3.0, 1.0], dtype=torch.float64)


def anchored(weight: float, tokens: Tensor) -> Callable[[Tensor], Tensor]:
    """Verified duels plus the library's anchor on their winners."""
    return lambda z: verified(1.0)(z) + weight * likelihood_loss(z.log_softmax(0), given(P_START, PASSES), tokens)


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_an_anchor_on_winners_does_not_bound_the_margin(weight: float) -> None:
    """The anchor falls in that direction too, so there is still no finite optimum, whatever its weight."""
    for p in [P_START, *random_policies(5, 5)]:
        values = [anchored(weight, LENGTHS)(p.log() + scale * APART).item() for scale in (0, 1, 2, 4, 8)]
        assert all(after < before for before, after in pairwise(values))


@pytest.mark.parametrize("tokens", [torch.ones(5, dtype=torch.float64), LENGTHS], ids=["equal lengths", "lengths"])
def test_an_anchor_decides_where_the_mass_goes(tokens: Tensor) -> None:
    """The limit is p_t given a pass, divided by length, as the anchor is per token: the infimum is reached there and nowhere else."""
    winners = given(P_START, PASSES)
    limit = winners / tokens / (winners / tokens).sum()
    infimum = 0.5 * (winners / tokens).sum().item() * entropy(limit)
    at_limit = limit.clamp(min=1e-30).log()
    assert anchored(0.5, tokens)(at_limit).item() == pytest.approx(infimum, abs=1e-12)
    torch.testing.assert_close(most_likely(winners, tokens), limit, rtol=1e-9, atol=1e-14)
    for other in random_policies(20, 5):
        assert anchored(0.5, tokens)(torch.where(PASSES, other.log(), -70.0)).item() > infimum


def test_without_an_anchor_where_the_mass_goes_is_left_open() -> None:
    """Any split of the mass over the replies that pass has the same infimum, 0."""
    for other in random_policies(5, 5):
        assert verified(1.0)(torch.where(PASSES, other.log(), -70.0)).item() < 1e-25


def test_a_gap_lets_winners_and_losers_fall_together_and_an_anchor_does_not() -> None:
    """Mass that goes to a reply which neither wins nor loses: the duels do not see it, the anchor charges its weight for every nat."""
    p = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    weight_WL, winners = torch.zeros(3, 3, dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    weight_WL[0, 1] = 1.0
    for nats in (1.0, 10.0, 100.0):
        fallen = torch.tensor([-nats, -nats, 0.0], dtype=torch.float64) + p.log()
        fallen[2] = torch.log1p(-fallen[:2].exp().sum())
        assert pairs_loss(fallen, p.log(), weight_WL, 1.0).item() == pytest.approx(math.log(2), abs=1e-12)
        assert (likelihood_loss(fallen, winners) - likelihood_loss(p.log(), winners)).item() == pytest.approx(nats)


@pytest.mark.parametrize("weight", [0.1, 1.0])
def test_under_an_anchor_the_winners_can_lose_at_most_ell_of_zero_over_its_weight(weight: float) -> None:
    """The duels are worth ell(0) at the start and never less than 0: no better player has a worse anchor than that allows."""
    winners, loss = given(P_START, PASSES), anchored(weight, LENGTHS)
    bound = likelihood_loss(P_START.log(), winners, LENGTHS).item() + math.log(2) / weight
    better = [p for p in random_policies(200, 5, scale=4.0) if loss(p.log()) <= loss(P_START.log())]
    assert len(better) > 20
    assert all(likelihood_loss(p.log(), winners, LENGTHS).item() <= bound for p in better)


# --- likelihood of the winners, and what the start never says


def test_rejection_sampling_fine_tuning_is_the_start_given_a_pass() -> None:
    for k in (1, 3):
        found = most_likely(winner_weights(P_START, k, checked(CHECKER)))
        torch.testing.assert_close(found, given(P_START, PASSES), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(most_likely(winner_weights(found, k, checked(CHECKER))), found, rtol=1e-9, atol=1e-14)


def test_what_fails_only_loses_mass_under_likelihood() -> None:
    """The slope of every failing reply's logit is its probability, so no finite logits are best here either."""
    for p in random_policies(5, 5):
        slope = gradient(lambda z: likelihood_loss(z.log_softmax(0), given(P_START, PASSES)), p.log())
        torch.testing.assert_close(slope[~PASSES], p[~PASSES], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("objective", ["duels", "likelihood"])
def test_a_reply_that_the_start_never_gives_gets_no_mass(objective: str) -> None:
    """Reply 0 would pass. It is in no pair and no winner; its probability stays 0 through exact updates and through descent."""
    p = torch.tensor([0.0, 0.3, 0.3, 0.4], dtype=torch.float64)
    passes = torch.tensor([0.9, 0.2, 0.8, 0.1], dtype=torch.float64)
    pairs, winners = pair_weights(p, 3, checked(passes)), winner_weights(p, 3, checked(passes))
    assert pairs[0].count_nonzero() == 0 and pairs[:, 0].count_nonzero() == 0 and winners[0] == 0
    loss = {
        "duels": lambda z: pairs_loss(z.log_softmax(0), p.log(), pairs, 1.0),
        "likelihood": lambda z: likelihood_loss(z.log_softmax(0), winners),
    }[objective]
    *_, logits = descend(loss, p.log(), rate=1.0, steps=300)
    exact = {"duels": closed_form(p, given(p, passes), given(p, 1 - passes), 1.0), "likelihood": most_likely(winners)}[objective]
    assert logits.softmax(0)[0] == 0 and exact[0] == 0
    assert exact @ passes > p @ passes
    assert logits.softmax(0) @ passes > p @ passes


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_round_of_likelihood_turns_pass_at_k_plus_one_into_pass_at_one(k: int) -> None:
    """One prompt, k replies, tabular: afterwards it always passes if any of the k did. A second round of j makes it pass@(k + j + 1)."""
    rate = P_START[PASSES].sum().item()
    after = sum(probability * player[PASSES].sum().item() for probability, player in outcomes(P_START, k, checked(CHECKER)))
    assert after == pytest.approx(1 - (1 - rate) ** (k + 1), rel=1e-12)
    second = sum(
        probability * again * player[PASSES].sum().item()
        for probability, between in outcomes(P_START, k, checked(CHECKER))
        for again, player in outcomes(between, 2, checked(CHECKER))
    )
    assert second == pytest.approx(1 - (1 - rate) ** (k + 3), rel=1e-12)


@pytest.mark.parametrize(("probabilities", "ceiling"), [((0.0, 0.0, 0.7), 1 / 3), ((0.0, 0.01, 0.7), 2 / 3), ((0.2, 0.01, 0.7), 1.0)])
def test_the_ceiling_is_the_share_of_prompts_that_the_start_can_pass(probabilities: tuple[float, ...], ceiling: float) -> None:
    """pass@k of the start as k grows: prompts are separate games in a table."""
    rates = []
    for rate in probabilities:
        p = torch.tensor([rate, 1 - rate], dtype=torch.float64)
        passes = torch.tensor([1.0, 0.0], dtype=torch.float64)
        winners = winner_weights(p, 3, checked(passes))
        rates.append((most_likely(winners) if winners.any() else p)[0].item())
    assert sum(rates) / len(rates) == pytest.approx(ceiling)


# --- human winners


def human(q: float) -> Tensor:
    """A human distribution over the five replies of which the share q passes."""
    return q * given(P_DATA, PASSES) + (1 - q) * given(P_DATA, ~PASSES)


def mixed_winners(p: Tensor, share: float, q: float) -> Tensor:
    return share * human(q) + (1 - share) * given(p, PASSES)


def play_mixed(p: Tensor, share: float, q: float, beta: float, iterations: int) -> Iterator[Tensor]:
    """Exact duels, winners mixed with a share of human replies, losers ~ p_t."""
    yield p
    for _ in range(iterations):
        p = closed_form(p, mixed_winners(p, share, q), p, beta)
        yield p


@pytest.mark.parametrize("beta", [0.75, 1.0, 2.0])
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_human_winners_against_all_of_the_players_replies_bring_the_ceiling_back(share: float, q: float, beta: float) -> None:
    """Pass rate 1 - share * (1 - q), from any start, for beta above 1/2."""
    for start in [P_START, *random_policies(2, 5, scale=1.0)]:
        *_, p = play_mixed(start, share, q, beta, 500)
        assert p[PASSES].sum().item() == pytest.approx(1 - share * (1 - q), abs=1e-9)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_fixed_point_is_human_among_passes_and_among_fails(share: float) -> None:
    """And it is one: the library's loss has no slope there, for any loss and beta, and no policy of 50 scores lower."""
    rate = 1 - share * 0.5
    fixed = rate * given(P_DATA, PASSES) + (1 - rate) * given(P_DATA, ~PASSES)
    weight_WL = torch.outer(mixed_winners(fixed, share, 0.5), fixed)
    *_, p = play_mixed(P_START, share, 0.5, 1.0, 500)
    torch.testing.assert_close(p, fixed, rtol=1e-9, atol=1e-12)
    for loss, beta in product(ALL_LOSSES, (0.1, 1.0)):
        assert gradient(lambda z, b=beta, of=loss: pairs_loss(z.log_softmax(0), fixed.log(), weight_WL, b, of), fixed.log()).norm() < 1e-14
        lowest = pairs_loss(fixed.log(), fixed.log(), weight_WL, beta, loss).item()
        assert all(pairs_loss(p.log(), fixed.log(), weight_WL, beta, loss).item() >= lowest - 1e-13 for p in random_policies(50, 5))


def test_a_mixed_iteration_minimised_numerically() -> None:
    """The steps of `play_mixed` are those of the library's loss."""
    for p, after in pairwise(play_mixed(P_START, 0.3, 0.4, 0.75, 3)):
        found = best_of_pairs(p, torch.outer(mixed_winners(p, 0.3, 0.4), p), 0.75)
        torch.testing.assert_close(found, after, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("beta", "factor"), [(0.4, -1.5), (0.5, -1.0), (0.75, -1 / 3), (1.0, 0.0), (2.0, 0.5)])
def test_the_way_to_that_fixed_point_is_spins(beta: float, factor: float) -> None:
    """Human proportions within passes and fails: the log odds of a pass approach theirs by 1 - 1 / beta, so beta <= 1/2 never arrives."""
    share, q = 0.5, 0.5
    rate = 1 - share * (1 - q)
    start = human(0.6)  # the fixed point has 0.75
    _, first, second = (p[PASSES].sum().logit().item() - math.log(rate / (1 - rate)) for p in play_mixed(start, share, q, beta, 2))
    at_start = math.log(0.6 / 0.4) - math.log(rate / (1 - rate))
    assert (first, second) == pytest.approx((factor * at_start, factor**2 * at_start), abs=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_against_failing_losers_human_winners_bring_no_ceiling(share: float) -> None:
    """Replies that pass never lose, so duels part them from those that fail without end, human winners that fail or not."""
    weight_WL = torch.outer(mixed_winners(P_START, share, 0.2), given(P_START, ~PASSES))
    for p in [P_START, *random_policies(5, 5)]:
        slopes = [gradient(lambda z: pairs_loss(z.log_softmax(0), P_START.log(), weight_WL, 1.0), p.log() + s * APART) for s in (0, 3, 9)]
        assert all(slope @ APART < 0 for slope in slopes)


@pytest.mark.parametrize("q", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_likelihood_of_mixed_winners_has_that_ceiling_after_one_round(share: float, q: float) -> None:
    for p in [P_START, *random_policies(3, 5)]:
        rate = most_likely(mixed_winners(p, share, q))[PASSES].sum().item()
        assert rate == pytest.approx(1 - share * (1 - q), rel=1e-9)


@pytest.mark.parametrize("q", [0.0, 0.4, 1.0])
def test_a_human_reply_only_where_none_passes_brings_no_ceiling(q: float) -> None:
    """`fallback`: the share of failing replies f becomes (1 - q) f^k, below f for k >= 2, and 0 in the end."""
    k, p = 3, P_START

    def fallback(replies: Sequence[int]) -> Iterator[tuple[float, list[int], list[int]]]:
        passed = [y for y in replies if PASSES[y]]
        yield from [(1.0, passed, [])] if passed else [(share, [y], []) for y, share in enumerate(human(q).tolist())]

    for _ in range(5):
        fails = p[~PASSES].sum().item()
        p = sum(probability * player for probability, player in outcomes(p, k, fallback))
        assert p[~PASSES].sum().item() == pytest.approx((1 - q) * fails**k, abs=1e-12)
    assert p[PASSES].sum() > 1 - 1e-12


# --- the first gradient


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("loss", ALL_LOSSES)
@pytest.mark.parametrize(
    ("mask", "of_winners", "of_losers"),
    [([[1, 1], [1, 1]], (1 / 2, 1 / 2), (1 / 2, 1 / 2)), ([[1, 1], [1, 0]], (1 / 2, 1 / 2), (3 / 4, 1 / 4))],
    ids=["all pairs", "some pairs"],
)
def test_first_gradient_of_one_prompts_pairs(
    mask: list[list[int]], of_winners: tuple[float, float], of_losers: tuple[float, float], loss: LossName, beta: float
) -> None:
    """ell'(0) * beta * (mean grad log p(winner) - mean grad log p(loser)), each as often as it is in a pair."""
    winners, losers = [0, 2], [1, 3]  # of the first prompt's four replies

    def tree(theta: Tensor) -> Tensor:
        player, opponent = (
            DuelLogps(logp[winners], logp[losers].expand(2, 2)) for logp in (linear_policy(theta)[0], linear_policy(LINEAR_START)[0])
        )
        return spin_loss(player, opponent, torch.tensor(mask, dtype=torch.bool), beta=beta, loss=loss).loss_D.mean()

    def difference(theta: Tensor) -> Tensor:
        logp = linear_policy(theta)[0]
        return torch.tensor(of_winners).double() @ logp[winners] - torch.tensor(of_losers).double() @ logp[losers]

    expected = SLOPE_AT_ZERO[loss] * beta * gradient(difference, LINEAR_START)
    torch.testing.assert_close(gradient(tree, LINEAR_START), expected, rtol=1e-12, atol=1e-14)


LINEAR_PASSES = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)


def pass_rates(theta: Tensor) -> Tensor:
    """The pass rates [3] of the linear policy's prompts."""
    return linear_policy(theta).exp() @ LINEAR_PASSES


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_the_expected_first_gradient_of_verified_duels_climbs_the_log_odds_of_a_pass(loss: LossName, k: int) -> None:
    """Of each prompt, as often as its k replies neither all pass nor all fail."""
    start = linear_policy(LINEAR_START)
    weights = [pair_weights(logp.exp(), k, checked(LINEAR_PASSES)) for logp in start]

    def duels(theta: Tensor) -> Tensor:
        pairs = zip(linear_policy(theta), start, weights, strict=True)
        return torch.stack([pairs_loss(logp, opponent, weight, 0.7, loss) for logp, opponent, weight in pairs]).sum()

    rate = pass_rates(LINEAR_START)
    contested = 1 - rate**k - (1 - rate) ** k
    expected = SLOPE_AT_ZERO[loss] * 0.7 * gradient(lambda theta: contested @ pass_rates(theta).logit(), LINEAR_START)
    torch.testing.assert_close(gradient(duels, LINEAR_START), expected, rtol=1e-11, atol=1e-13)


def test_the_expected_first_gradient_of_likelihood_climbs_the_pass_rate() -> None:
    """All winners of k replies, counted one by one: k times the policy gradient of the mean pass rate."""
    weights = torch.stack([winner_weights(logp.exp(), 3, checked(LINEAR_PASSES)) for logp in linear_policy(LINEAR_START)])

    def likelihood(theta: Tensor) -> Tensor:
        return torch.stack([likelihood_loss(logp, weight) for logp, weight in zip(linear_policy(theta), weights, strict=True)]).sum()

    expected = -3 * gradient(lambda theta: pass_rates(theta).sum(), LINEAR_START)
    torch.testing.assert_close(gradient(likelihood, LINEAR_START), expected, rtol=1e-11, atol=1e-13)
