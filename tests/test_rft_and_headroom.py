"""Rejection-sampling fine-tuning as a control, and the headroom of a start, in whole tiny games."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, rows, write_rows

import sparring
from sparring.config import load_recipe
from sparring.control import _winners, unused_prompts
from sparring.errors import UserError
from sparring.rundir import RunDir, read_json
from sparring.stage_names import stage_of, stages_of_game
from sparring.stages.context import RunContext

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A verified game of one iteration with both, and a checker under which some replies pass: those with an even number."""
    folder = tmp_path_factory.mktemp("rft")
    checker = folder / "even.py"
    checker.write_text("def even(completions, **_):\n    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n")
    recipe = {
        **TINY,
        "run_dir": str(folder / "run"),
        "data": {"path": str(write_rows(folder / "rows.jsonl", rows())), "held_out": 8},
        "iterations": 1,
        "target": {"kind": "verified", "checker": f"{checker}:even"},
        "objective": {"loss": "sft"},
        "evaluate": {"samples": 2, "metric": "nll_per_token", "headroom_epochs": 1},
        "controls": [{"kind": "rft", "batch_size": 8}, {"kind": "rft", "name": "rft-twice", "epochs": 2}],
    }
    return sparring.run(recipe), folder / "run"


def test_rft_is_trained_on_passing_and_human_replies_of_the_start(game: tuple[dict[str, Any], Path]) -> None:
    summary, root = game
    assert [control["name"] for control in summary["controls"]] == ["RFT", "rft-twice"]
    twice = read_json(root / "rft-twice" / "train" / "done.json")
    graded = read_json(root / "iterations" / "000" / "grade" / "done.json")
    assert graded["facts"]["rates"]["pass_rate"]["n"] == 24, "every training prompt is judged"
    assert twice["facts"]["steps"] * twice["facts"]["batch_size"] == pytest.approx(2 * 24, abs=4), "all 24 prompts have a winner: the human"


@pytest.mark.parametrize(("human", "most"), [("fallback", 2), ("mix", 1)])
def test_rft_has_as_many_own_winners_as_the_game(game: tuple[dict[str, Any], Path], human: str, most: int) -> None:
    """The human reply is always among them. In a game where it wins only if no reply does, it takes no place of a generated one."""
    _, root = game
    recipe = load_recipe(root / "recipe.yaml")
    one = recipe.model_copy(update={"target": recipe.target.model_copy(update={"human": human, "max_winners": 1})})
    found = _winners(RunContext(one, RunDir(root)))
    assert len(found) == 24 and max(len(contest.winners) for contest in found) == most


def test_rft_of_equal_cost_pays_for_the_replies_that_it_learns_from(game: tuple[dict[str, Any], Path]) -> None:
    _, root = game
    facts = {
        name: read_json(root / name / "done.json")["facts"] for name in ("iterations/000/generate", "iterations/000/train", "rft/train")
    }
    sampled, trained = facts["iterations/000/generate"]["sampled_tokens"], facts["iterations/000/train"]["trained_tokens"]
    cost = sampled + 3 * facts["rft/train"]["trained_tokens"]
    step = 3 * facts["rft/train"]["trained_tokens"] / facts["rft/train"]["steps"]
    assert cost == pytest.approx(sampled + 3 * trained, abs=step)


def test_headroom_is_measured_once_and_told(game: tuple[dict[str, Any], Path]) -> None:
    summary, root = game
    found = summary["headroom"]
    assert found == read_json(root / "start" / "headroom" / "headroom.json")
    assert found["k"] == 2
    assert {"pass_at_1", "greedy", "cool", "any", "nll", "nll_after"} <= found["scores"].keys()
    assert found["scores"]["any"]["value"] >= found["scores"]["pass_at_1"]["value"]
    assert found["scores"]["nll"]["value"] == pytest.approx(summary["start"]["scores"]["nll_per_token"]["value"])
    assert found["sentence"] in (root / "run.log").read_text()


def test_every_stage_of_the_game_is_in_the_table(game: tuple[dict[str, Any], Path]) -> None:
    """With all that holds for it; the short continued SFT of the headroom can be computed on ranks, as all training."""
    _, root = game
    made = {done.parent.relative_to(root).as_posix() for done in root.rglob("done.json")}
    stages = {name: stage for name in made if (stage := stage_of(name)) is not None}
    recipe = load_recipe(root / "recipe.yaml")
    assert stages.keys() == made and made == set(stages_of_game(root, recipe))
    trained = {name for name, stage in stages.items() if stage.part in ("train", "sft")}
    assert "probe/train" in trained and all(stages[name].on_ranks(recipe) for name in trained)
    assert stages["rft/measure"].derived and not stages["start/measure"].derived
    assert [stage_of(name) for name in ("evaluations/letters", "iterations/0/train", "", "iterations/000")] == [None] * 4


def test_a_recipe_may_do_without(tmp_path: Path, game: tuple[dict[str, Any], Path]) -> None:
    _, root = game
    again = sparring.run(root / "recipe.yaml", ["evaluate.headroom=false", "evaluate.headroom_epochs=null", "controls=null"])
    assert "headroom" not in again


def test_rft_needs_grades(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rft needs graded replies"):
        sparring.run({**TINY, "run_dir": str(tmp_path / "run"), "controls": "rft"})


def test_rft_of_random_passes_is_refused(tmp_path: Path) -> None:
    target = {"kind": "verified", "checker": "random", "random_like": "number"}
    with pytest.raises(UserError, match="passes that checker random assigns by chance; train it in a game of number"):
        sparring.run({**TINY, "run_dir": str(tmp_path / "run"), "target": target, "controls": ["continued-sft", "rft"]})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, True),
        ({"controls": "continued-sft"}, False),
        ({"data": {"path": "rows.jsonl", "prompts": {"path": "more.jsonl", "answer": "gold"}}}, False),
        ({"data": {"path": "rows.jsonl"}}, False),
        ({"target": {"kind": "majority", "checker": "rules.py:f"}}, False),
    ],
)
def test_prompts_that_rft_cannot_learn_from_are_told(changes: dict[str, Any], told: bool) -> None:
    """Those whose answer nobody knows, in a majority game."""
    data = {"path": "rows.jsonl", "prompts": "more.jsonl"}
    sections = {"data": data, "target": {"kind": "majority", "checker": "number"}, "controls": "rft", **changes}
    recipe = load_recipe({**TINY, **sections})
    assert ("data.prompts have no answers" in (unused_prompts(recipe, recipe.controls[0]) or "")) == told


def test_rft_without_a_reply_that_passes_is_told(tmp_path: Path) -> None:
    """The human replies alone are left: continued SFT."""
    (tmp_path / "none.py").write_text("def none(completions):\n    return [0.0] * len(completions)\n")
    recipe = {
        **TINY,
        "run_dir": str(tmp_path / "run"),
        "data": {"path": str(write_rows(tmp_path / "rows.jsonl", rows())), "held_out": 8},
        "sft": None,
        "iterations": 1,
        "target": {"kind": "verified", "checker": f"{tmp_path}/none.py:none"},
        "evaluate": {"headroom": False},
        "controls": {"kind": "rft", "epochs": 1},
    }
    sparring.run(recipe)
    assert "RFT: its winners are the human replies alone, so it learns what continued SFT does" in (tmp_path / "run/run.log").read_text()


def test_headroom_needs_answers(tmp_path: Path) -> None:
    recipe = json.loads(json.dumps({**TINY, "run_dir": str(tmp_path / "run")}))
    recipe["evaluate"] = {"headroom": True}
    with pytest.raises(UserError, match="headroom"):
        sparring.run(recipe)
