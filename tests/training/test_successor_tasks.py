"""The tasks of SPACE, T-SPIN, alpha-SPIN and the anchor on a tiny model: branches shared, nothing computed twice, packed or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fit import DUELS, llama, metrics, plain_opponent, plan_of, run_fit, settings
from torch import Tensor

from sparring.data.records import Duel, Triplet
from sparring.objectives.alpha_spin import AlphaSpin
from sparring.objectives.shared import DuelLogps
from sparring.objectives.space import Space, space_loss
from sparring.objectives.t_spin import TSpin, triplet_loss
from sparring.policy.batches import Branches, branches_of
from sparring.policy.load import load_model
from sparring.policy.score import Scorer, plain_logps
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.tasks import DuelTask, SpinTask, Task, branch_columns, iteration_task

ALL_IDENTICAL = Duel("same", 0, (3, 4), (5, 6, 63), ((5, 6, 63), (5, 6, 63)))
WITH_IDENTICAL = [*DUELS[:5], ALL_IDENTICAL]
# replies of the start: the opponent's own in the first, the human one in the second, and new ones
TRIPLETS = [
    Triplet(**vars(duel), start_ids=start)
    for duel, start in zip(
        WITH_IDENTICAL,
        [
            DUELS[0].generated_ids,
            (DUELS[1].real_ids, (7, 63)),
            ((8, 63), (9, 9, 63), (8, 63)),
            ((11, 63),),
            ((12, 63), DUELS[4].generated_ids[0]),
            ((13, 63), (5, 6, 63)),
        ],
        strict=True,
    )
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The player's start and another model."""
    folder = tmp_path_factory.mktemp("models")
    return llama(folder / "start", 0), llama(folder / "other", 1)


def explicit(duel: Duel) -> Branches:
    """Every reply as a branch of its own, equal ones too."""
    start = duel.start_ids if isinstance(duel, Triplet) else ()
    return Branches(duel.prompt_ids, (duel.real_ids, *duel.generated_ids, *start))


def padded(rows: Sequence[Tensor], columns: int) -> Tensor:
    return torch.stack([torch.cat([row, row.new_zeros(columns - len(row))]) for row in rows])


def scored(folder: Path, trees: Sequence[Branches], layout: str = "tree") -> tuple[Scorer, Tensor]:
    scorer = Scorer(load_model(folder))
    scorer.layout = layout
    return scorer, scorer(scorer.collate(trees))


def gradients(scorer: Scorer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(scorer.model.parameters())))


def by_task(folder: Path, task: Task, layout: str = "tree") -> tuple[Tensor, list[Tensor]]:
    indices = range(len(task))
    scorer, logps_DR = scored(folder, [task.branches(index) for index in indices], layout)
    loss_D = task.losses(indices, logps_DR).loss_D
    return loss_D.detach(), gradients(scorer, loss_D.mean())


def assert_same(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def space_task(other: Path, duels: Sequence[Duel] = WITH_IDENTICAL) -> DuelTask:
    model = load_model(other)
    return DuelTask(duels, Space(loss="space", mu=2.0), {duel.duel_id: plain_logps(model, branches_of(duel)).tolist() for duel in duels})


def anchored(task: DuelTask, nll_weight: float) -> DuelTask:
    return DuelTask(task.duels, replace(task.objective, nll_weight=nll_weight), task.opponent_logps)


def triplet_task(alpha: float, history_weight: float) -> Task:
    return iteration_task(TRIPLETS, TSpin(loss="t-spin", beta=alpha, history_weight=history_weight), {}, {})


def test_identical_replies_of_space_equal_computed_ones(folders: tuple[Path, Path]) -> None:
    start, other = folders
    model, trees = load_model(other), [explicit(duel) for duel in WITH_IDENTICAL]
    scorer, logps_DR = scored(start, trees)
    against_DR = padded([plain_logps(model, tree) for tree in trees], logps_DR.shape[1])
    mask_DK = torch.tensor([[k < len(tree.replies) for k in range(1, logps_DR.shape[1])] for tree in trees])
    loss_D = space_loss(*(DuelLogps(logps[:, 0], logps[:, 1:]) for logps in (logps_DR, against_DR)), mask_DK, mu=2.0).loss_D
    task = space_task(other)
    assert [len(task.branches(index).replies) for index in range(6)] == [2, 2, 4, 2, 2, 1], "the identical ones are not computed"
    assert_same(by_task(start, task), (loss_D.detach(), gradients(scorer, loss_D.mean())))


def test_shared_replies_of_t_spin_equal_computed_ones(folders: tuple[Path, Path]) -> None:
    start, _ = folders
    trees = [explicit(duel) for duel in TRIPLETS]
    scorer, logps_DR = scored(start, trees)
    losses = []
    for row, duel in zip(logps_DR, TRIPLETS, strict=True):
        k = len(duel.generated_ids)
        player, start_DK = DuelLogps(row[:1], row[None, 1 : 1 + k]), row[None, 1 + k : 1 + 2 * k]
        losses.append(triplet_loss(player, start_DK, torch.ones(1, k, dtype=torch.bool), alpha=0.7, history_weight=0.5).loss_D)
    loss_D = torch.cat(losses)
    task = triplet_task(0.7, 0.5)
    assert [len(task.branches(index).replies) for index in range(6)] == [len(set(tree.replies)) for tree in trees] == [2, 3, 5, 3, 3, 2]
    assert_same(by_task(start, task), (loss_D.detach(), gradients(scorer, loss_D.mean())))


def test_without_weight_the_replies_of_the_start_are_not_computed(folders: tuple[Path, Path]) -> None:
    task = triplet_task(0.7, 0.0)
    assert [len(task.branches(index).replies) for index in range(6)] == [2, 2, 4, 2, 2, 1]
    weightless = triplet_task(0.7, 1e-12)
    assert_same(by_task(folders[0], task), by_task(folders[0], weightless))


@pytest.mark.parametrize("name", ["space", "t-spin", "anchored"])
def test_packed_trees_and_padded_rows_agree(name: str, folders: tuple[Path, Path]) -> None:
    start, other = folders
    task: Task = {"space": space_task(other), "t-spin": triplet_task(1.0, 0.3), "anchored": anchored(space_task(other), 0.5)}[name]
    assert_same(by_task(start, task, "tree"), by_task(start, task, "rows"))


def test_the_anchor_adds_its_weight_times_the_likelihood_per_token(folders: tuple[Path, Path]) -> None:
    start, other = folders
    task = SpinTask(DUELS, plain_opponent(other), 0.3, "hinge")
    with_nll = anchored(task, 0.25)
    assert (with_nll.unit, len(with_nll), with_nll.names[3], with_nll.loss_scale([1, 2])) == ("duels", 14, task.names[3], 0.5)
    indices = [2, 0, 5]
    _, logps_DR = scored(start, [task.branches(index) for index in indices])
    plain, found = task.losses(indices, logps_DR), with_nll.losses(indices, logps_DR)
    nll_D = -logps_DR[:, 0] / torch.tensor([len(DUELS[index].real_ids) for index in indices])
    torch.testing.assert_close(found.loss_D, plain.loss_D + 0.25 * nll_D, rtol=1e-14, atol=0)
    assert set(found.numbers) == {*plain.numbers, "nll"} and torch.equal(found.numbers["nll"], nll_D.detach())


def test_a_duel_of_identical_replies_only_is_told_by_its_human_one(folders: tuple[Path, Path]) -> None:
    """An anchored SPIN keeps it: a margin of 0, no NaN in the log, and the anchor's gradient."""
    start, _ = folders
    task = anchored(SpinTask([ALL_IDENTICAL], {"same@0": [-9.0]}, 1.0, "logistic"), 1.0)
    scorer, logps_DR = scored(start, [task.branches(0)])
    found = task.losses([0], logps_DR)
    real = logps_DR[0, 0].item()
    assert found.loss_D.item() == pytest.approx(math.log(2) - real / 3, rel=1e-12)
    numbers = {name: value.item() for name, value in found.numbers.items()}
    assert (numbers["margin"], numbers["accuracy"], numbers["generated_logp"]) == (0.0, 0.5, real)
    assert numbers["reward_generated"] == numbers["reward_real"] == pytest.approx(real + 9.0)
    assert any(gradient.abs().max() > 0 for gradient in gradients(scorer, found.loss_D.sum()))


def test_the_first_step_of_space_in_training(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Margin 0 and the value of the formula to the last digit, duels of identical replies only among them; the next steps go down."""
    start, section = folders[0], settings(batch_size=3)
    plan = plan_of(section, len(WITH_IDENTICAL), epochs=4.0)
    (tmp_path / "score").mkdir()
    score_duels(tmp_path / "score", start, WITH_IDENTICAL, plan, section, "score")
    task = iteration_task(WITH_IDENTICAL, Space(loss="space", mu=2.0), read_logps(tmp_path / "score"), {})
    run_fit(tmp_path / "train", start, task, plan, section)
    rows = metrics(tmp_path / "train")
    assert rows[0]["margin"] == 0.0 and rows[0]["loss"] == pytest.approx(math.log(3) + 2 * math.log(1.5), rel=1e-14)
    assert rows[-1]["loss"] < rows[0]["loss"] and all(row["loss"] == row["loss"] for row in rows)


def test_the_first_step_of_t_spin_in_training(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """Its loss is what unbatched forwards of the same model say, and nothing has been scored before."""
    start, section = folders[0], settings(batch_size=6)
    model = load_model(start)
    expected, history = [], []
    for duel in TRIPLETS:
        logp = dict(zip(explicit(duel).replies, plain_logps(model, explicit(duel)).tolist(), strict=True))
        pairs = list(zip(duel.generated_ids, duel.start_ids, strict=True))
        gaps = [(logp[duel.real_ids] - logp[new], logp[new] - logp[old]) for new, old in pairs]
        expected.append(sum(math.log1p(math.exp(-u)) + 0.5 * math.log1p(math.exp(-v)) for u, v in gaps) / len(gaps))
        history.append(sum(v for _, v in gaps) / len(gaps))
    task = triplet_task(1.0, 0.5)
    run_fit(tmp_path / "train", start, task, plan_of(section, len(TRIPLETS)), section)
    row = metrics(tmp_path / "train")[0]
    assert row["loss"] == pytest.approx(sum(expected) / 6, rel=1e-5) and row["history_margin"] == pytest.approx(sum(history) / 6, abs=1e-5)
    assert "reward_real" not in row


def test_alpha_spin_is_spin_against_the_mixture(folders: tuple[Path, Path]) -> None:
    start, other = folders
    opponent, base = plain_opponent(other), plain_opponent(start)
    objective = AlphaSpin(loss="alpha-spin", beta=0.3, alpha=0.75)
    mixed = objective.against(opponent, base)
    for name, row in mixed.items():
        assert row == pytest.approx([0.75 * ours + 0.25 * theirs for ours, theirs in zip(opponent[name], base[name], strict=True)])
    task = iteration_task(DUELS, objective, opponent, base)
    _, logps_DR = scored(start, [task.branches(index) for index in range(4)])
    found, expected = (one.losses(range(4), logps_DR).loss_D for one in (task, SpinTask(DUELS, mixed, 0.3, "logistic")))
    assert torch.equal(found, expected)
    spin = iteration_task(DUELS, replace(objective, alpha=1.0), opponent, base).losses(range(4), logps_DR).loss_D
    torch.testing.assert_close(spin, SpinTask(DUELS, opponent, 0.3, "logistic").losses(range(4), logps_DR).loss_D, rtol=1e-12, atol=1e-12)


def test_branch_columns_by_hand() -> None:
    trees = [Branches((1,), ((5,), (6,), (7,))), Branches((1,), ((8,), (9,)))]
    columns_DK, mask_DK = branch_columns(trees, [((7,), (5,), (7,)), ((9,),)], torch.device("cpu"))
    assert columns_DK.tolist() == [[2, 0, 2], [1, 0, 0]]
    assert mask_DK.tolist() == [[True] * 3, [True, False, False]]
