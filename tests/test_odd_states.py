"""Odd places for a run, and state files as crashes and people leave them: named with the remedy, and never a fault."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import Game
from test_kill_and_resume import assert_same_outcome
from zygote import Result, Sabotage

BROKEN = {"empty": b"", "object": b"{}", "list": b"[]", "null": b"null", "cut": None, "not text": b'{"a": "\xff\xfe"}', "deep": b"[" * 5000}
# some seconds each: the others run with --slow
HOW = [pytest.param(how, marks=[] if how in ("object", "not text") else pytest.mark.slow) for how in BROKEN]
FINISHED = ["manifest.json", "summary.json", "progress.json", "metrics.jsonl", "recipe.yaml", "chosen.json"]


def sane(result: Result, codes: tuple[int, ...] = (0, 2)) -> None:
    assert result.code in codes, (result.code, result.err)
    assert "Traceback" not in result.err + result.out and "fault:" not in result.err
    if result.code == 2:
        assert "error: " in result.err


def damage(file: Path, how: str) -> None:
    content = BROKEN[how]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", [*FINISHED, "iterations/001/train/done.json", "data/done.json", "iterations/001/evaluate/scores.json"])
def test_state_of_a_finished_run(name: str, how: str, copy: Game) -> None:
    file = copy.root / name
    if not file.exists():
        pytest.skip("this game has none")
    good = file.read_bytes()
    for command in (["status", "run"], ["export", "run", "out"], ["run", "recipe.yaml"]):
        damage(file, how)
        result = copy.command(*command)
        sane(result)
        if result.code == 2:
            assert Path(name).name in result.err, result.err
        shutil.rmtree(copy.folder / "out", ignore_errors=True)
        file.write_bytes(good)
    sane(copy.run(), (0,))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["attempt.json", "inputs.json", "metrics.jsonl", "step.json", "shard", "manifest.json"])
def test_state_of_a_run_that_was_killed(name: str, how: str, killed: Game) -> None:
    found = next(path for path in sorted(killed.root.rglob(f"{name}*")) if ".partial" in str(path) or name in ("manifest.json", "shard"))
    good = found.read_bytes()
    damage(found, how)
    sane(killed.command("status", "run"))
    result = killed.run()
    sane(result)
    if result.code == 2:
        assert found.name in result.err or "was made from other inputs" in result.err, result.err
        found.write_bytes(good)
        sane(killed.run(), (0,))


@pytest.fixture
def killed(game: Game) -> Game:
    """In the middle of training, with a checkpoint."""
    assert game.run(sabotage=[Sabotage("sparring.training.fit:_Trainer.step", nth=6 + 5)]).code == -9
    return game


# ---------------------------------------------------------------------------------------------- places

PLACES = ["ein Lauf, er läuft 🏃", "a 'quoted' \"one\" $HOME `x`", "-dash", "a/b/../c", "x" * 200]


@pytest.mark.parametrize("place", PLACES)
def test_unusual_names_of_runs(place: str, game: Game) -> None:
    game.write(run_dir=place, iterations=1, baseline=None, sft=None)
    sane(game.run(), (0,))
    sane(game.run(), (0,))
    sane(game.command("status", "--", place), (0,))
    sane(game.command("export", "--", place, "out"), (0,))


@pytest.mark.parametrize("place", ["x\x00y", "x" * 300, "x/" * 3000, "\ud800", "/proc/nowhere", "/dev/null", "/dev/null/x", "/sys/run"])
def test_places_where_no_run_can_be(place: str, game: Game) -> None:
    game.write(run_dir=place)
    result = game.run()
    sane(result, (2,))
    assert place.strip("/")[:20].encode("ascii", "replace").decode() in result.err or "run_dir" in result.err


@pytest.mark.parametrize("option", ["run_dir", "model.path", "data.path", "model.chat_template"])
@pytest.mark.parametrize("path", ["x\x00y", "x" * 300, "\ud800", "y/" * 3000])
def test_paths_that_cannot_be(option: str, path: str, game: Game) -> None:
    section, _, key = option.rpartition(".")
    game.write(**{f"{section}__{key}" if section else key: path})
    sane(game.run(), (2,))
    sane(game.command("plan", "recipe.yaml"), (0, 2))


@pytest.mark.parametrize("target", ["x\x00y", "x" * 300, "/proc/nowhere/out", "/dev/null/out", "rows.jsonl/out"])
def test_an_export_into_nowhere(target: str, copy: Game) -> None:
    if "\x00" in target:
        from sparring.errors import UserError
        from sparring.export import export

        with pytest.raises(UserError):
            export(copy.root, Path(target))
        return
    sane(copy.command("export", "run", target), (2,))
    sane(copy.command("push", "run", "--repo", "me/it", "--dry-run", target), (2,))
    sane(copy.command("report", "run", "--output", target), (2,))


def test_a_run_behind_a_link(game: Game, played: Game) -> None:
    (game.folder / "elsewhere").mkdir()
    game.root.symlink_to("elsewhere")
    sane(game.run(), (0,))
    assert game.root.is_symlink()
    assert_same_outcome(game.root, played.root)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\x00", "\ufffe"])
def test_texts_that_are_no_text(text: str, game: Game) -> None:
    game.write(showcase=[text], iterations=1, baseline=None, sft=None)
    sane(game.run())


def test_a_lock_of_another_process_that_lives(game: Game) -> None:
    """Its number means nothing where nobody holds the lock: another machine, or one that has started anew."""
    game.root.mkdir()
    (game.root / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}, since 2026-01-01T00:00:00+00:00")
    game.write(iterations=1, baseline=None, sft=None)
    sane(game.run(), (0,))
    (game.root / ".lock").write_bytes(b"\xff\x00")
    sane(game.command("status", "run"), (0,))


# ---------------------------------------------------------------------------------------------- kills in odd moments


@pytest.mark.parametrize("function", ["sparring.report.run_page:render_page", "sparring.report.run_files:read_run"])
def test_killed_while_the_report_is_drawn(function: str, game: Game) -> None:
    game.write(iterations=1, baseline=None, sft=None, report=True)
    assert game.run(sabotage=[Sabotage(function)]).code == -9
    sane(game.run(), (0,))
    assert "<html" in (game.root / "report.html").read_text()


@pytest.mark.parametrize("nth", [1, 3, 6])
def test_killed_while_stages_are_deleted(nth: int, copy: Game, played: Game) -> None:
    assert (
        copy.run("--restart-from", "iterations/000/train", sabotage=[Sabotage("shutil:rmtree", nth=nth, args="iterations|sft")]).code == -9
    )
    sane(copy.run(), (0,))
    assert_same_outcome(copy.root, played.root)


# ---------------------------------------------------------------------------------------------- games that go wrong


@pytest.mark.parametrize("option", ["train.lr=1e30", "train.lr=1e300", "sft.lr=1e30", "objective.beta=1e300", "train.epochs=1e-300"])
def test_numbers_that_explode(option: str, game: Game) -> None:
    game.write(iterations=1, baseline=None)
    sane(game.run(option))


RUBBISH: list[tuple[str, dict[str, Any]]] = [
    ("truncated", {"sampling__max_new_tokens": 1}),
    ("identical", {"sampling__temperature": 0.0, "sampling__replies_per_prompt": 1}),
]


@pytest.mark.parametrize(("name", "changes"), RUBBISH)
def test_replies_of_one_kind(name: str, changes: dict[str, Any], game: Game) -> None:
    game.write(**changes, report=True)
    sane(game.run(), (0,))
