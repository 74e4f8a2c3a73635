"""Targets that err, on policies small enough for exact expectations: majorities, wrong winners, checkers that know nothing.

`pytest tests/theory/test_checkers.py -s` prints the tables of docs/theory.md; a test compares them with the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from enumerated import Selector, best_of_pairs, checked, entropy, most_likely, outcomes, pair_weights, pairs_loss, voted, winner_weights
from test_tabular import ALL_LOSSES, P_START, THEORY_PAGE, gradient, random_policies
from torch import Tensor

# --- majority


def plurality_shares(p: Tensor, k: int) -> Tensor:
    """Probability [n] that each answer has most of k votes, by the multinomial distribution of the counts."""
    wins = torch.zeros_like(p)
    for counts in product(range(k + 1), repeat=len(p)):
        top, second = sorted(counts)[-1], sorted(counts)[-2]
        if sum(counts) == k and top > second:
            ways = math.factorial(k) / math.prod(map(math.factorial, counts))
            wins[counts.index(top)] += ways * math.prod(share**c for share, c in zip(p.tolist(), counts, strict=True))
    return wins


ANSWERS = [torch.tensor(shares, dtype=torch.float64) for shares in ((0.6, 0.4), (0.5, 0.3, 0.2), (0.4, 0.3, 0.3), (0.3, 0.45, 0.25))]


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("p", ANSWERS, ids=str)
def test_one_round_of_majority_ends_at_the_winning_answer(p: Tensor, k: int) -> None:
    """Likelihood of the winners of k votes: every player is a point mass, as often as multinomials say; a tie leaves it as it was."""
    ends = sum(probability * player for probability, player in outcomes(p, k, voted))
    torch.testing.assert_close(ends, plurality_shares(p, k), rtol=1e-12, atol=1e-14)
    assert all(player.max() == 1 for _, player in outcomes(p, k, voted))


def test_two_answers_and_odd_votes_are_condorcets() -> None:
    expected = sum(math.comb(5, votes) * 0.6**votes * 0.4 ** (5 - votes) for votes in (3, 4, 5))
    assert plurality_shares(ANSWERS[0], 5)[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("answer", range(3))
def test_every_point_mass_is_at_rest_and_draws_its_neighbours(answer: int) -> None:
    """Right or wrong: no losers, the winners are the policy; from 0.9 of the mass the others fall from round to round."""
    point = torch.eye(3, dtype=torch.float64)[answer]
    assert pair_weights(point, 3, voted).count_nonzero() == 0
    assert torch.equal(most_likely(winner_weights(point, 3, voted)), point)
    p = 0.9 * point + (1 - point) * 0.05
    for _ in range(6):
        p = plurality_shares(p, 3) / plurality_shares(p, 3).sum()
    torch.testing.assert_close(p, point, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_in_expectation_majority_goes_to_the_plurality_of_the_start(k: int) -> None:
    """The ratio of two answers never falls: an outcome where i wins and that with i and j exchanged differ by (p_i / p_j)^(c_i - c_j)."""
    for start in random_policies(10, 3, scale=1.0):
        p = start
        for _ in range(60):
            shares = plurality_shares(p, k)
            order = p.argsort()
            assert all(shares[b] / p[b] >= shares[a] / p[a] - 1e-12 for a, b in pairwise(order) if p[a] > 1e-12)
            p = shares / shares.sum()
        assert p.argmax() == start.argmax() and p.max() > 1 - 1e-9


@pytest.mark.parametrize("k", [5, 15, 45])
@pytest.mark.parametrize("p", ANSWERS, ids=str)
def test_many_votes_name_the_plurality(p: Tensor, k: int) -> None:
    """Chernoff: an answer of share p_j has as many votes as the plurality i with probability (1 - (sqrt p_i - sqrt p_j)^2)^k at most."""
    others = torch.arange(len(p)) != p.argmax()
    bound = ((1 - (p.max().sqrt() - p[others].sqrt()) ** 2) ** k).sum()
    assert plurality_shares(p, k)[p.argmax()] >= 1 - bound


def test_expected_majority_is_right_as_often_as_the_plurality_of_the_start() -> None:
    """Four prompts, the first answer the right one: accuracy .45 at the start, three pluralities of four in the end."""
    accuracy = []
    for start in ANSWERS:
        p = start
        for _ in range(60):
            p = plurality_shares(p, 3) / plurality_shares(p, 3).sum()
        accuracy.append(p[0].item())
    assert sum(accuracy) / 4 == pytest.approx(0.75, abs=1e-9)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_duels_over_three_votes_raise_the_odds_to_a_power(beta: float) -> None:
    """Two answers: an answer that loses some draws and wins others makes the optimum finite, at odds ** (1 + 1 / beta)."""
    p = ANSWERS[0]
    found = best_of_pairs(p, pair_weights(p, 3, voted), beta)
    assert (found[0] / found[1]).item() == pytest.approx(1.5 ** (1 + 1 / beta), rel=1e-8)


# --- wrong winners


def wrong_share(right: float, false_positive: float) -> float:
    """Share of wrong replies among the winners, by enumeration of right and wrong against passed and failed."""
    p, passes = (torch.tensor(both, dtype=torch.float64) for both in ((right, 1 - right), (1.0, false_positive)))
    return most_likely(winner_weights(p, 1, checked(passes)))[1].item()


@pytest.mark.parametrize(("a", "f"), list(product((0.02, 0.1, 0.5), (0.001, 0.01, 0.1))))
def test_share_of_wrong_winners(a: float, f: float) -> None:
    assert wrong_share(a, f) == pytest.approx(f * (1 - a) / (f * (1 - a) + a), rel=1e-8)


def test_one_false_positive_in_a_hundred_makes_a_third_of_the_winners_wrong_at_two_percent() -> None:
    assert wrong_share(0.02, 0.01) == pytest.approx(1 / 3, abs=0.005)


def test_a_reply_that_fools_the_checker_stays_and_an_error_of_chance_washes_out() -> None:
    """Replies: right, wrong but always passed (1% of the wrong), wrong and found out. Beside it a checker that errs anew each time."""
    fooled = torch.tensor([0.02, 0.0098, 0.9702], dtype=torch.float64)
    always = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    chance = torch.tensor([0.02, 0.98], dtype=torch.float64)
    for round_number in (1, 2):
        fooled = most_likely(winner_weights(fooled, 1, checked(always)))
        chance = most_likely(winner_weights(chance, 1, checked(torch.tensor([1.0, 0.01], dtype=torch.float64))))
        assert fooled[1].item() == pytest.approx(wrong_share(0.02, 0.01), rel=1e-8)
        assert (chance[0] / chance[1]).item() == pytest.approx(0.02 / 0.98 * 100**round_number, rel=1e-6)


# --- a checker that knows nothing


def a_coin(rate: float) -> Selector:
    """A checker that knows nothing: every reply passes with this probability."""
    return checked(torch.full((5,), rate, dtype=torch.float64))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_random_checker_teaches_duels_nothing(rate: float) -> None:
    """Winners and losers have one distribution: theorem 5.2 with no human in it. No first gradient, and no better player, for any loss."""
    weight_WL = pair_weights(P_START, 3, a_coin(rate))
    for loss, beta in product(ALL_LOSSES, (0.1, 1.0, 5.0)):
        slope = gradient(lambda z, b=beta, of=loss: pairs_loss(z.log_softmax(0), P_START.log(), weight_WL, b, of), P_START.log())
        assert slope.norm() < 1e-14
        lowest = pairs_loss(P_START.log(), P_START.log(), weight_WL, beta, loss).item()
        assert all(pairs_loss(p.log(), P_START.log(), weight_WL, beta, loss).item() >= lowest - 1e-13 for p in random_policies(30, 5))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_likelihood_of_random_winners_gives_back_the_start(rate: float) -> None:
    """In expectation over the draws and the deals, and as the maximum of the expected likelihood."""
    select = a_coin(rate)
    torch.testing.assert_close(most_likely(winner_weights(P_START, 3, select)), P_START, rtol=1e-9, atol=0)
    torch.testing.assert_close(sum(w * player for w, player in outcomes(P_START, 3, select)), P_START, rtol=1e-12, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_but_every_round_loses_diversity(n: int) -> None:
    """The chance that two replies differ falls by 1/n a round of n winners, as genes drift in a small population."""
    differ = 1 - (P_START**2).sum().item()
    everything = a_coin(1.0)
    after = sum(w * (1 - (player**2).sum().item()) for w, player in outcomes(P_START, n, everything))
    assert after == pytest.approx((1 - 1 / n) * differ, abs=1e-12)


def test_distinct_winners_flatten_even_under_a_random_checker() -> None:
    """A reply counts once among k however often it was drawn, 1 - (1 - rate p)^k times: not p_0 but closer to uniform."""
    winners = winner_weights(P_START, 3, a_coin(0.5), of=set)
    torch.testing.assert_close(winners, 1 - (1 - P_START / 2) ** 3, rtol=1e-12, atol=0)
    assert entropy(most_likely(winners)) > entropy(P_START) + 0.01


# --- the tables of docs/theory.md


def majority_table() -> list[str]:
    """How often a game of likelihood on majorities ends at the right answer, the first: ties play again."""
    rows = []
    for p in ANSWERS:
        ends = [(plurality_shares(p, k)[0] / plurality_shares(p, k).sum()).item() for k in (3, 5, 15)]
        shares = ", ".join(f"{share:g}" for share in p.tolist())
        rows.append(f"| {shares} | {p[0]:.2f} | " + " | ".join(f"{end:.2f}" for end in ends) + f" | {int(p.argmax() == 0)} |")
    return rows


def wrong_winners_table() -> list[str]:
    rows = []
    for a in (0.02, 0.1, 0.5):
        rows.append(f"| {a:.0%} | " + " | ".join(f"{wrong_share(a, f):.1%}" for f in (0.001, 0.01, 0.1)) + " |")
    return rows


@pytest.mark.parametrize("table", [majority_table, wrong_winners_table])
def test_the_page_shows_these_numbers_of_targets(table: Callable[[], list[str]]) -> None:
    rows = table()
    print("\n" + "\n".join(rows))
    page = [line.strip() for line in THEORY_PAGE.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if row not in page] == []
