"""Plans of games with a graded target: further prompts, winners and losers, several replies to held-out prompts, headroom, rft."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from by_hand import GPU, LENGTHS, llama, recipe_of
from conftest import SUMS, Game, write_rows
from zygote import Zygote

from sparring.config import Recipe, load_recipe
from sparring.data.chat import Chat
from sparring.data.prepare import prepare
from sparring.errors import UserError
from sparring.planning.estimate import StagePlan, contest_branches, estimate
from sparring.planning.hardware import Samplers
from sparring.planning.lengths import Given, find_lengths
from sparring.planning.work import SCORING, sampling_work, tree_work
from sparring.policy.tiny import byte_tokenizer
from sparring.rundir import write_json

VERIFIED = {"kind": "verified", "checker": "number"}
ASKED = replace(LENGTHS, unanswered_rows=300, unanswered_prompt=20, longest_unanswered=80)


def target_recipe(*overrides: str, target: dict[str, Any] = VERIFIED, **sections: Any) -> Recipe:
    given = ["sampling.replies_per_prompt=4", "iterations=2", "evaluate.headroom=false", *overrides]
    return recipe_of(*given, target=target, **sections)


def stages(recipe: Recipe, lengths: Any = ASKED) -> dict[str, StagePlan]:
    return {f"{stage.owner}/{stage.kind}": stage for stage in estimate(recipe, llama(), lengths, GPU).stages}


# --- prompts that nobody has answered


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"say {n}", "completion": f"{n}"} for n in range(60)])
    asked = [{"prompt": "p" * (n % 9 + 1) + str(n)} for n in range(70)]
    write_rows(tmp_path / "prompts.jsonl", [*asked, *asked[:5]])
    return {"path": str(tmp_path / "rows.jsonl"), "held_out": 20, "prompts": str(tmp_path / "prompts.jsonl")}


def test_prompts_are_measured_as_a_run_reads_them(data: dict[str, Any]) -> None:
    recipe = recipe_of(path="builtin:tiny", data=data, target={"kind": "majority", "checker": "number"}, sampling={"replies_per_prompt": 4})
    made = prepare(recipe.data, Chat(byte_tokenizer()), recipe.seed)
    found = find_lengths(recipe, Given())
    tokens = [len(example.prompt_ids) for example in made.prompts]
    assert (found.unanswered_rows, found.longest_unanswered) == (len(made.prompts), max(tokens)) == (70, found.longest_unanswered)
    assert found.unanswered_prompt == pytest.approx(sum(tokens) / 70)
    everybody = [len(example.prompt_ids) for example in (*made.train, *made.prompts)]
    assert found.played.train_rows == 40 + 70 and found.played.prompt == pytest.approx(sum(everybody) / 110, rel=0.01)
    assert find_lengths(recipe, Given(prompt_tokens=99)).unanswered_prompt == 99


def test_too_long_prompts_and_a_subset_are_left_out(data: dict[str, Any]) -> None:
    target = {"kind": "majority", "checker": "number"}
    most = 40
    recipe = recipe_of(f"data.max_prompt_tokens={most}", path="builtin:tiny", data=data, target=target, sampling={"replies_per_prompt": 4})
    made = prepare(recipe.data, Chat(byte_tokenizer()), recipe.seed)
    assert find_lengths(recipe, Given()).unanswered_rows == len(made.prompts)
    few = load_recipe(recipe, ["data.prompts.max_examples=7"])
    assert find_lengths(few, Given()).unanswered_rows == 7


def test_prompts_of_the_rows_are_left_out(data: dict[str, Any], tmp_path: Path) -> None:
    target, others = {"kind": "majority", "checker": "number"}, [{"prompt": f"tell {n}"} for n in range(7)]
    answered = [{"prompt": f"say  {n}\n" if n % 2 else f"say {n}"} for n in range(60)]
    for prompts in ([*others, *answered], answered):
        write_rows(tmp_path / "prompts.jsonl", prompts)
        recipe = recipe_of(path="builtin:tiny", data=data, target=target, sampling={"replies_per_prompt": 4})
        assert find_lengths(recipe, Given()).unanswered_rows == len(prompts) - 60


def test_prompts_that_would_have_to_be_fetched_are_taken_from_the_recipe(data: dict[str, Any]) -> None:
    target = {"kind": "majority", "checker": "number"}
    there = {**data, "prompts": {"path": "some/prompts", "max_examples": 500}}
    recipe = recipe_of(path="builtin:tiny", data=there, target=target, sampling={"replies_per_prompt": 4})
    found = find_lengths(recipe, Given())
    assert (found.unanswered_rows, found.unanswered_prompt) == (500, found.prompt)
    with pytest.raises(UserError, match=r"data\.prompts\.max_examples: the number of prompts in some/prompts is not known"):
        find_lengths(load_recipe(recipe, ["data.prompts.max_examples=null"]), Given())


def test_sampling_reads_all_prompts_and_measuring_only_those_with_a_reply() -> None:
    found, without = stages(target_recipe()), stages(target_recipe(), LENGTHS)
    work = found["iterations/000/generate"].work
    assert work.tokens == pytest.approx(100 * 40 + 300 * 20 + 400 * 4 * 19)
    assert found["start/measure"].work == without["start/measure"].work
    longest = [one["iterations/000/generate"].memory.logits for one in (found, without)]
    assert longest[0] < longest[1], "with a longest prompt of 80 tokens fewer replies are drawn at once"


# --- winners and losers


@pytest.mark.parametrize(
    ("target", "changes", "branches"),
    [
        ({}, [], 5),  # of 4 replies and the human one
        ({}, ["sampling.replies_per_prompt=16"], 8),
        ({"max_winners": 1, "max_losers": 1}, [], 2),
        ({"max_winners": 1, "max_losers": 9}, [], 5),
        ({"human": "only"}, ["sampling.replies_per_prompt=2"], 3),
        ({"max_winners": 2}, ["objective.loss=sft"], 2),
        ({"max_winners": 9}, ["objective.loss=sft"], 4),
        ({"max_winners": 9, "human": "mix"}, ["objective.loss=sft"], 5),
    ],
)
def test_branches_of_a_prompt(target: dict[str, Any], changes: list[str], branches: int) -> None:
    assert contest_branches(target_recipe(*changes, target={**VERIFIED, **target})) == branches


def test_trees_of_winners_and_losers_by_hand() -> None:
    found = stages(target_recipe("train.epochs=2", "objective.window=2"))
    prompt = (100 * 40 + 300 * 20) / 400
    tree = tree_work(llama(), SCORING, prompt, (20,) * 5)
    assert found["iterations/000/score"].work.tokens == pytest.approx(400 * tree.tokens)
    assert found["iterations/001/score"].work.flops == pytest.approx(2 * 400 * tree.flops)
    assert found["iterations/001/train"].work.tokens == pytest.approx(2 * 2 * 400 * tree.tokens)
    fewer = stages(target_recipe(target={**VERIFIED, "max_winners": 1, "max_losers": 1}))
    assert found["iterations/000/train"].memory.total > fewer["iterations/000/train"].memory.total, "a wider tree"


def test_likelihood_of_winners_needs_no_opponent() -> None:
    found = stages(target_recipe("objective.loss=sft"))
    assert [name for name in found if name.startswith("iterations/000")] == [
        f"iterations/000/{kind}" for kind in ("generate", "train", "measure")
    ]
    tree = tree_work(llama(), SCORING, (100 * 40 + 300 * 20) / 400, (20,) * 4)
    assert found["iterations/000/train"].work.tokens == pytest.approx(400 * tree.tokens * 2), "the paper's two epochs"


def test_rft_pays_for_the_replies_that_it_learns_from() -> None:
    found = stages(target_recipe("controls=[rft, continued-sft]"))
    spent = sum(
        found[f"iterations/00{t}/{kind}"].work.tokens * (3 if kind == "train" else 1)
        for t in (0, 1)
        for kind in ("generate", "score", "train")
    )
    drawn = found["iterations/000/generate"].work.tokens
    assert 3 * found["rft/train"].work.tokens == pytest.approx(spent - drawn)
    assert 3 * found["continued-sft/train"].work.tokens == pytest.approx(spent)


# --- held-out prompts


def test_several_replies_to_held_out_prompts() -> None:
    recipe = target_recipe("evaluate.samples=8", "evaluate.greedy=true")
    drawn = sum((sampling_work(llama(), recipe, LENGTHS, 10, count, Samplers()).tokens for count in (8, 1)), 0.0)
    scored = tree_work(llama(), SCORING, 40, (30, 20), 10).tokens
    assert stages(recipe)["start/measure"].work.tokens == pytest.approx(drawn + scored)
    assert stages(target_recipe("evaluate.greedy=true"))["start/measure"].work.tokens < drawn


def test_headroom_is_planned_where_it_is_measured() -> None:
    recipe = target_recipe("evaluate.headroom=true", "evaluate.samples=6", "evaluate.headroom_epochs=2")
    found = stages(recipe)
    drawn = [sampling_work(llama(), recipe, LENGTHS, 10, count, Samplers()).tokens for count in (6, 6, 1)]
    assert found["start/headroom"].work.tokens == pytest.approx(sum(drawn))
    assert found["probe/train"].work.tokens == pytest.approx(2 * 100 * (40 + 30 - 1))
    assert not {"start/headroom", "probe/train"} & set(stages(target_recipe()))
    assert "probe/train" not in stages(target_recipe("evaluate.headroom=true"))


def test_a_game_at_a_low_temperature_has_no_lower_one() -> None:
    """Its headroom has replies at the temperature of the game and greedy ones."""
    recipe = target_recipe("evaluate.headroom=true", "evaluate.samples=6", "sampling.temperature=0.7")
    drawn = [sampling_work(llama(), recipe, LENGTHS, 10, count, Samplers()).tokens for count in (6, 1)]
    assert stages(recipe)["start/headroom"].work.tokens == pytest.approx(sum(drawn))


# --- what a plan says, and what a game takes


@pytest.mark.long
@pytest.mark.parametrize("name", ["majority_game", "verified_game"])
def test_a_played_game_stays_within_its_plan(name: str, request: pytest.FixtureRequest) -> None:
    """Tokens of sampling to the share by which replies differ from human ones in length; at most those of training."""
    game: Game = request.getfixturevalue(name)
    result = game.command("plan", "recipe.yaml", "--json", "plan.json")
    assert result.code == 0, result.err
    told = " ".join(result.out.split())
    assert "24 prompts without replies" in told and "grading is not counted" in told
    assert ("no opponent log-probs are computed" if name == "verified_game" else "winners and losers, the most that") in told
    plan = json.loads((game.folder / "plan.json").read_text())
    assert any("evaluate.samples (4)" in line for line in plan["assumptions"])
    planned = {stage["stage"]: stage["tokens"] for stage in plan["stages"]}
    done = {stage: cost for stage, cost in game.json("summary.json")["stages"].items() if stage.startswith("iterations")}
    for stage, cost in done.items():
        if "sampled_tokens" in cost:
            assert cost["sampled_tokens"] == pytest.approx(planned[stage], rel=0.15)
        for key in ("scored_tokens", "trained_tokens"):
            assert cost.get(key, 0) <= planned.get(stage, 0), stage
    assert {stage for stage in done if not stage.endswith(("grade", "evaluate"))} == {
        stage for stage in planned if stage.startswith("iterations")
    }


def test_the_plan_shows_the_headroom_of_every_seed_that_has_measured_it(majority_game: Game, tmp_path: Path, zygote: Zygote) -> None:
    """Printed and as JSON; of a recipe with seeds too, whose games are in folders of their own."""
    found = majority_game.json("start/headroom/headroom.json")
    assert planned_headroom(majority_game, tmp_path) == ([{"seed": 0, **found}], ["Headroom of the start"])
    game = Game(tmp_path / "game", zygote, {**SUMS, "data": {"path": "builtin:tasks"}, "seeds": [3, 4, 5]})
    for seed in (3, 5):
        folder = game.root / f"seed-{seed}/start/headroom"
        folder.mkdir(parents=True)
        write_json(folder / "headroom.json", {**found, "k": seed})
    written, titles = planned_headroom(game, tmp_path)
    assert [(one["seed"], one["k"]) for one in written] == [(3, 3), (5, 5)]
    assert titles == ["Headroom of the start, seed 3", "Headroom of the start, seed 5"]


def planned_headroom(game: Game, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What `sparring plan` writes, and the titles that it prints."""
    result = game.command("plan", "recipe.yaml", "--hardware", "cpu", "--json", folder / "plan.json")
    assert result.code == 0, result.err
    return json.loads((folder / "plan.json").read_text())["headroom"], re.findall(r"^ *(Headroom.*?) *$", result.out, re.MULTILINE)
