"""Status, trackers, cost, samples and exports of games with a verified or majority target."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import Game
from zygote import Zygote, written

from sparring.config import load_recipe
from sparring.cost import iterations_cost
from sparring.live import rates, read_state
from sparring.rundir import RunDir, read_json, write_json
from sparring.tracking.sending import Point, points, series_of


@pytest.fixture
def copied(majority_game: Game, tmp_path: Path, zygote: Zygote) -> Game:
    """The finished majority game, to be changed."""
    game = Game(tmp_path / "game", zygote, {})
    shutil.copytree(majority_game.folder, game.folder, symlinks=True, dirs_exist_ok=True)
    return game


def test_status_shows_rates_and_several_replies(majority_game: Game) -> None:
    result = majority_game.command("status", "run")
    assert result.code == 0 and result.err == "", result.err
    summary = majority_game.json("summary.json")
    rate, share = (summary["iterations"][1]["rates"][name] for name in ("pass_rate", "vote_share"))
    told = " ".join(result.out.split())
    assert f"graded iteration 1: pass rate {rate['value']:.3f} ± {rate['stderr']:.3f}, vote share {share['value']:.3f}" in told
    for header in ("pass@1 (k=4)", "pass@4", "maj@4", "vote share", "duel margin"):
        assert header in result.out, header
    assert f"{summary['start']['scores']['pass_at_4']['value']:.3f}" in result.out


@pytest.mark.parametrize("columns", ["60", "80"])
def test_status_fits_a_narrow_terminal(majority_game: Game, columns: str) -> None:
    result = majority_game.command("status", "run", environment={"COLUMNS": columns, "FORCE_COLOR": "1", "NO_COLOR": "1"})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", result.out).splitlines()
    assert result.code == 0 and max(map(len, lines)) <= int(columns)


def test_rates_are_those_of_the_newest_grades(copied: Game, played: Game) -> None:
    assert rates(read_state(played.root)) is None
    assert rates(read_state(copied.root))[0] == "iteration 1"
    (copied.root / "iterations/001/grade/done.json").unlink()
    assert rates(read_state(copied.root))[0] == "iteration 0"
    done = copied.root / "iterations/000/grade/done.json"
    found = read_json(done)
    write_json(done, {**found, "facts": {**found["facts"], "rates": {}}})
    assert "no reply has a score or an answer" in copied.command("status", "run").out


def test_a_kill_between_grading_and_training_says_how_to_resume(copied: Game) -> None:
    graded = written("001/grade.partial/shard-.*")
    assert copied.run("--restart-from", "iterations/001/grade", sabotage=[graded]).code == -9
    out = copied.command("status", "run").out
    assert (
        "with iterations/001/grade, from its first 52 prompts" in out
        and "graded" in out
        and "iteration 0: pass rate" in " ".join(out.split())
    )


def sent(game: Game) -> list[Point]:
    (series,) = (one for one in series_of(load_recipe(game.folder / "recipe.yaml")) if one.name == "game")
    return list(points(RunDir(game.root), series, -1))


def test_trackers_get_the_rates_with_the_first_step_and_all_scores_with_the_last(majority_game: Game) -> None:
    found = sent(majority_game)
    first = [point for point in found if "opponent/pass_rate" in point.values]
    assert [point.values["train/iteration"] for point in first] == [0, 1]
    firsts = [next(point for point in found if point.values.get("train/iteration") == t) for t in (0, 1)]
    assert first == firsts
    for t, point in enumerate(first):
        own = majority_game.json("summary.json")["iterations"][t]["rates"]
        assert point.values["opponent/vote_share"] == own["vote_share"]["value"]
        assert point.values["opponent/pass_rate_stderr"] == own["pass_rate"]["stderr"]
    scores = majority_game.json("iterations/001/evaluate/scores.json")
    last = found[-1].values
    assert all(last[f"scores/{name}"] == scores[name]["value"] for name in ("pass_at_4", "maj_at_4", "vote_share", "distinct_answers"))


def test_an_iteration_of_one_step_has_rates_and_scores_in_one_point(copied: Game) -> None:
    file = copied.root / "iterations/001/train/metrics.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert {"opponent/pass_rate", "scores/pass_at_4", "train/loss"} <= set(sent(copied)[-1].values)


def test_grades_and_headroom_cost_the_iterations_nothing(majority_game: Game) -> None:
    """What a control may cost is what the iterations computed: sampling, opponent pass and training."""
    recipe, run = load_recipe(majority_game.root / "recipe.yaml"), RunDir(majority_game.root)
    stages = majority_game.json("summary.json")["stages"]
    parts = {"generate": "sampled_tokens", "score": "scored_tokens", "train": "trained_tokens"}
    assert iterations_cost(run, recipe, 2).tokens == sum(
        stages[f"iterations/00{t}/{part}"][key] for t in (0, 1) for part, key in parts.items()
    )
    assert "start/headroom" in stages and "iterations/001/grade" in stages


def test_likelihood_of_winners_costs_no_opponent_pass(verified_game: Game) -> None:
    recipe, run = load_recipe(verified_game.root / "recipe.yaml"), RunDir(verified_game.root)
    assert not (verified_game.root / "iterations/000/score").exists()
    stages = verified_game.json("summary.json")["stages"]
    once, trained = stages["iterations/000/generate"]["sampled_tokens"], stages["iterations/000/train"]["trained_tokens"]
    assert iterations_cost(run, recipe, 1).forward_tokens == once + 3 * trained


def test_players_answer_and_are_exported(majority_game: Game, verified_game: Game) -> None:
    for game in (majority_game, verified_game):
        result = game.command("sample", "run", "add 7 5")
        assert result.code == 0 and "iteration 0" in result.out, result.err
        assert game.command("export", "run", "exported").code == 0
        assert json.loads((game.folder / "exported/config.json").read_text())["model_type"]
