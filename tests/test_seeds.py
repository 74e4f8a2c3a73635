"""A game per seed: resumed like one, summed up by hand, and compared as a whole."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from conftest import Game
from test_kill_and_resume import assert_same_outcome
from zygote import Zygote, written

from sparring.progress import PROGRESS

SEEDS = (0, 1, 5)
QUICK: dict[str, Any] = {"iterations": 1, "seeds": list(SEEDS), "showcase": []}


def make(folder: Path, zygote: Zygote) -> Game:
    game = Game(folder / "game", zygote, {})
    game.write(**QUICK)
    return game


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    game = make(tmp_path_factory.mktemp("seeds"), zygote)
    result = game.run()
    assert result.code == 0, result.err
    (game.folder / "out.txt").write_text(result.out)
    return game


def scores(game: Game, owner: str, metric: str) -> list[float]:
    return [game.json(f"seed-{seed}/{owner}/evaluate/scores.json")[metric]["value"] for seed in SEEDS]


def test_a_game_for_each_seed(several: Game) -> None:
    assert several.json("summary.json")["seeds"] == list(SEEDS)
    assert sorted(path.name for path in several.root.glob("seed-*")) == ["seed-0", "seed-1", "seed-5"]
    models = {(several.root / f"seed-{seed}/sft/model/model.safetensors").read_bytes() for seed in SEEDS}
    assert len(models) == 3
    single = Game(several.folder / "alone", several.zygote, {})
    single.write(**{**QUICK, "seeds": None, "seed": 5})
    assert single.run().code == 0
    ours, theirs = ((root / "iterations/000/train/model/model.safetensors").read_bytes() for root in (several.root / "seed-5", single.root))
    assert ours == theirs, "what the seed alone plays"


def test_mean_and_spread_by_hand(several: Game) -> None:
    summary = several.json("summary.json")
    assert [one["player"] for one in summary["players"]] == ["start", "0", "continued-sft"] and summary["left_out"] == []
    for player, owner in zip(summary["players"], ("start", "iterations/000", "continued-sft"), strict=True):
        values = scores(several, owner, "nll_per_token")
        found = player["scores"]["nll_per_token"]
        assert found["values"] == pytest.approx(values, rel=1e-12)
        assert found["mean"] == pytest.approx(fmean(values)) and found["standard_deviation"] == pytest.approx(stdev(values))
        assert found["stderr"] == pytest.approx(stdev(values) / math.sqrt(3))


def test_the_tests_are_paired_by_seed(several: Game) -> None:
    tests = several.json("summary.json")["tests"]
    assert [one["against"] for one in tests] == ["run:start", "run:continued-sft"] and {one["paired_over"] for one in tests} == {"seeds"}
    for one, owner in zip(tests, ("start", "continued-sft"), strict=True):
        pairs = zip(scores(several, "iterations/000", "nll_per_token"), scores(several, owner, "nll_per_token"), strict=True)
        gaps = [mine - theirs for mine, theirs in pairs]
        found = next(player for player in one["players"] if player["player"] == "0")["scores"]["nll_per_token"]["difference"]
        assert found["difference"] == pytest.approx(fmean(gaps)) and found["stderr"] == pytest.approx(stdev(gaps) / math.sqrt(3))
        t = fmean(gaps) / (stdev(gaps) / math.sqrt(3))
        assert found["p"] == pytest.approx(1 - abs(t) / math.sqrt(t * t + 2), rel=1e-6), "Student's, two degrees of freedom"
        assert found["test"] == "paired t" and found["n"] == 3


def test_what_is_printed(several: Game) -> None:
    text = (several.folder / "out.txt").read_text()
    assert "Over 3 seeds: mean ± standard error (standard deviation)" in text
    assert "without measurements on held-out rows, of all seeds together." in text
    for arm in ("start (SFT)", "continued SFT"):
        assert f"3 seeds, difference from run: {arm}" in text
    assert "Student's t over seeds" in text


def test_the_status_of_one_of_them_tells_how_all_go_on(several: Game) -> None:
    assert json.loads((several.root / "seed-1" / PROGRESS).read_text())["command"] == "sparring run recipe.yaml"
    status = several.command("status", "run/seed-1")
    assert status.code == 0 and "finished" in status.out and "continued SFT" in status.out, status.err


def test_again_plays_nothing(several: Game) -> None:
    before = several.state()
    again = several.run()
    assert again.code == 0 and several.state() == before and again.out == (several.folder / "out.txt").read_text()


def test_killed_in_the_second_game(several: Game, tmp_path: Path, zygote: Zygote) -> None:
    game = make(tmp_path, zygote)
    shutil.copytree(several.root / "seed-0", game.root / "seed-0", symlinks=True)
    killed = game.run(sabotage=[written("seed-1/iterations/000/train.partial/checkpoint-.*/step.json")])
    assert killed.code == -signal.SIGKILL and not (game.root / "summary.json").exists()
    result = game.run()
    assert result.code == 0, result.err
    for seed in SEEDS:
        assert_same_outcome(game.root / f"seed-{seed}", several.root / f"seed-{seed}")
    assert json.loads((game.root / "summary.json").read_text()).keys() == several.json("summary.json").keys()


def test_compare_takes_the_folder(several: Game) -> None:
    result = several.command("compare", "run", "--against", "run:best", "--json", "c.json", "--html", "c.html")
    assert result.code == 0, result.err
    found = json.loads((several.folder / "c.json").read_text())
    assert found["against"] == "run:best" and found["n"] == 3
    assert [one["player"] for one in found["players"]] == ["best", "start", "0", "continued-sft"]
    alone = several.command("compare", "run/seed-0", "run", "--json", "d.json")
    assert alone.code == 2 and "given twice" in alone.err
    shutil.copytree(several.root / "seed-0", several.folder / "single", symlinks=True)
    mixed = several.command("compare", "single", "run", "--json", "d.json")
    assert mixed.code == 0, mixed.err
    runs = {one["run"] for one in json.loads((several.folder / "d.json").read_text())["players"]}
    assert runs == {"single", "run/seed-0", "run/seed-1", "run/seed-5"}


def test_the_folder_is_no_game_itself(several: Game, game: Game) -> None:
    for command in (["sample", "run", "hello"], ["export", "run", "out"], ["status", "run"], ["report", "run"]):
        result = several.command(*command)
        assert result.code == 2 and "holds the games of several seeds" in result.err and "run/seed-1" in result.err
    stage = several.command("stage", "recipe.yaml", "sft")
    assert stage.code == 2 and "belongs to the game of one seed" in stage.err
    other = several.run("seeds=null")
    assert other.code == 2 and "this run directory holds the games of several seeds" in other.err
    game.write(iterations=1, sft=None, controls=None)
    assert game.run().code == 0
    game.write(**QUICK)
    refused = game.run()
    assert refused.code == 2 and "this run directory holds a game of one seed" in refused.err
