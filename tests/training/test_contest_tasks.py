"""The objectives over contests: against those over duels, against their formulas pair by pair, and packed in any way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fit import DUELS, llama, metrics, plan_of, run_fit, settings
from test_successor_tasks import assert_same, by_task
from torch import Tensor

from sparring.config import TrainSection
from sparring.data.records import Contest, Conversation, Duel, Example
from sparring.objectives.alpha_spin import AlphaSpin
from sparring.objectives.likelihood import Likelihood
from sparring.objectives.shared import Comparison
from sparring.objectives.space import Space
from sparring.objectives.spin import LOSSES, Spin
from sparring.policy.batches import branches_of
from sparring.policy.load import load_model
from sparring.policy.score import plain_logps
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.tasks import ContestTask, SftTask, WinnersTask, iteration_task

Logps = dict[str, list[float]]
EOS = 63


def of_duel(duel: Duel) -> Contest:
    """The human reply against the distinct others, each of them once."""
    losers = tuple(dict.fromkeys(ids for ids in duel.generated_ids if ids != duel.real_ids))
    pairs = tuple((0, j) for j in range(len(losers)))
    return Contest(duel.row_id, duel.source_iteration, duel.prompt_ids, (duel.real_ids,), losers, pairs, 1.0)


def as_duel(contest: Contest) -> Duel:
    return Duel(contest.row_id, contest.source_iteration, contest.prompt_ids, contest.winners[0], contest.losers)


def contest(name: str, winners: int, losers: int, pairs: Sequence[tuple[int, int]], weight: float = 1.0) -> Contest:
    """Replies of different lengths, all of them different."""
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    replies = [(*torch.randint(1, 40, (n % 5 + 1,), generator=draw).tolist(), EOS) for n in range(winners + losers)]
    assert len(set(replies)) == len(replies)
    prompt = tuple(torch.randint(1, 40, (len(name),), generator=draw).tolist())
    return Contest(name, 0, prompt, tuple(replies[:winners]), tuple(replies[winners:]), tuple(pairs), weight)


ONE_WINNER = [of_duel(duel) for duel in DUELS]
SEVERAL = [
    contest("ab", 2, 3, [(0, 0), (0, 2), (1, 1)]),
    contest("cde", 3, 0, []),
    contest("fghi", 3, 1, [(0, 0), (1, 0), (2, 0)], weight=0.5),
    contest("j", 1, 2, [(0, 0), (0, 1)], weight=0.25),
    contest("kl", 1, 0, []),
    contest("mnopq", 2, 2, [(0, 1), (1, 0)]),
]
PAIRED = [one for one in SEVERAL if one.pairs]
ANCHORED = Spin(loss="logistic", beta=0.3, nll_weight=0.5)
OBJECTIVES: dict[str, Comparison] = {
    **{loss: Spin(loss=loss, beta=0.3) for loss in LOSSES},
    "space": Space(loss="space", mu=2.0),
    "alpha-spin": AlphaSpin(loss="alpha-spin", beta=0.3, alpha=0.75),
    "anchored": ANCHORED,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The player's start and another model."""
    folder = tmp_path_factory.mktemp("models")
    return llama(folder / "start", 0), llama(folder / "other", 1)


@pytest.fixture(scope="module")
def logps(folders: tuple[Path, Path]) -> tuple[Logps, Logps]:
    """Of all contests, under the other model, which is the opponent here, and under the start."""

    def of(folder: Path) -> Logps:
        model = load_model(folder)
        return {one.duel_id: plain_logps(model, branches_of(one)).tolist() for one in (*ONE_WINNER, *SEVERAL)}

    return of(folders[1]), of(folders[0])


# --- one winner is a duel


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_winner_and_distinct_losers_are_a_duel(name: str, folders: tuple[Path, Path], logps: tuple[Logps, Logps]) -> None:
    duels = [as_duel(one) for one in ONE_WINNER]
    task, expected = (iteration_task(items, OBJECTIVES[name], *logps) for items in (ONE_WINNER, duels))
    assert_same(by_task(folders[0], task), by_task(folders[0], expected))
    rows = torch.tensor([[*logps[1][one.duel_id], *[0.0] * (3 - len(one.losers))] for one in ONE_WINNER])
    ours, theirs = (one.losses(range(len(ONE_WINNER)), rows).numbers for one in (task, expected))
    assert ours.keys() == theirs.keys()
    for number, value in theirs.items():
        torch.testing.assert_close(ours[number], value, rtol=1e-6, atol=1e-6, msg=number)
    assert [task.loss_scale([1, 2, 3]), task.names[2], len(task)] == [expected.loss_scale([1, 2, 3]), expected.names[2], len(expected)]


def test_several_winners_and_every_loss_by_hand() -> None:
    """Log-probs in exact fractions: the mean over pairs, the anchor's mean over winners, and the weight of the whole."""
    one = contest("ab", 2, 3, [(0, 0), (0, 2), (1, 1)], weight=0.5)
    player, opponent = [-1.0, -2.0, -3.0, -2.5, -4.0], [-2.0, -2.0, -2.0, -3.0, -3.0]
    won, lost = [1.0, 0.0], [-1.0, 0.5, -1.0]  # the ratios
    margins = [won[0] - lost[0], won[0] - lost[2], won[1] - lost[1]]
    expected = sum(math.log1p(math.exp(-0.3 * m)) for m in margins) / 3
    nll = (1.0 / len(one.winners[0]) + 2.0 / len(one.winners[1])) / 2
    task = ContestTask([one], {one.duel_id: opponent}, replace(ANCHORED, nll_weight=2.0))
    found = task.losses([0], torch.tensor([player], dtype=torch.float64))
    assert found.loss_D.item() == pytest.approx(0.5 * (expected + 2.0 * nll), rel=1e-12)
    numbers = {name: value.item() for name, value in found.numbers.items()}
    assert numbers == pytest.approx(
        {
            "margin": sum(margins) / 3,
            "accuracy": 2 / 3,
            "reward_real": 0.3 * (1.0 + 1.0 + 0.0) / 3,
            "reward_generated": 0.3 * (-1.0 - 1.0 + 0.5) / 3,
            "real_logp": -1.5,
            "generated_logp": (-3.0 - 4.0 - 2.5) / 3,
            "nll": nll,
        },
        rel=1e-12,
    )


@pytest.mark.parametrize("mu", [1.0, 4.0])
def test_space_pair_by_pair(mu: float, logps: tuple[Logps, Logps]) -> None:
    task = iteration_task(PAIRED, Space(loss="space", mu=mu), *logps)
    for index, one in enumerate(PAIRED):
        player, opponent = logps[1][one.duel_id], logps[0][one.duel_id]
        reward = [ours - theirs for ours, theirs in zip(player, opponent, strict=True)]
        terms = []
        for i, j in one.pairs:
            won, lost = reward[i], reward[len(one.winners) + j]
            terms.append(math.log1p(mu * math.exp(-won)) + mu * math.log1p(math.exp(lost) / mu))
        found = task.losses([index], torch.tensor([player], dtype=torch.float64)).loss_D.item()
        assert found == pytest.approx(one.weight * sum(terms) / len(terms), rel=1e-12)


# --- likelihood


def test_one_winner_is_an_sft_row(folders: tuple[Path, Path]) -> None:
    winners = [Contest(one.row_id, 0, one.prompt_ids, one.winners, (), (), 1.0) for one in ONE_WINNER]
    examples = [Example(one.row_id, Conversation((), "x"), one.prompt_ids, one.winners[0]) for one in winners]
    ours, theirs = WinnersTask(winners), SftTask(examples)
    assert_same(by_task(folders[0], ours), by_task(folders[0], theirs))
    assert ours.loss_scale([2, 5, 7]) == theirs.loss_scale([2, 5, 7])


def test_several_winners_are_so_many_rows(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """The mean over all tokens of a step: training on the trees is training on their branches one by one."""
    trees = [Contest(one.row_id, 0, one.prompt_ids, one.winners, (), (), 1.0) for one in SEVERAL]
    rows = [Example(f"{one.row_id}{i}", Conversation((), "x"), one.prompt_ids, ids) for one in trees for i, ids in enumerate(one.winners)]
    ours, theirs = settings(batch_size=len(trees)), settings(batch_size=len(rows))
    run_fit(tmp_path / "trees", folders[0], WinnersTask(trees), plan_of(ours, len(trees), epochs=4.0), ours)
    run_fit(tmp_path / "rows", folders[0], SftTask(rows), plan_of(theirs, len(rows), epochs=4.0), theirs)
    found, expected = ([row["loss"] for row in metrics(tmp_path / name)] for name in ("trees", "rows"))
    assert found == pytest.approx(expected, rel=1e-4) and found[-1] < found[0] and len(found) == 4


def test_weights_of_likelihood() -> None:
    one, other = contest("ab", 2, 0, [], weight=0.25), contest("cd", 1, 0, [])
    rows = torch.tensor([[-1.0, -2.0], [-4.0, 0.0]], dtype=torch.float64)
    assert WinnersTask([one, other]).losses([0, 1], rows).loss_D.tolist() == [0.25 * 3.0, 4.0]


# --- contests without pairs


def test_without_pairs_only_the_anchor_is_left(folders: tuple[Path, Path], logps: tuple[Logps, Logps]) -> None:
    alone = [one for one in SEVERAL if not one.pairs]
    task = ContestTask(alone, logps[0], ANCHORED)
    loss_D, gradients = by_task(folders[0], task)
    nlls = [-sum(logp / len(ids) for logp, ids in zip(logps[1][one.duel_id], one.winners, strict=True)) / len(one.winners) for one in alone]
    torch.testing.assert_close(loss_D, 0.5 * torch.tensor(nlls), rtol=1e-4, atol=1e-5, check_dtype=False)
    assert all(torch.isfinite(gradient).all() for gradient in gradients) and any(gradient.any() for gradient in gradients)
    rows = torch.tensor([logps[1][one.duel_id] + [0.0] * (3 - len(one.winners)) for one in alone])
    numbers = task.losses(range(len(alone)), rows).numbers
    assert numbers["margin"].tolist() == [0.0, 0.0] and numbers["accuracy"].tolist() == [0.5, 0.5], "they count as ties"
    assert torch.equal(numbers["generated_logp"], numbers["real_logp"])


@pytest.mark.parametrize("loss", [*LOSSES, "space"])
def test_what_stands_in_empty_columns_is_of_no_account(loss: str, logps: tuple[Logps, Logps]) -> None:
    task = ContestTask(SEVERAL, logps[0], replace(OBJECTIVES[loss], nll_weight=0.5))
    width = max(len(row) for row in logps[1].values())

    def losses(filler: float) -> tuple[Tensor, Tensor]:
        rows = [[*logps[1][one.duel_id], *[filler] * (width - len(logps[1][one.duel_id]))] for one in SEVERAL]
        logps_DR = torch.tensor(rows, requires_grad=True)
        loss_D = task.losses(range(len(SEVERAL)), logps_DR).loss_D
        return loss_D.detach(), torch.autograd.grad(loss_D.sum(), logps_DR)[0]

    for one, other in zip(losses(0.0), losses(math.nan), strict=True):
        assert torch.equal(one, other) and torch.isfinite(one).all()


@given(st.lists(st.sampled_from(range(len(SEVERAL))), min_size=1, max_size=8))
def test_a_contest_does_not_depend_on_those_beside_it(indices: list[int]) -> None:
    draw = torch.Generator().manual_seed(7)
    opponent = {one.duel_id: torch.randn(len(branches_of(one).replies), generator=draw).tolist() for one in SEVERAL}
    player_DR = torch.randn(len(SEVERAL), 5, generator=draw)
    task = ContestTask(SEVERAL, opponent, ANCHORED)
    together = task.losses(indices, player_DR[indices]).loss_D
    alone = torch.cat([task.losses([index], player_DR[[index]]).loss_D for index in indices])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)


# --- in training

ALL = {
    "logistic, anchored": ANCHORED,
    "space": Space(loss="space", mu=1.0, nll_weight=0.5),
    "alpha-spin": AlphaSpin(loss="alpha-spin", beta=0.3, alpha=0.5, nll_weight=0.5),
    "sft": Likelihood(loss="sft"),
}


def trained(start: Path, stage: Path, name: str, logps: tuple[Logps, Logps], section: TrainSection) -> list[float]:
    contests = [Contest(**{**vars(one), "losers": (), "pairs": ()}) for one in SEVERAL] if name == "sft" else SEVERAL
    run_fit(stage, start, iteration_task(contests, ALL[name], *logps), plan_of(section, len(contests), epochs=4.0), section)
    return [row["loss"] for row in metrics(stage)]


@pytest.mark.parametrize("name", ALL)
def test_the_loss_does_not_depend_on_the_packing(name: str, folders: tuple[Path, Path], logps: tuple[Logps, Logps], tmp_path: Path) -> None:
    """Within the bound of test_trajectory.py, over steps in which the loss falls."""
    found = [
        trained(folders[0], tmp_path / f"{tokens}", name, logps, settings(batch_size=3, micro_batch_tokens=tokens))
        for tokens in (100_000, 40, 1)
    ]
    assert len(found[0]) == 8 and found[0][-1] < found[0][0]
    for one in found[1:]:
        assert one == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("objective", [OBJECTIVES["logistic"], Space(loss="space", mu=1.0), ANCHORED], ids=["spin", "space", "anchored"])
def test_the_first_pass_has_margin_exactly_0(objective: Comparison, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """At learning rate 0 every step is a first one: opponent pass and training agree to the last bit, in micro-batches of several
    contests, those without pairs among them."""
    contests = SEVERAL if objective.nll_weight else PAIRED
    section = settings(batch_size=2)
    plan = plan_of(section, len(contests), lr=0.0)
    (tmp_path / "score").mkdir()
    score_duels(tmp_path / "score", folders[0], contests, plan, section, "score")
    found = read_logps(tmp_path / "score")
    assert {name: len(row) for name, row in found.items()} == {one.duel_id: len(one.winners) + len(one.losers) for one in contests}
    run_fit(tmp_path / "train", folders[0], iteration_task(contests, objective, found, {}), plan, section)
    rows = metrics(tmp_path / "train")
    assert len(rows) == len(contests) // 2 and {row["margin"] for row in rows} == {0.0}
    assert {(row["reward_real"], row["reward_generated"], row["accuracy"]) for row in rows} == {(0.0, 0.0, 0.5)}
    if objective == OBJECTIVES["logistic"]:
        order = [[contests[i].weight for i in plan.batch(step)] for step in range(plan.steps)]
        assert [row["loss"] for row in rows] == pytest.approx([math.log(2) * sum(of) / 2 for of in order], rel=1e-12)
