"""Whole games with verified and majority targets: kills and resumption, every loss, adapters, seeds, ranks, other checkers, and errors.

All go on from one start: the base model, the data, a short SFT and its measurements are made once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Game, write_rows
from safetensors.torch import load_file
from test_bad_input import refused
from test_kill_and_resume import assert_same_outcome, metrics, outcome
from test_launching import WEIGHTS, children, in_training, ranks, results
from torch.testing import assert_close
from zygote import Zygote, begun, committed, unnamed, working, written

from sparring.config import load_recipe
from sparring.data.tables import read_rows
from sparring.stage_names import stages_of_game
from sparring.targets.select import OUTCOMES

ROWS = [{"prompt": f"pick {chr(97 + n)}", "completion": f"so {n % 3}"} for n in range(16)]
MORE = [{"prompt": f"pick {chr(65 + n)}", "gold": n % 3} for n in range(8)]
# Twelve rows and eight prompts: 20 prompts with 4 replies each; after the SFT most replies are like "so 2", and a fifth are right.
CHANGES: dict[str, Any] = {
    "data": {"path": "rows.jsonl", "held_out": 4, "prompts": {"path": "more.jsonl", "answer": "gold"}},
    "sft": {"lr": 5e-3, "epochs": 20, "batch_size": 6, "precision": "fp32"},
    "sampling": {"max_new_tokens": 6, "replies_per_prompt": 4},
    "objective": {"beta": 0.5, "nll_weight": 0.5},
    "target": {"kind": "majority", "checker": "number"},
    "train__micro_batch_tokens": 100,
    "evaluate": {"samples": 2, "headroom": False},
    "stop": {"indistinguishable": False, "plateau": False, "min_pass_at_k": None},
    "showcase": [],
    "controls": None,
}
VERIFIED = {"target": {"kind": "verified", "checker": "number"}}
ONE = {"iterations": 1}
START = ("base", "data", "sft", "start/measure", "start/evaluate")


def game_in(folder: Path, zygote: Zygote, **changes: Any) -> Game:
    game = Game(folder, zygote, {**CHANGES, **changes})
    write_rows(folder / "rows.jsonl", ROWS)
    write_rows(folder / "more.jsonl", MORE)
    return game


@pytest.fixture(scope="module")
def majority(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A game that nobody has stopped. Only to be read."""
    game = game_in(tmp_path_factory.mktemp("majority") / "game", zygote)
    return game.play()


Begin = Callable[..., Game]


def with_start(folder: Path, majority: Game, changes: dict[str, Any]) -> Game:
    """A game with these changes, before its first iteration."""
    game = game_in(folder, majority.zygote, **changes)
    for stage in START:
        shutil.copytree(majority.root / stage, game.root / stage)
    return game


@pytest.fixture
def begin(tmp_path: Path, majority: Game) -> Begin:
    return lambda **changes: with_start(tmp_path / "game", majority, changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, majority: Game) -> Callable[[str], Game]:
    """Other games, each played when it is first asked for. Only to be read."""

    def play(name: str) -> Game:
        game = with_start(tmp_path_factory.mktemp("whole") / "game", majority, GAMES[name])
        result = game.run()
        assert result.code == 0, result.err
        return game

    return cache(play)


def inputs(game: Game, stage: str) -> dict[str, Any]:
    return game.json(f"{stage}/done.json")["inputs"]


def facts(game: Game, stage: str) -> dict[str, Any]:
    return game.json(f"{stage}/done.json")["facts"]


def weights(game: Game) -> dict[str, bytes]:
    return {
        path.relative_to(game.root).as_posix(): path.read_bytes() for path in sorted(game.root.glob("iterations/*/train/**/*.safetensors"))
    }


def steps(game: Game) -> list[dict[str, Any]]:
    return [row for row in metrics(game.root) if "iteration" in row]


# ---------------------------------------------------------------------------------------------- what is played

HEADROOM = "verified, headroom, rft"
LOSSES = ("logistic", "hinge", "exponential", "correlation", "space", "sft")
GAMES: dict[str, dict[str, Any]] = {
    "verified": VERIFIED,
    **{f"verified, {loss}": {**ONE, **VERIFIED, "objective": {"loss": loss}} for loss in LOSSES},
    "alpha-spin": {"objective": {"loss": "alpha-spin", "alpha": 0.5, "beta": 0.5}},
    "majority, sft, lora": {
        **ONE,
        "objective": {"loss": "sft"},
        "train__lora": {"rank": 2, "alpha": 4.0},
        "target": {"kind": "majority", "checker": "number", "max_winners": 1, "weigh_votes": False},
    },
    "verified, lora": {**VERIFIED, "train__lora": {"rank": 2, "alpha": 4.0}},
    HEADROOM: {
        **ONE,
        **VERIFIED,
        "sft": {**CHANGES["sft"], "checkpoint_every": 2},
        "evaluate": {"samples": 2, "headroom_epochs": 2},
        "controls": {"kind": "rft", "epochs": 1},
    },
    "equal votes": {**ONE, "target": {"kind": "majority", "checker": "number", "weigh_votes": False, "human": "never"}},
}


def test_a_majority_game(majority: Game) -> None:
    done = {stage: facts(majority, f"iterations/{stage}") for stage in ("000/grade", "000/train", "001/grade", "001/train")}
    for stage in ("000/train", "001/train"):
        counts = done[stage]["counts"]
        assert counts["decided"] and counts["human_wins"] and counts["pairs"] >= counts["duels"] > 0
        assert counts["prompts"] == sum(counts[name] for name in OUTCOMES) == {"000/train": 20, "001/train": 40}[stage]
        assert counts["replies"] == 4 * counts["prompts"]
    grades = read_rows(majority.root / "iterations/000/grade")
    assert [row["replica"] for row in grades[:5]] == [-1, 0, 1, 2, 3] and [row["replica"] for row in grades[60:64]] == [0, 1, 2, 3]
    assert len(grades) == 12 * 5 + 8 * 4 and done["000/grade"]["replies"] == 80
    scores = majority.json("iterations/000/evaluate/scores.json")
    assert {"exact_match", "pass_at_2", "maj_at_2", "vote_share", "distinct_answers"} <= scores.keys()
    assert scores["exact_match"]["n"] == 4, "errors are by prompt"
    assert set(stages_of_game(majority.root, load_recipe(majority.root / "recipe.yaml"))) == set(outcome(majority.root)["stages"])


@pytest.mark.parametrize("name", [name for name in GAMES if "sft" not in name])
def test_the_first_step_has_margin_exactly_0(name: str, whole: Callable[[str], Game]) -> None:
    """Opponent pass and training in the same micro-batches, contests without pairs and of several winners among them."""
    first = steps(whole(name))[0]
    assert (first["margin"], first["reward_real"], first["reward_generated"]) == (0.0, 0.0, 0.0)
    assert all(value == value for row in steps(whole(name)) for value in row.values() if isinstance(value, float))


def test_the_second_iteration_starts_at_0_too(whole: Callable[[str], Game], majority: Game) -> None:
    for game in (majority, whole("verified"), whole("verified, lora")):
        assert next(row["margin"] for row in steps(game) if row["iteration"] == 1) == 0.0


@pytest.mark.parametrize("name", ["verified, sft", "majority, sft, lora"])
def test_likelihood_compares_with_nothing(name: str, whole: Callable[[str], Game]) -> None:
    game = whole(name)
    assert not (game.root / "iterations/000/score").exists()
    counts = facts(game, "iterations/000/train")["counts"]
    assert counts["pairs"] == counts["losers"] == 0 and counts["winners"] >= counts["duels"]
    rows = steps(game)
    assert "margin" not in rows[0] and rows[-1]["loss"] < rows[0]["loss"] and "winners" in (game.root / "run.log").read_text()
    if "lora" in name:
        assert counts["winners"] == counts["duels"], "max_winners is 1"
        assert (game.root / "iterations/000/train/model/adapter_model.safetensors").exists()


def test_adapters_over_two_iterations(whole: Callable[[str], Game]) -> None:
    """Verified duels with an NLL weight: the second iteration goes on with the adapter of the first, on the replies of both."""
    game = whole("verified, lora")
    first, second = (load_file(game.root / f"iterations/00{t}/train/model/adapter_model.safetensors") for t in (0, 1))
    assert first.keys() == second.keys() and any(not first[name].equal(second[name]) for name in first)
    counts = facts(game, "iterations/001/train")["counts"]
    assert counts["prompts"] == 40 and counts["pairs"] > 0
    losses = [row["loss"] for row in steps(game)]
    assert len(losses) > 4 and all(loss > 0 for loss in losses)


def test_votes_weigh(whole: Callable[[str], Game], majority: Game) -> None:
    """The loss of the first step is ln 2 times the mean weight, and the anchor beside it weighed alike."""
    game = whole("equal votes")
    assert facts(game, "iterations/000/train")["counts"]["human_wins"] == 0
    assert steps(game)[0]["loss"] > steps(majority)[0]["loss"]


def test_only_what_a_checker_passed_wins(whole: Callable[[str], Game]) -> None:
    """Read back from the files: the duels of the digest are those that the grades say."""
    game = whole("verified")
    grades = read_rows(game.root / "iterations/000/grade")
    complete = {(r["row_id"], r["replica"]): r["finish_reason"] == "stop" for r in read_rows(game.root / "iterations/000/generate")}
    of_opponent = [row for row in grades if row["replica"] >= 0]
    passed = [row for row in of_opponent if row["score"] == 1.0 and complete[row["row_id"], row["replica"]]]
    counts = facts(game, "iterations/000/train")["counts"]
    assert counts["replies_passed"] == len(passed) > 0
    prompts = {row["row_id"] for row in passed}
    with_loser = {row["row_id"] for row in of_opponent if not (row["score"] == 1.0 and complete[row["row_id"], row["replica"]])}
    assert counts["decided"] == len(prompts & with_loser) and counts["all_pass"] == len(prompts - with_loser)


# ---------------------------------------------------------------------------------------------- kills

KILLS = {
    "grading": ("iterations/001/grade", begun("iterations/001/grade")),
    "grades written, not committed": ("iterations/000/grade", unnamed("iterations/000/grade")),
    "between grading and scoring": ("iterations/001/grade", committed("iterations/001/grade")),
    "training": ("iterations/001/train", working("iterations/001/train", 2)),
}


@pytest.mark.parametrize("place", KILLS)
def test_killed_and_resumed_is_as_if_never_killed(place: str, tmp_path: Path, majority: Game) -> None:
    stage, kill = KILLS[place]
    game = game_in(tmp_path / "game", majority.zygote)
    game.copy_stages(majority, before=stage)
    assert game.run(sabotage=[kill]).code == -signal.SIGKILL
    kept = game.state()
    result = game.run()
    assert result.code == 0 and kept.items() <= game.state().items(), result.err
    assert weights(game) == weights(majority) and len(weights(game)) == 2
    assert_same_outcome(game.root, majority.root)


@pytest.mark.parametrize(
    ("name", "stage", "done"),
    [
        ("verified", "iterations/000/train", 2),
        ("verified, lora", "iterations/001/train", 2),
        ("alpha-spin", "iterations/001/score-start", 1),
        ("majority, sft, lora", "iterations/000/train", 2),
    ],
)
def test_other_games_killed(name: str, stage: str, done: int, tmp_path: Path, whole: Callable[[str], Game]) -> None:
    game = game_in(tmp_path / "game", whole(name).zygote, **GAMES[name])
    game.copy_stages(whole(name), before=stage)
    assert game.run(sabotage=[working(stage, done)]).code == -signal.SIGKILL
    assert game.run().code == 0
    assert weights(game) == weights(whole(name))


# Stages that only some games have; each has a checkpoint, or a shard, to go on from
LATE_KILLS = {
    "short SFT of the headroom": ("probe/train", working("probe/train", 2)),
    "headroom, between two temperatures": ("start/headroom", written(r"start/headroom\.partial/replies/shard-.*")),
    "headroom, sampled and not written": ("start/headroom", unnamed(r"start/headroom\.partial/headroom\.json")),
    "rejection-sampling fine-tuning": ("rft/train", working("rft/train", 3)),
}


@pytest.mark.parametrize("place", LATE_KILLS)
def test_headroom_and_rft_killed_and_resumed(place: str, tmp_path: Path, whole: Callable[[str], Game]) -> None:
    stage, kill = LATE_KILLS[place]
    game = game_in(tmp_path / "game", whole(HEADROOM).zygote, **GAMES[HEADROOM])
    game.copy_stages(whole(HEADROOM), before=stage)
    assert game.run(sabotage=[kill]).code == -signal.SIGKILL
    kept = game.state()
    result = game.run()
    assert result.code == 0 and kept.items() <= game.state().items(), result.err
    assert_same_outcome(game.root, whole(HEADROOM).root)


# ---------------------------------------------------------------------------------------------- done again


@pytest.fixture
def copy(tmp_path: Path, majority: Game) -> Game:
    """The finished majority game, to be changed."""
    game = game_in(tmp_path / "game", majority.zygote)
    shutil.copytree(majority.root, game.root, symlinks=True)
    return game


OTHER = "stage iterations/000/score was made from other winners and losers than the recipe now makes"


def redone(before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]) -> set[str]:
    return {name.rpartition("/")[0].partition("/model")[0] for name, value in after.items() if before.get(name) != value}


def test_again_nothing_is_done(copy: Game) -> None:
    before = copy.state()
    result = copy.run()
    assert result.code == 0 and copy.state() == before and "grading" not in result.err, result.err


def test_restart_from_grades_samples_nothing(copy: Game, majority: Game) -> None:
    before = copy.state()
    result = copy.run("--restart-from", "iterations/000/grade")
    assert result.code == 0 and "removed stage iterations/000/grade" in result.err, result.err
    generated = {name: value for name, value in before.items() if name.startswith("iterations/000/generate/")}
    assert generated and generated.items() <= copy.state().items()
    assert_same_outcome(copy.root, majority.root)


def finished_files(game: Game) -> dict[str, tuple[bytes, int]]:
    """All files of finished stages: not what a refused attempt has left for the next one."""
    files = [path for done in game.root.rglob("done.json") for path in done.parent.rglob("*") if path.is_file()]
    return {path.relative_to(game.root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_another_checker_grades_anew_and_leaves_the_rest(copy: Game, majority: Game) -> None:
    """Nothing is sampled; the training that other grades had led to is refused by name; and until it is redone the former grades stand."""
    before = finished_files(copy)
    other = "target.checker=exact", "evaluate.answer_pattern=([0-9])"
    result = copy.run(*other)
    refused(
        result, OTHER, 'target.checker: "number" -> "exact"', "--restart-from iterations/000/score (the replies of its iteration are kept)"
    )
    assert "the former grades are kept" in result.err and "sampling" not in result.err
    assert "recomputing iterations/000/grade: " in result.err and 'checker.kind: "number" -> "exact"' in result.err
    assert finished_files(copy) == before
    again = copy.run()
    assert again.code == 0 and "recomputing" not in again.err and finished_files(copy) == before
    assert not list(copy.root.rglob("*.partial"))
    assert_same_outcome(copy.root, majority.root)


def test_training_redone_with_another_checker_does_not_grade_a_second_time(copy: Game) -> None:
    other = "target.checker=exact", "evaluate.answer_pattern=([0-9])"
    assert copy.run(*other).code == 2
    [graded] = (copy.root / "iterations/000/grade.partial").glob("shard-*")
    written_at = graded.stat().st_mtime_ns
    assert copy.run(*other, "--restart-from", "iterations/000/score").code == 0
    assert (copy.root / "iterations/000/grade" / graded.name).stat().st_mtime_ns == written_at
    assert {name: inputs(copy, f"iterations/{name}/grade")["checker"]["kind"] for name in ("000", "001")} == {
        "000": "exact",
        "001": "exact",
    }


def test_a_checker_that_fails_leaves_the_grades_and_scores_of_the_former_one(copy: Game) -> None:
    """On two of the prompts without a human reply, which have 8 of the 80 replies of an iteration."""
    before, summary = finished_files(copy), copy.json("summary.json")
    result = copy.run(own(copy, "return 1 / 0 if asked[-1] in 'AB' else 1.0"), "evaluate.answer_pattern=([0-9])")
    refused(result, " of 80 replies could not be graded, more than 5%", "ZeroDivisionError")
    assert "recomputing iterations/000/grade: " in result.err
    assert finished_files(copy) == before and copy.json("summary.json") == summary
    again = copy.run()
    assert again.code == 0 and "recomputing" not in again.err and finished_files(copy) == before


def test_another_checker_with_the_same_winners_replaces_the_grades_of_all_iterations(copy: Game, majority: Game) -> None:
    """Killed between the two replacements, and then resumed by either recipe."""
    same = "target.tolerance=0.25"
    sabotage = committed("iterations/000/grade")
    assert copy.run(same, sabotage=[sabotage]).code == -signal.SIGKILL
    assert [inputs(copy, f"iterations/00{t}/grade")["checker"]["tolerance"] for t in (0, 1)] == [0.25, 0.0]
    result = copy.run(same)
    assert result.code == 0 and "training" not in result.err, result.err
    assert [inputs(copy, f"iterations/00{t}/grade")["checker"]["tolerance"] for t in (0, 1)] == [0.25, 0.25]
    assert weights(copy) == weights(majority)
    assert copy.run().code == 0
    assert_same_outcome(copy.root, majority.root)


@pytest.mark.parametrize(
    ("option", "words"),
    [("max_winners=1", "max_winners: 4 -> 1"), ("human=never", 'human: "fallback" -> "never"'), ("min_votes=0.9", "0.5 -> 0.9")],
)
def test_another_rule_is_another_game(copy: Game, option: str, words: str) -> None:
    before = copy.state()
    refused(copy.run(f"target.{option}"), OTHER, words, "--restart-from iterations/000/score")
    assert copy.state() == before


def test_another_rule_loses_no_later_iteration_before_it_is_refused(copy: Game) -> None:
    before = copy.state()
    refused(copy.run("target.min_votes=0.9", "--restart-from", "iterations/001"), OTHER, "--restart-from iterations/000/score")
    assert copy.state() == before


def test_a_refused_restart_keeps_the_headroom_and_its_short_sft(tmp_path: Path, whole: Callable[[str], Game]) -> None:
    copied = game_in(tmp_path / "game", whole(HEADROOM).zygote, **GAMES[HEADROOM])
    shutil.copytree(whole(HEADROOM).root, copied.root, symlinks=True)
    before, summary = copied.state(), copied.json("summary.json")
    result = copied.run("target.max_winners=1", "--restart-from", "rft")
    refused(result, "made from other winners")
    assert "--restart-from has deleted nothing" in result.err
    assert copied.state() == before and copied.json("summary.json") == summary


def test_another_rule_after_training_by_likelihood(begin: Begin) -> None:
    """There are no log-probs of opponents, and it is the training that knows its winners."""
    game = begin(**GAMES["verified, sft"])
    assert "target.max_losers has no effect on training" in game.run("target.max_losers=3").err
    assert game.run().code == 0
    refused(game.run("target.max_winners=1"), "stage iterations/000/train was made from other winners", "max_winners: 4 -> 1")
    refused(game.run("objective.loss=logistic"), "objective.loss", "--restart-from iterations/000/train")


# ---------------------------------------------------------------------------------------------- seeds, ranks, the human target


def test_seeds(tmp_path: Path, zygote: Zygote, majority: Game) -> None:
    """Each in its own folder, and the first is the game of that seed alone."""
    game = game_in(tmp_path / "game", zygote, **ONE, seeds=[0, 3])
    result = game.run()
    assert result.code == 0, result.err
    first, second = (game.root / f"seed-{seed}/iterations/000" for seed in (0, 3))
    assert read_rows(first / "grade") == read_rows(majority.root / "iterations/000/grade") != read_rows(second / "grade")
    assert (first / "train/model/model.safetensors").read_bytes() == weights(majority)["iterations/000/train/model/model.safetensors"]


def test_two_ranks(copy: Game, majority: Game) -> None:
    """Opponent pass and training over contests, some of them without pairs: the ranks' player is that of one process, to rounding."""
    shutil.rmtree(copy.root / "iterations/001/train")
    for name in ("score", "train"):
        shutil.rmtree(copy.root / f"iterations/001/{name}", ignore_errors=True)
        for result in results(ranks(copy, f"iterations/001/{name}")):
            assert result.code == 0, result.err
    ours, theirs = (load_file(game.root / "iterations/001/train/model/model.safetensors") for game in (copy, majority))
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=0, atol=WEIGHTS)
    assert facts(copy, "iterations/001/train")["counts"] == facts(majority, "iterations/001/train")["counts"]


def with_a_file(game: Game) -> list[str]:
    config = game.folder / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_machines: 1\nmachine_rank: 0\nnum_processes: 2\n"
        "mixed_precision: 'no'\nuse_cpu: false\nmain_process_port: 0\ndynamo_backend: 'no'\n"
        "fsdp_config:\n  fsdp_version: 2\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  fsdp_reshard_after_forward: true\n"
        "  fsdp_cpu_ram_efficient_loading: true\n",
        encoding="utf-8",
    )
    return ["launcher.kind=accelerate", f"launcher.config_file={config}", "launcher.cpu=true"]


def children_of_system(words: str, root: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if words in line and str(root.parent) in line:
            found.append(process)
    return found


def test_accelerate_starts_the_ranks_and_one_is_killed(tmp_path: Path, majority: Game) -> None:
    """An iteration on two ranks that share the model: graded, selected and trained as by one process, to rounding."""
    longer = {**ONE, "train__epochs": 12, "train__lr": 1e-4}
    inline, game = (game_in(tmp_path / name, majority.zygote, **longer) for name in ("inline", "launched"))
    for one in (inline, game):
        one.copy_stages(majority, before="iterations/000/train")
    assert inline.run().code == 0
    shutil.rmtree(game.root / "iterations/000/grade")
    launcher = with_a_file(game)
    running = game.start(*launcher)
    running.wait_for(in_training(game))
    os.kill(children(running, "sparring stage")[1].pid, signal.SIGKILL)
    killed = running.wait()
    assert killed.code == 1 and "a rank was killed or failed" in killed.err and "resume with" in killed.err
    assert not children_of_system("sparring stage", game.root), "the other rank was ended"
    result = game.run(*launcher)
    assert result.code == 0, result.err
    assert facts(game, "iterations/000/train")["ranks"] == 2 and "resuming at step" in result.err and "Fsdp2Shards" in result.err
    assert game.json("summary.json")["stop_reason"]
    assert read_rows(game.root / "iterations/000/grade") == read_rows(majority.root / "iterations/000/grade")
    ours, theirs = (load_file(one.root / "iterations/000/train/model/model.safetensors") for one in (game, inline))
    for name, tensor in theirs.items():
        assert_close(ours[name], tensor, rtol=0, atol=WEIGHTS)


def test_short_sft_of_the_headroom_and_rft_on_two_ranks(tmp_path: Path, whole: Callable[[str], Game]) -> None:
    """Trained as by one process, to rounding; the headroom is measured again, since the probe is another model."""
    inline = whole(HEADROOM)
    game = game_in(tmp_path / "game", inline.zygote, **GAMES[HEADROOM])
    shutil.copytree(inline.root, game.root, symlinks=True)
    for stage in ("probe/train", "rft/train"):
        shutil.rmtree(game.root / stage)
    for stage in ("probe/train", "rft/train"):
        for result in results(ranks(game, stage)):
            assert result.code == 0, result.err
        assert facts(game, stage)["ranks"] == 2
        ours, theirs = (load_file(one.root / stage / "model/model.safetensors") for one in (game, inline))
        for name, tensor in theirs.items():
            assert_close(ours[name], tensor, rtol=0, atol=WEIGHTS)
    result = game.run()
    assert result.code == 0 and "recomputing start/headroom" in result.err, result.err
    ours, theirs = (one.json("start/headroom/headroom.json")["scores"] for one in (game, inline))
    assert ours["nll_after"]["value"] == pytest.approx(theirs["nll_after"]["value"], abs=1e-3) and ours["any"] == theirs["any"]


def test_near_duplicates_win_once(begin: Begin, majority: Game) -> None:
    """At a ratio next to 0 only replies without a word in common win beside each other."""
    game = begin(**ONE, target={**CHANGES["target"], "near_duplicates": 1e-9})
    result = game.run()
    assert result.code == 0, result.err
    few, many = (facts(one, "iterations/000/train")["counts"] for one in (game, majority))
    assert few["duels"] == many["duels"] and few["winners"] < many["winners"]


def test_the_human_target_written_out_is_the_same_game(tmp_path: Path, played: Game) -> None:
    """No fingerprint knows of it: a run from before there were targets goes on."""
    game = Game(tmp_path / "game", played.zygote, {"target": {"kind": "human", "human": "fallback", "max_winners": 4, "checker": None}})
    shutil.copytree(played.root, game.root, symlinks=True)
    before = game.state()
    result = game.run()
    assert result.code == 0 and game.state() == before, result.err
    assert not (game.root / "iterations/000/grade").exists()
    assert not any("target" in json.dumps(done["inputs"]) for done in outcome(game.root)["stages"].values())


# ---------------------------------------------------------------------------------------------- what can be got wrong


def own(game: Game, body: str) -> str:
    """A checker of one's own: `text`, the reply, and `asked`, its prompt, to a score."""
    code = "import os, time\ndef f(prompts, completions):\n"
    code += "    return [one(c[0]['content'], p[-1]['content']) for p, c in zip(prompts, completions)]\n"
    (game.folder / "rules.py").write_text(f"{code}def one(text, asked):\n    {body}\n")
    return "target.checker=rules.py:f"


GAPS = ["target.kind=verified", "objective.nll_weight=0"]


def unharmed(game: Game, majority: Game) -> None:
    """What was sampled is there, and the majority game goes on from it."""
    replies = game.root / "iterations/000/generate"
    assert read_rows(replies) == read_rows(majority.root / "iterations/000/generate")
    kept = {name: value for name, value in game.state().items() if "generate" in name}
    assert game.run("iterations=1").code == 0 and kept.items() <= game.state().items()


def test_every_reply_is_invalid(begin: Begin) -> None:
    """Cut at the limit: nobody votes. Likelihood of the human replies, which are there, would be no game but continued SFT."""
    game = begin(sampling={"max_new_tokens": 1, "replies_per_prompt": 4})
    shutil.rmtree(game.root / "start")
    result = game.run()
    refused(result, "no prompt has winners and losers: 20 unjudged", "target.kind majority", "evaluate.answer_pattern")
    assert "only 0.0% of the replies to prompts with a known answer are right, so most majorities agree on wrong answers" in result.err
    assert len(read_rows(game.root / "iterations/000/generate")) == 80


def test_every_reply_passes(begin: Begin, majority: Game) -> None:
    game = begin()
    always = own(game, "return 1.0 if len(text) < 100 else 0.0")
    game_has_cut = any(row["finish_reason"] == "length" for row in read_rows(majority.root / "iterations/000/generate"))
    assert game_has_cut, "a cut reply does not win"
    result = game.run(always, *GAPS, "target.losers=answered", "evaluate.answer_pattern=([0-9])")
    refused(result, "no prompt has winners and losers: ", "all pass")
    unharmed(game, majority)


def test_no_reply_passes(begin: Begin, majority: Game) -> None:
    game = begin()
    result = game.run(own(game, "return 0.0"), *GAPS, "target.human=never")
    refused(result, "no prompt has winners and losers: 20 none pass", "target.kind verified", "easier prompts", "sparring grade run")
    assert "only 0.0% of the replies pass; if it passes 1% of wrong replies, 100% of the winners are wrong" in result.err
    assert "none of the first 4 held-out human replies passes (the first one: scored 0)" in result.err
    unharmed(game, majority)


def test_no_reply_passes_and_the_human_one_wins(begin: Begin) -> None:
    game = begin(**ONE)
    result = game.run("target.kind=verified", own(game, "return 0.0"))
    assert result.code == 0 and "12 human wins" in result.err and "8 none pass" in result.err, result.err


@pytest.mark.parametrize(
    ("missing", "words"), [(range(3), "finds no answer in 3 of 8 data.prompts: their replies neither win nor lose"), (range(8), "")]
)
def test_answers_are_missing(missing: range, words: str, tmp_path: Path, zygote: Zygote) -> None:
    game = game_in(tmp_path / "game", zygote, **ONE, **VERIFIED, sft=None)
    write_rows(game.folder / "more.jsonl", [row | ({"gold": None} if n in missing else {}) for n, row in enumerate(MORE)])
    result = game.run()
    if len(missing) == 8:
        refused(result, "finds no answer in any of the 8 rows", "data.prompts.answer 'gold'", "the first one is None", "majority")
        assert not (game.root / "start").exists()
        return
    assert words in result.err and "Traceback" not in result.err
    assert re.search(r"3 unjudged", result.err), result.err


@pytest.mark.parametrize(
    ("failure", "words", "options"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero", []),
        ("os._exit(3)", "its process ended with exit code 3", []),
        ("float('nan')", "returned nan, which is not a score", []),
        ("time.sleep(60)", "timed out after 0.4 s", ["target.timeout_seconds=0.4"]),
    ],
    ids=["raises", "exits", "nan", "hangs"],
)
def test_a_checker_that_fails_is_corrected_and_nothing_is_sampled_again(
    failure: str, words: str, options: list[str], begin: Begin, majority: Game
) -> None:
    """On two of the prompts, which have 8 of the 80 replies; held-out replies are all graded."""
    game = begin(**ONE, **VERIFIED)
    checker = own(game, f"return {failure} if asked[-1] in 'AB' else 1.0 if text[-1:] in '012' else 0.0")
    result = game.run(checker, *options)
    refused(result, " of 80 replies could not be graded, more than 5%", words, "(rules.py:f), on the reply '")
    kept = {name: value for name, value in game.state().items() if "generate" in name}
    assert kept and not (game.root / "iterations/000/grade").exists()
    result = game.run(own(game, "return 1.0 if text[-1:] in '012' else 0.0"))
    assert result.code == 0 and "sampling" not in result.err and kept.items() <= game.state().items(), result.err


def test_a_few_failures_of_a_checker_are_counted_wherever_counts_are_shown(begin: Begin) -> None:
    """It fails on all four replies to one of twenty prompts, which are not more than 5%."""
    game = begin(**ONE, **VERIFIED)
    result = game.run(own(game, "return float('2' in text) / (asked != 'pick A')"))
    assert result.code == 0 and "checker failures" in result.out, result.err
    assert "held-out human replies passes" not in result.err
    code = hashlib.sha256((game.folder / "rules.py").read_bytes()).hexdigest()
    assert f"target.checker: rules.py:f, sha256 {code[:12]}" in result.err
    assert game.json("summary.json")["iterations"][0]["counts"]["checker_failures"] == 4
    assert "4 checker failures" in " ".join(game.command("status", "run").out.split())


def test_a_checker_that_raises_on_held_out_replies_ends_the_run_before_anything_is_sampled(begin: Begin) -> None:
    game = begin(**ONE, **VERIFIED)
    refused(game.run(own(game, "1 / 0")), "4 of 4 replies could not be graded", "ZeroDivisionError")
    assert not (game.root / "iterations").exists() and (game.root / "start/measure/done.json").exists()


def test_a_checker_that_needs_a_column_which_the_recipe_does_not_name_is_refused_before_anything_is_made(
    tmp_path: Path, zygote: Zygote
) -> None:
    game = game_in(tmp_path / "game", zygote, **ONE, **VERIFIED)
    (game.folder / "rules.py").write_text("def f(completions, level):\n    return [1.0] * len(completions)\n")
    result = game.run("target.checker=rules.py:f")
    refused(result, "missing 1 required positional argument: 'level'", "on the reply 'so ", "data.checker_columns")
    assert not (game.root / "sft").exists() and not (game.root / "start").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sampling.replies_per_prompt=1"], "one reply has no majority"),
        (["target.kind=human", "objective.nll_weight=0"], "data.prompts have no human reply"),
        (["target.checker=missing.py:f", "target.kind=verified"], "missing.py does not exist"),
    ],
)
def test_contradictions_are_refused_before_anything_is_made(overrides: list[str], words: str, tmp_path: Path, zygote: Zygote) -> None:
    game = game_in(tmp_path / "game", zygote)
    refused(game.run(*overrides), words)
    assert not any((game.root / name).exists() for name in ("base", "data", "sft"))
