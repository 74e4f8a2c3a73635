"""Whole games under the objectives that followed SPIN: what is computed, kills and resumption, adapters, bad values."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Game, rows, write_rows
from zygote import Result, Zygote, working

from sparring.config import load_recipe
from sparring.data.records import Triplet
from sparring.data.tables import read_rows
from sparring.policy.batches import Branches
from sparring.policy.load import load_model
from sparring.policy.score import plain_logps
from sparring.rundir import digest
from sparring.stage_names import stages_of_game

LORA = {"train__lora": {"rank": 4, "alpha": 8.0}, "train__lr": 2e-2}
# Twelve rows, eight to train on: two steps in iteration 0, four in iteration 1, whose window is two iterations, a checkpoint after each.
SMALL = {"data__held_out": 4, "sft": None, "sampling__max_new_tokens": 4, "train__checkpoint_every": 1, "showcase": [], "controls": None}
# and the stage in which the game is killed, when so many of its steps are finished
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, int]]] = {
    "space": ({"loss": "space", "nll_weight": [0.0, 0.5]}, {}, ("iterations/001/train", 2)),
    "t-spin": ({"loss": "t-spin", "history_weight": 0.5}, {"controls": {"batch_size": 4}}, ("iterations/001/train", 2)),
    # killed while the second half of the newest duels is scored under the start
    "alpha-spin": ({"loss": "alpha-spin", "alpha": 0.5}, LORA, ("iterations/001/score-start", 1)),
}


@dataclass(frozen=True)
class Played:
    """A game that nobody has stopped, and the same one killed and resumed."""

    game: Game
    result: Result
    killed: Game
    attempts: list[Result]


def small_game(folder: Path, zygote: Zygote, objective: dict[str, Any], **changes: Any) -> Game:
    game = Game(folder, zygote, {"objective": {"window": 2, **objective}, **SMALL, **changes})
    write_rows(folder / "rows.jsonl", rows(12))
    return game


def play(folder: Path, zygote: Zygote, name: str) -> Played:
    objective, changes, (stage, done) = OBJECTIVES[name]
    game, killed = (small_game(folder / part, zygote, objective, **changes) for part in ("whole", "killed"))
    result = game.run()
    killed.copy_stages(game, before=stage)
    return Played(game, result, killed, [killed.run(sabotage=[working(stage, done)]), killed.run()])


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Callable[[str], Played]:
    """Each is played when it is first asked for."""
    folder = tmp_path_factory.mktemp("objectives")
    return cache(lambda name: play(folder / name, zygote, name))


def metrics(game: Game) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (game.root / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")} for row in found if "iteration" in row
    ]


def first_steps(game: Game) -> list[dict[str, Any]]:
    return [row for row in metrics(game) if row["step"] == 0]


def stages(game: Game) -> dict[str, dict[str, Any]]:
    found = {done.parent.relative_to(game.root).as_posix(): json.loads(done.read_text()) for done in game.root.rglob("done.json")}
    return {name: {"inputs": done["inputs"], "counts": done["facts"].get("counts")} for name, done in found.items()}


def weights(game: Game) -> dict[str, bytes]:
    return {path.relative_to(game.root).as_posix(): path.read_bytes() for path in sorted(game.root.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_killed_and_resumed_is_as_if_never_killed(name: str, games: Callable[[str], Played]) -> None:
    played = games(name)
    assert played.result.code == 0, played.result.err
    assert [one.code for one in played.attempts] == [-signal.SIGKILL, 0], played.attempts[-1].err
    assert weights(played.killed) == weights(played.game)
    assert metrics(played.killed) == metrics(played.game) and len(metrics(played.game)) == 2 + 4
    assert stages(played.killed) == stages(played.game)
    assert not any(isinstance(value, float) and math.isnan(value) for row in metrics(played.game) for value in row.values())
    assert [entry["iteration"] for entry in played.game.json("summary.json")["iterations"]] == [0, 1]
    assert "Traceback" not in played.result.err + "".join(one.err for one in played.attempts)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_status_and_report_know_its_stages(name: str, games: Callable[[str], Played]) -> None:
    game = games(name).game
    assert set(stages_of_game(game.root, load_recipe(game.root / "recipe.yaml"))) == stages(game).keys()
    assert game.command("report", "run", "--output", "page.html").code == 0
    page = (game.folder / "page.html").read_text()
    assert [words in page for words in ("opponent log-probs", "log-probs of the start")] == [name != "t-spin", name == "alpha-spin"]


def test_space_starts_at_its_value_and_the_anchor_is_added_to_it(games: Callable[[str], Played]) -> None:
    game = games("space").game
    first, second = first_steps(game)
    at_start = math.log(3) + 2 * math.log(1.5)  # mu is the number of replies, 2
    assert (first["margin"], first["reward_real"], first["reward_generated"]) == (0.0, 0.0, 0.0)
    assert first["loss"] == pytest.approx(at_start, rel=1e-12) and "nll" not in first
    assert second["margin"] == 0.0 and second["loss"] == pytest.approx(at_start + 0.5 * second["nll"], rel=1e-12)
    assert stages(game)["iterations/001/train"]["inputs"]["objective"] == {"loss": "space", "mu": 2.0, "nll_weight": 0.5}


def replies_of(game: Game, t: int) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for row in sorted(read_rows(game.root / f"iterations/{t:03d}/generate"), key=lambda row: row["replica"]):
        found.setdefault(row["row_id"], []).append(tuple(row["token_ids"]))
    return found


def test_t_spin_pairs_replies_with_those_of_iteration_0_and_scores_nothing(games: Callable[[str], Played]) -> None:
    played = games("t-spin")
    game, done = played.game, stages(played.game)
    assert not [name for name in done if "score" in name] and "continued-sft/train" in done
    assert played.result.err.count("no opponent log-probs are computed") == 1
    examples = read_rows(game.root / "data/train.parquet")
    of_start, newest = replies_of(game, 0), replies_of(game, 1)
    assert of_start != newest
    triplets = [
        Triplet(
            row["row_id"], t, tuple(row["prompt_ids"]), tuple(row["reply_ids"]), tuple(own[row["row_id"]]), tuple(of_start[row["row_id"]])
        )
        for t, own in ((1, newest), (0, of_start))
        for row in examples
    ]
    assert done["iterations/001/train"]["inputs"]["duels"] == digest([vars(triplet) for triplet in triplets])
    assert done["iterations/001/train"]["inputs"]["objective"] == {"loss": "t-spin", "beta": 1.0, "history_weight": 0.5}
    assert done["iterations/000/train"]["inputs"]["objective"]["history_weight"] == 0.0
    assert {("history_margin" in row, "reward_real" in row) for row in metrics(game) if row["iteration"] == 1} == {(True, False)}
    assert not any("history_margin" in row for row in metrics(game) if row["iteration"] == 0)


def test_alpha_spin_scores_each_reply_under_the_start_once(games: Callable[[str], Played]) -> None:
    game = games("alpha-spin").game
    assert "iterations/000/score-start" not in stages(game), "the opponent of iteration 0 is the start"
    base = load_model(game.root / "base/model")
    examples = {row["row_id"]: row for row in read_rows(game.root / "data/train.parquet")}
    newest = replies_of(game, 1)
    found = read_rows(game.root / "iterations/001/score-start")
    assert {row["duel_id"] for row in found} == {f"{row_id}@1" for row_id in examples}
    for row in found:
        example = examples[row["duel_id"].partition("@")[0]]
        tree = Branches(tuple(example["prompt_ids"]), (tuple(example["reply_ids"]), *newest[example["row_id"]]))
        torch.testing.assert_close(torch.tensor(row["logps"]).double(), plain_logps(base, tree), atol=1e-5, rtol=1e-5)


def test_ranks_score_under_the_start_too(games: Callable[[str], Played]) -> None:
    """`sparring stage` makes the stage that a launcher's ranks would, here as the only one."""
    game, whole = games("alpha-spin").killed, games("alpha-spin").game
    part = "iterations/001/score-start"
    for name in (part, *(f"iterations/001/{kind}" for kind in ("train", "measure", "evaluate"))):
        shutil.rmtree(game.root / name)
    result = game.command("stage", "recipe.yaml", part)
    assert result.code == 0, result.err
    assert read_rows(game.root / part) == read_rows(whole.root / part)


def test_alpha_spin_starts_at_the_margin_that_its_mixture_makes(games: Callable[[str], Played]) -> None:
    """0 in iteration 0; then half of what the opponent itself has won against the start."""
    game = games("alpha-spin").game
    first, second = first_steps(game)
    assert first["margin"] == 0.0 and first["loss"] == pytest.approx(math.log(2), rel=1e-12)
    logps = {part: {row["duel_id"]: row["logps"] for row in read_rows(game.root / part)} for part in SCORED}
    of_start = logps["iterations/000/score"] | logps["iterations/001/score-start"]
    margins = []
    for name, ours in logps["iterations/001/score"].items():
        real, *generated = (one - other for one, other in zip(ours, of_start[name], strict=True))
        margins.append(real - sum(generated) / len(generated))
    assert second["margin"] != 0.0 and min(margins) / 2 <= second["margin"] <= max(margins) / 2
    everything = [row["margin"] for row in metrics(game) if row["iteration"] == 1]
    assert len(everything) == 4 and len(margins) == 16


SCORED = ("iterations/000/score", "iterations/001/score", "iterations/001/score-start")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["objective.loss=space", "objective.beta=0.5"],
            "objective.beta: 0.5: has no effect while objective.loss is space; it is for logistic, hinge",
        ),
        (["objective.mu=2"], "objective.mu: 2: has no effect while objective.loss is logistic; it is for space"),
        (
            ["objective.history_weight=0.3", "objective.loss=hinge"],
            "objective.history_weight: 0.3: has no effect while objective.loss is hinge",
        ),
        (["objective.alpha=0.5", "objective.loss=t-spin"], "objective.alpha: 0.5: has no effect while objective.loss is t-spin"),
        (["objective.loss=spase"], "did you mean space?"),
        (["objective.nll_weight=-0.1"], "objective.nll_weight: -0.1 is refused; wanted: number at least 0, or list of numbers at least 0"),
        (["objective.nll_weight=[0.1]"], "objective.nll_weight: [0.1]: 1 values, but iterations is 2"),
        (["objective.loss=space", "objective.mu=0"], "objective.mu: 0 is refused; wanted: number above 0, or null"),
        (["objective.loss=alpha-spin", "objective.alpha=1.5"], "objective.alpha: 1.5 is refused; wanted: number at least 0 and at most 1"),
        (["objective.loss=t-spin", "objective.history_weight=[0,-1]"], "objective.history_weight[1]: -1"),
    ],
)
def test_bad_values_are_refused_by_name(game: Game, overrides: list[str], words: str) -> None:
    result = game.run(*overrides)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err, result.err
    assert not game.root.exists()


def test_another_weight_is_another_game(games: Callable[[str], Played]) -> None:
    result = games("space").game.run("objective.nll_weight=0.25")
    assert result.code == 2 and "objective.nll_weight: null -> 0.25" in result.err and "--restart-from" in result.err, result.err
