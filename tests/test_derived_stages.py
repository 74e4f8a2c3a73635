"""What only changes how a game is scored, shown or compared costs no sampling and no training: those stages are made anew."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
from conftest import Game
from test_kill_and_resume import assert_same_outcome, metrics, outcome
from zygote import Sabotage, Zygote, begun, unnamed, working

OWNERS = ("start", "iterations/000", "iterations/001", "continued-sft")
# every option that other scores or samples follow from
OTHERS = [
    "evaluate.answer_pattern='[a-z]+'",
    "stop.confidence=0.8",
    "showcase=[say ba, say ab]",
    "showcase_system=You are terse.",
]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A game played with other scores from the start."""
    game = Game(tmp_path_factory.mktemp("fresh") / "game", zygote, {})
    assert game.run(*OTHERS).code == 0
    return game


def redone(before: dict[str, tuple[str, int]], after: dict[str, tuple[str, int]]) -> set[str]:
    """The stages with a file that was written again, or is gone."""
    return {name.rpartition("/")[0] for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def made_anew(err: str) -> list[tuple[str, str]]:
    """(stage, what differs) of every line that says so."""
    return re.findall(r"recomputing (\S+): (.*)", err)


# ---------------------------------------------------------------------------------------------- scores and samples


@pytest.mark.parametrize(
    ("override", "difference", "scores"),
    [
        ("evaluate.answer_pattern=null", 'answer_pattern: "[0-9]+$" -> null', {"exact_match"}),
        (OTHERS[1], "confidence: 0.95 -> 0.8", {"duel_accuracy"}),
        (OTHERS[2], 'showcase: [null, "say ab"] -> [null, "say ba", "say ab"]', set()),
        (OTHERS[3], 'showcase: [null, "say ab"] -> ["You are terse.", "say ab"]', set()),
    ],
    ids=["answer_pattern", "confidence", "showcase", "showcase_system"],
)
def test_a_finished_run_is_scored_anew_without_sampling_or_training(
    copy: Game, played: Game, override: str, difference: str, scores: set[str]
) -> None:
    before = copy.state()
    result = copy.run(override)
    assert result.code == 0, result.err
    assert redone(before, copy.state()) == {f"{owner}/evaluate" for owner in OWNERS}
    assert made_anew(result.err) == [(f"{owner}/evaluate", difference) for owner in OWNERS], "one line each"
    assert not re.search("training|sampling:|replies:|log-probs", result.err)
    for owner in OWNERS:
        ours, theirs = (game.json(f"{owner}/evaluate/scores.json") for game in (copy, played))
        assert {name for name in theirs if ours.get(name) != theirs[name]} == scores & theirs.keys(), owner
    assert copy.json("summary.json")["start"]["scores"] == copy.json("start/evaluate/scores.json")
    after = copy.state()
    assert copy.run(override).code == 0 and copy.state() == after, "and once is enough"


def test_what_is_scored_anew_is_as_if_it_had_been_asked_for_at_first(copy: Game, fresh: Game, played: Game) -> None:
    assert copy.run(*OTHERS).code == 0
    assert_same_outcome(copy.root, fresh.root)
    assert copy.run().code == 0, "and back"
    assert_same_outcome(copy.root, played.root)


@pytest.mark.parametrize(
    ("sabotage", "back"),
    [
        (begun("iterations/000/evaluate"), False),
        (Sabotage("shutil:rmtree", args="iterations/000/evaluate$"), True),
        (unnamed("iterations/001/evaluate.partial/showcase.json"), True),
        (unnamed("iterations/000/evaluate"), False),
        (unnamed("iterations/000/evaluate"), True),
        (unnamed("run/summary.json"), False),
    ],
    ids=["scoring", "removing, then back", "showcase, then back", "before the rename", "before the rename, then back", "publishing"],
)
def test_killed_while_it_is_scored_anew(copy: Game, fresh: Game, played: Game, sabotage: Sabotage, back: bool) -> None:
    """The same command goes on, and the old recipe takes everything back."""
    assert copy.run(*OTHERS, sabotage=[sabotage]).code == -signal.SIGKILL
    result = copy.run(*([] if back else OTHERS))
    assert result.code == 0, result.err
    assert_same_outcome(copy.root, (played if back else fresh).root)


def test_a_half_finished_run_is_scored_anew_on_its_way(game: Game, fresh: Game, played: Game) -> None:
    game.copy_stages(played, before="iterations/001/train")
    killed = game.run(sabotage=[working("iterations/001/train", 3)])
    assert killed.code == -signal.SIGKILL and (game.root / "iterations/001/train.partial").exists()
    result = game.run(*OTHERS)
    assert result.code == 0 and "resuming at step 2 of 12" in result.err
    assert [stage for stage, _ in made_anew(result.err)] == ["start/evaluate", "iterations/000/evaluate"]
    assert_same_outcome(game.root, fresh.root)


def test_killed_while_it_is_scored_and_asked_for_other_scores(game: Game, fresh: Game, played: Game) -> None:
    """What was begun for the old scores does not stand in the way of the new ones."""
    game.copy_stages(played, before="iterations/000/evaluate")
    killed = game.run(sabotage=[unnamed("iterations/000/evaluate.partial/showcase.json")])
    assert killed.code == -signal.SIGKILL and (game.root / "iterations/000/evaluate.partial/scores.json").exists()
    assert game.run(*OTHERS).code == 0
    assert_same_outcome(game.root, fresh.root)


def test_without_a_showcase_no_model_is_loaded_for_it(copy: Game) -> None:
    result = copy.run("showcase=[]", sabotage=[Sabotage("sparring.opponent.engines:load_sampler", do="crash")])
    assert result.code == 0, result.err
    assert not list(copy.root.rglob("showcase.json"))


def test_the_system_turn_stands_before_every_showcase_prompt(copy: Game, played: Game) -> None:
    assert copy.run("showcase_system=You are terse.").code == 0
    shown = copy.json("start/evaluate/showcase.json")
    assert [entry["prompt"] for entry in shown] == ["say ab"]
    files = [f"{owner}/evaluate/showcase.json" for owner in OWNERS]
    assert [copy.json(file) for file in files] != [played.json(file) for file in files]
    asked = copy.command("sample", "run", "say ab", "--system", "You are terse.")
    words = "".join(char if char.isprintable() else "�" for char in shown[0]["reply"]).split()
    assert asked.code == 0 and all(word in asked.out for word in words)


def test_a_hand_edited_score_is_noticed_unless_it_is_made_anew(copy: Game) -> None:
    (copy.root / "start/evaluate/scores.json").write_text("{}")
    refused = copy.run()
    assert refused.code == 2 and "scores.json was changed after the stage had finished" in refused.err
    assert "--restart-from start/evaluate" in refused.err
    assert copy.run("stop.confidence=0.9").code == 0


# ---------------------------------------------------------------------------------------------- the control


def test_another_control_is_trained_anew_and_nothing_else(copy: Game) -> None:
    before = copy.state()
    result = copy.run("controls.lr=1e-4")
    assert result.code == 0, result.err
    changed = redone(before, copy.state())
    assert (
        all(stage.startswith("continued-sft/") for stage in changed)
        and {f"continued-sft/{part}" for part in ("train", "measure")} <= changed
    )
    assert ("continued-sft/train", "sft.lr: 0.003 -> 0.0001") in made_anew(result.err)
    assert {stage for stage, _ in made_anew(result.err)} == {f"continued-sft/{part}" for part in ("train", "measure", "evaluate")}


def test_another_control_and_killed_on_the_way(copy: Game, tmp_path: Path, zygote: Zygote) -> None:
    expected = Game(tmp_path / "expected", zygote, {})
    shutil.copytree(copy.root, expected.root, symlinks=True)
    assert expected.run("controls.lr=1e-4").code == 0
    for one in (
        Sabotage("shutil:rmtree", args="continued-sft/train"),
        working("continued-sft/train", 4),
        unnamed("continued-sft/train"),
        unnamed("continued-sft/measure.partial/logps.parquet"),
        begun("continued-sft/evaluate"),
    ):
        assert copy.run("controls.lr=1e-4", sabotage=[one]).code == -signal.SIGKILL, one
    assert copy.run("controls.lr=1e-4").code == 0
    assert_same_outcome(copy.root, expected.root)


def test_a_half_trained_control_with_other_settings_is_begun_anew(copy: Game, played: Game) -> None:
    killed = copy.run("controls.lr=1e-4", sabotage=[working("continued-sft/train", 4)])
    assert killed.code == -signal.SIGKILL and (copy.root / "continued-sft/train.partial").exists()
    result = copy.run()
    assert result.code == 0 and ("continued-sft/train", "sft.lr: 0.0001 -> 0.003") in made_anew(result.err)
    assert_same_outcome(copy.root, played.root)


def test_a_control_that_is_no_longer_wanted_is_not_shown(copy: Game, played: Game) -> None:
    before, state = outcome(played.root), copy.state()
    result = copy.run("controls=null")
    assert result.code == 0 and copy.state() == state, result.err
    assert "continued" not in result.out and "iteration 1" in result.out
    summary = copy.json("summary.json")
    assert summary["controls"] == [] and not [name for name in summary["stages"] if "continued" in name]
    assert {row.get("stage") for row in metrics(copy.root)} == {"sft", None}
    sampled = copy.command("sample", "run", "say ab")
    assert sampled.code == 0 and "continued" not in sampled.out
    refused = copy.command("export", "run", "out", "--iteration", "continued-sft")
    assert refused.code == 2 and "no player 'continued-sft'" in refused.err
    assert copy.command("export", "run", "out").code == 0 and "continued" not in (copy.folder / "out" / "README.md").read_text()
    again = copy.run()
    assert again.code == 0 and copy.state() == state and "continued SFT" in again.out, "and back, without training"
    assert outcome(copy.root) == before


def test_the_control_of_fewer_iterations_is_not_shown_while_the_game_goes_on(copy: Game) -> None:
    killed = copy.run("iterations=3", sabotage=[Sabotage("sparring.selfplay:play_controls")])
    assert killed.code == -signal.SIGKILL
    summary = copy.json("summary.json")
    assert len(summary["iterations"]) == 3 and summary["controls"] == [] and summary["stop_reason"] is None
    assert {row.get("stage") for row in metrics(copy.root)} == {"sft", None}


NOTHING_TO_LEARN = """
from sparring import selfplay
from sparring.cli import main
from sparring.targets.window import Window
selfplay.window_at = lambda context, t: Window([], {"duels": 0, "duels_all_identical": 24}, indistinguishable=True)
main()
"""


def test_without_an_iteration_there_is_no_control(game: Game) -> None:
    """Every reply of the opponent equals the human one: there is no cost that a control could match."""
    result = game.command("run", "recipe.yaml", python=NOTHING_TO_LEARN)
    assert result.code == 0, result.err
    assert "continued SFT: no iteration was played, so there is no cost to match; left out" in result.err
    summary = game.json("summary.json")
    assert summary["iterations"] == summary["controls"] == [] and summary["best"] is None
    assert summary["stop_reason"] == "indistinguishable: every reply of the opponent equals the human one"
    assert not (game.root / "continued-sft").exists() and "continued" not in result.out
    assert json.loads((game.root / "manifest.json").read_text())["attempts"][-1]["outcome"] == "done"
