"""Odd places for a run, and state files as crashes and people leave them: named with the remedy, and never a fault."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Game
from test_kill_and_resume import assert_same_outcome
from zygote import Result, Sabotage, working

from sparring.errors import UserError
from sparring.files import require_plain

BROKEN = {"empty": b"", "object": b"{}", "list": b"[]", "null": b"null", "cut": None, "not text": b'{"a": "\xff\xfe"}', "deep": b"[" * 5000}
# some seconds each: the others run with --slow
HOW = [pytest.param(how, marks=[] if how in ("object", "not text") else pytest.mark.slow) for how in BROKEN]
FINISHED = ["manifest.json", "summary.json", "progress.json", "metrics.jsonl", "recipe.yaml", "micro_batch.json"]


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
    to_its_end = ("iterations=1", "controls=null")
    result = killed.run(*to_its_end)
    sane(result)
    if result.code == 2:
        assert found.name in result.err or "was made from other inputs" in result.err, result.err
        found.write_bytes(good)
        sane(killed.run(*to_its_end), (0,))


@pytest.fixture(scope="module")
def killed_in_training(tmp_path_factory: pytest.TempPathFactory, played: Game) -> Game:
    """A game in the middle of training, with a checkpoint. Only to be copied."""
    game = Game(tmp_path_factory.mktemp("killed") / "game", played.zygote, {})
    game.copy_stages(played, before="iterations/000/train")
    assert game.run(sabotage=[working("iterations/000/train", 4)]).code == -9
    return game


@pytest.fixture
def killed(game: Game, killed_in_training: Game) -> Game:
    """A copy of it."""
    shutil.copytree(killed_in_training.root, game.root, symlinks=True)
    return game


@pytest.mark.parametrize("name", ["manifest.json", "progress.json", ".lock", "iterations/000/train/done.json", "recipe.yaml"])
@pytest.mark.parametrize("what", ["pipe", "link to a device", "socket"])
def test_what_no_reader_would_come_back_from(name: str, what: str, copy: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may come from elsewhere: a pipe would be waited for, and a device has no end."""
    file = copy.root / name
    file.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(file)
    elif what == "socket":
        monkeypatch.chdir(file.parent)
        socket.socket(socket.AF_UNIX).bind(file.name)  # a name may have 108 bytes at most
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="not a regular file but a pipe, a device or a socket") as refused:
        require_plain(copy.root)
    assert refused.value.where == str(file)
    if name == "manifest.json" and what == "pipe":  # the commands' way there
        for command in (["status", "run"], ["watch", "run"], ["export", "run", "out"], ["compare", "run"], ["run", "recipe.yaml"]):
            sane(result := copy.command(*command), (2,))
            assert "run/manifest.json: not a regular file but a pipe" in result.err


def test_a_folder_in_the_place_of_a_state_file(copy: Game) -> None:
    (copy.root / "manifest.json").unlink()
    (copy.root / "manifest.json").mkdir()
    for command in (["status", "run"], ["export", "run", "out"], ["run", "recipe.yaml"]):
        sane(copy.command(*command))


# ---------------------------------------------------------------------------------------------- places

PLACES = ["ein Lauf, er läuft 🏃", "a 'quoted' \"one\" $HOME `x`", "-dash", "a/b/../c", "x" * 200, "s3:", "./~root"]


@pytest.mark.parametrize("place", PLACES)
def test_unusual_names_of_runs(place: str, game: Game) -> None:
    game.write(run_dir=place, iterations=1, controls=None, sft=None)
    sane(game.run(), (0,))
    sane(game.run(), (0,))
    sane(game.command("status", "--", place), (0,))
    sane(game.command("export", "--", place, "out"), (0,))


def test_a_run_at_home(game: Game) -> None:
    """Some libraries know `~` by themselves and others do not: it is resolved once, for all of them."""
    (game.folder / "home").mkdir()
    game.write(run_dir="~/a run", iterations=1, controls=None, sft=None)
    sane(game.run(environment={"HOME": str(game.folder / "home")}), (0,))
    assert (game.folder / "home" / "a run" / "summary.json").exists() and not (game.folder / "~").exists()


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
    game.copy_stages(played, before="iterations/001/generate")
    sane(game.run(), (0,))
    assert game.root.is_symlink()
    assert_same_outcome(game.root, played.root)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\x00", "\ufffe"])
def test_texts_that_are_no_text(text: str, game: Game) -> None:
    game.write(showcase=[text], iterations=1, controls=None, sft=None)
    sane(game.run())


def test_a_lock_of_another_process_that_lives(game: Game) -> None:
    """Its number means nothing where nobody holds the lock: another machine, or one that has started anew."""
    game.root.mkdir()
    (game.root / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}, since 2026-01-01T00:00:00+00:00")
    game.write(iterations=1, controls=None, sft=None)
    sane(game.run(), (0,))
    (game.root / ".lock").write_bytes(b"\xff\x00")
    sane(game.command("status", "run"), (0,))


# ---------------------------------------------------------------------------------------------- read-only places, readers beside a writer

LOOKS = [
    ["status", "run"],
    ["watch", "run"],
    ["sample", "run", "say ab"],
    ["compare", "run"],
    ["report", "run", "--output", "page.html"],
]
LOOKS += [["export", "run", "out/model"], ["push", "run", "--repo", "me/it", "--dry-run", "out/push"]]


@pytest.fixture
def locked(game: Game) -> Iterator[Callable[[str], None]]:
    """Call it with "ro" to have the run's folder on a file system that is read-only, with "rw" to write there again."""
    game.root.mkdir()

    def mount(*args: str) -> None:
        made = subprocess.run(["mount", *args, str(game.root)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"cannot mount a file system here: {made.stderr.strip()}")

    mount("-t", "tmpfs", "-o", "size=100m", "tmpfs")
    yield lambda mode: mount("-o", f"remount,{mode}")
    subprocess.run(["umount", "-l", str(game.root)], check=True)


def test_a_read_only_file_system(locked: Callable[[str], None], game: Game, played: Game) -> None:
    """Refused by its name before anything is computed, and gone on with by the same command once it can be written."""
    locked("ro")
    sane(empty := game.run(), (2,))
    locked("rw")
    assert game.run(sabotage=[working("iterations/000/train", 4)]).code == -9
    locked("ro")
    sane(begun := game.run(), (2,))
    assert all("run" in one.err and "ead-only file system" in one.err and "Traceback" not in one.err for one in (empty, begun))
    locked("rw")
    sane(game.run(), (0,))
    assert_same_outcome(game.root, played.root)
    locked("ro")
    for command in LOOKS:
        sane(game.command(*command), (0,))
    sane(game.command("report", "run"), (2,))


def test_readers_during_a_run(game: Game, played: Game) -> None:
    """Whatever is there or not there yet, they show it or say what is missing; and the run is what it is without them."""
    running, watching = game.start(), []
    for stages in (0, 3, 8, 12):
        running.wait_for(lambda stages=stages: game.root.exists() and game.finished_stages() >= stages)
        os.kill(running.pid, signal.SIGSTOP)  # so that they see it in the middle, however slow they are
        try:
            for command in LOOKS:
                if command[0] != "watch":  # which lasts as long as the run
                    sane(game.command(*command))
            watching.append(game.zygote.start(["watch", "run"], game.folder))
        finally:
            os.kill(running.pid, signal.SIGCONT)
        shutil.rmtree(game.folder / "out", ignore_errors=True)
    sane(running.wait(), (0,))
    for watch in watching:
        sane(watch.wait())
    assert_same_outcome(game.root, played.root)


# ---------------------------------------------------------------------------------------------- kills in odd moments


@pytest.mark.parametrize("function", ["sparring.report.run_page:render_page", "sparring.report.run_files:read_run"])
def test_killed_while_the_report_is_drawn(function: str, game: Game) -> None:
    game.write(iterations=1, controls=None, sft=None, report=True)
    assert game.run(sabotage=[Sabotage(function)]).code == -9
    sane(game.run(), (0,))
    assert "<html" in (game.root / "report.html").read_text()


@pytest.mark.parametrize("stage", ["continued-sft/evaluate", "iterations/001/train"])
def test_killed_while_stages_are_deleted(stage: str, copy: Game, played: Game) -> None:
    """The last one goes first."""
    assert copy.run("--restart-from", "iterations/000/train", sabotage=[Sabotage("shutil:rmtree", args=f"{stage}$")]).code == -9
    sane(copy.run(), (0,))
    assert_same_outcome(copy.root, played.root)


# ---------------------------------------------------------------------------------------------- games that go wrong


@pytest.mark.parametrize("option", ["train.lr=1e30", "train.lr=1e300", "sft.lr=1e30", "objective.beta=1e300", "train.epochs=1e-300"])
def test_numbers_that_explode(option: str, game: Game) -> None:
    game.write(iterations=1, controls=None)
    sane(game.run(option))


NO_NUMBER = """
from sparring.training import fit
step, calls = fit._Trainer.step, 0
def poisoned(self, number):
    global calls
    calls += 1
    if calls == {at}:
        next(self.weights.model.parameters()).data[:] = float("nan")
    return step(self, number)
fit._Trainer.step = poisoned
from sparring.cli import main
main()
"""


@pytest.mark.parametrize(("stage", "step"), [("sft", 0), ("sft", 3), ("iterations/000/train", 5), ("iterations/001/train", 8)])
def test_no_number_at_a_step(stage: str, step: int, game: Game, played: Game) -> None:
    """The weights are no numbers from one step on: it ends before the update, and the same command goes on from the last good step."""
    game.copy_stages(played, before=stage)
    result = game.command("run", "recipe.yaml", python=NO_NUMBER.format(at=step + 1))
    sane(result, (2,))
    assert f"step {step}" in result.err and "lr" in result.err, result.err
    game.copy_later_stages(played, after=stage)
    sane(game.run(), (0,))
    assert_same_outcome(game.root, played.root)


@pytest.mark.parametrize("weight", ["model.norm.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_weights_are_no_numbers(weight: str, value: float, game: Game, played: Game) -> None:
    """It is loaded like any other; nothing can be drawn from it."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(played.root / "base" / "model", game.folder / "model"))
    weights = load_file(folder / "model.safetensors")
    weights[weight][3] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    game.write(model__path="model", sft=None)
    sane(result := game.run(), (2,))
    assert "the model's logits of the next token are not finite (NaN)" in result.err and "check its weights" in result.err


# every draw of every reply gives this token; the tiny model's end of turn is 1
SAY = """
import torch
from sparring.opponent.hf import TransformersEngine
TransformersEngine._draw = lambda self, logits, uniforms: torch.full(logits.shape[:-1], {token})
from sparring.cli import main
main()
"""


@pytest.mark.parametrize(("token", "kind"), [(1, "empty"), (70, "truncated")])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}], ids=["whole", "adapters"])
def test_all_replies_are_one(token: int, kind: str, lora: dict[str, Any] | None, game: Game) -> None:
    """Nothing at all, or the same letter until they are cut: played to the end, counted, and said."""
    game.write(train__lora=lora, iterations=1, report=True)
    result = game.command("run", "recipe.yaml", python=SAY.format(token=token))
    sane(result, (0,))
    assert f"24 duels, 48 replies, 48 replies {kind}" in result.err, result.err
    if (lora is None) == (kind == "empty"):  # what the commands show depends on the replies, and what they load on the adapters
        for command in LOOKS:
            sane(game.command(*command), (0,))


@pytest.mark.parametrize("changes", [{"sampling__max_new_tokens": 1}, {"sampling__temperature": 0.0, "sampling__replies_per_prompt": 1}])
def test_the_shortest_and_the_likeliest_replies(changes: dict[str, Any], game: Game) -> None:
    game.write(**changes, report=True)
    sane(game.run(), (0,))
