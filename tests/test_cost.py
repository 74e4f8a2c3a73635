"""What a player has cost is what the recipe has a use for, whatever an earlier one has left in the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Game, rows, write_rows
from test_objective_games import small_game
from zygote import Zygote

import sparring
from sparring.config import Recipe, load_recipe
from sparring.cost import Cost, control_cost, cost_of, iterations_cost
from sparring.data.prepare import read_examples
from sparring.data.records import Duel
from sparring.dpo import _epochs
from sparring.opponent import decode
from sparring.opponent.replies import read_replies
from sparring.policy.batches import Layout
from sparring.rundir import RunDir, read_json

pytestmark = pytest.mark.long

FACTS = {
    "sft": {"trained_tokens": 1},
    "iterations/000/generate": {"sampled_tokens": 10},
    "iterations/000/score": {"scored_tokens": 100},
    "iterations/000/train": {"trained_tokens": 1_000},
    "iterations/000/measure": {"sampled_tokens": 7},
    "iterations/001/score-start": {"scored_tokens": 10_000},
    "mine/score": {"scored_tokens": 100_000},
    "mine/train": {"trained_tokens": 1_000_000, "passes": 2},
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path)
    for name, facts in FACTS.items():
        found.stage(name, {}, lambda stage, facts=facts: facts)  # type: ignore[misc]
    return found


def recipe(**changes: Any) -> Recipe:
    return load_recipe({**TINY, "controls": [], **changes})


@pytest.mark.parametrize(
    ("objective", "tokens", "forward_tokens"),
    [
        ({"loss": "logistic"}, 1_110, 3_110),
        ({"loss": "t-spin"}, 1_010, 3_010),  # compares likelihoods alone
        ({"loss": "alpha-spin"}, 11_110, 13_110),
    ],
)
def test_iterations_cost_what_their_objective_uses(run: RunDir, objective: dict[str, Any], tokens: int, forward_tokens: int) -> None:
    found = iterations_cost(run, recipe(objective=objective), 2)
    assert (found.tokens, found.forward_tokens) == (tokens, forward_tokens)


def test_a_control_costs_what_its_kind_uses(run: RunDir) -> None:
    dpo, sft = ({"name": "mine", "kind": kind, **more} for kind, more in (("dpo", {"pairs": "p.jsonl"}), ("continued-sft", {})))
    assert control_cost(run, recipe(controls=[dpo]), "mine").forward_tokens == 2_100_000
    assert control_cost(run, recipe(controls=[sft]), "mine").forward_tokens == 2_000_000
    graded = {"target": {"kind": "verified", "checker": "exact"}, "evaluate": {"answer_pattern": ".+"}}
    rft = {"name": "mine", "kind": "rft"}  # 10 tokens of iteration 0's sampling beside its own training
    assert control_cost(run, recipe(controls=[rft], **graded), "mine").forward_tokens == 2_000_010


def test_an_sft_stage_that_the_game_no_longer_starts_from(run: RunDir) -> None:
    assert cost_of(run, recipe(), ["sft"]).tokens == 1 and cost_of(run, recipe(sft=None), ["sft"]) == Cost()


def test_a_control_is_equal_to_the_game_that_was_played_last(tmp_path: Path, zygote: Zygote) -> None:
    """Log-probs of the objective before stay where they are, as `--restart-from` says, and the control does not pay for them."""
    changes: dict[str, Any] = {"iterations": 1, "controls": {"batch_size": 1}}
    changed, fresh = (
        small_game(tmp_path / name, zygote, {"loss": loss}, **changes) for name, loss in (("changed", "logistic"), ("fresh", "t-spin"))
    )
    assert changed.run().code == 0 and fresh.run().code == 0
    before = steps(changed)
    refused = changed.run("objective.loss=t-spin")
    assert refused.code == 2 and "--restart-from iterations/000/train" in refused.err
    assert changed.run("objective.loss=t-spin", "--restart-from", "iterations/000/train").code == 0
    assert (changed.root / "iterations/000/score/done.json").exists()
    assert steps(changed) == steps(fresh) < before
    ours, theirs = (game.json("summary.json") for game in (changed, fresh))
    assert ours["stages"].keys() == theirs["stages"].keys() and "iterations/000/score" not in ours["stages"]
    assert ours["controls"] == theirs["controls"]


def steps(game: Game) -> int:
    return game.json("continued-sft/train/done.json")["facts"]["steps"]


def test_a_prompt_is_paid_for_once_whatever_the_number_of_replies(played: Game) -> None:
    """As packed sampling reads it; the last token of a reply is drawn and never fed."""
    examples, replies = read_examples(played.root / "data/train.parquet"), read_replies(played.root / "iterations/000/generate")
    assert len(replies) == 2 * len(examples)
    computed = sum(len(example.prompt_ids) for example in examples) + sum(len(reply.token_ids) - 1 for reply in replies)
    assert played.json("iterations/000/generate/done.json")["facts"]["sampled_tokens"] == computed


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_dpo_pays_for_every_prompt_that_its_layout_computes(layout: Layout) -> None:
    """Pairs with prompts of 10 tokens and replies of 3: 14 tokens a pair where the prompt is shared, 24 where it is not."""
    duels = [Duel(str(n), 0, (1,) * 10, (2, 3, n), ((4, 5, n),)) for n in range(7)]
    of_epoch = 7 * {"tree": 14, "rows": 24}[layout]
    assert _epochs(duels, 10 * of_epoch, 3, layout) == pytest.approx(3)  # the reference's pass, then 3 epochs of 3 passes
    assert _epochs(duels, of_epoch, 3, layout) == pytest.approx(1 / 4)


def test_padded_batches_read_a_prompt_for_every_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that takes no packed rows, for which our tiny one passes here."""
    monkeypatch.setattr(decode, "_agreed", {})
    monkeypatch.setattr(decode, "_gap", lambda *_: math.inf)
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows(10))
    sparring.run({**TINY, "data": {"path": "rows.jsonl", "held_out": 4}, "sft": None, "controls": [], "iterations": 1, "showcase": []})
    stage = tmp_path / "run/iterations/000/generate"
    replies, examples = read_replies(stage), read_examples(tmp_path / "run/data/train.parquet")
    computed = 2 * sum(len(example.prompt_ids) for example in examples) + sum(len(reply.token_ids) - 1 for reply in replies)
    assert read_json(stage / "done.json")["facts"]["sampled_tokens"] == computed
