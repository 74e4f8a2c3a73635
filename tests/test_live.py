"""`sparring status` and `sparring watch`: runs that work, are finished, stopped, killed, or belong to another machine."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Game
from zygote import working, written

from sparring import live
from sparring.live import LogTail, ProcessState, Pulse, read_state
from sparring.locks import LOCK, Holder, hold, holder
from sparring.progress import STALE_SECONDS

# ---------------------------------------------------------------------------------------------- who holds it

HOLD = """
import sys, time
from pathlib import Path
from sparring.locks import LOCK, hold
with hold(Path(sys.argv[1]), LOCK):
    print(1, flush=True)
    time.sleep(60)
"""


def held_by_another(root: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    return process


def test_the_holder_is_seen_while_it_lives_and_after_a_kill(tmp_path: Path) -> None:
    assert holder(tmp_path) is None and not list(tmp_path.iterdir()), "looking leaves nothing"
    process = held_by_another(tmp_path)
    try:
        found = holder(tmp_path)
        assert found is not None and found.alive is True and found.name.startswith(f"process {process.pid} on ") and found.since > "20"
    finally:
        process.kill()
        process.wait()
    killed = holder(tmp_path)
    assert killed == Holder(found.name, found.since, alive=False)
    with hold(tmp_path, LOCK):
        assert holder(tmp_path).name.startswith(f"process {os.getpid()} ")
    assert holder(tmp_path) is None, "it ended in good order"


def test_of_another_machine_a_free_lock_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 7 on elsewhere, since 2026-11-22T11:24:00+00:00")
    assert holder(tmp_path) == Holder("process 7 on elsewhere", "2026-11-22T11:24:00+00:00", alive=None)
    with open(tmp_path / LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert holder(tmp_path).alive is True, "a lock that can be seen does"


def test_who_looks_is_never_in_the_way_of_who_writes(tmp_path: Path) -> None:
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            holder(tmp_path)
            time.sleep(0.0005)

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for thread in watchers:
        thread.start()
    try:
        for _ in range(200):
            with hold(tmp_path, LOCK):
                pass
    finally:
        ended.set()
        for thread in watchers:
            thread.join()


# ---------------------------------------------------------------------------------------------- status


def tree(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_finished_run_in_one_screen(played: Game) -> None:
    before = tree(played.root)
    result = played.command("status", "run")
    assert result.code == 0 and result.err == "" and tree(played.root) == before, "it only reads"
    for part in ("finished 20", "Best iteration:", "all 2 are played", "start", "iteration 1", "continued SFT", "NLL per token"):
        assert part in " ".join(result.out.split()), result.out  # a line may break anywhere
    assert len(result.out.splitlines()) <= 24 and "resume with" not in result.out
    assert played.command("watch", "run").code == 0, "nothing to wait for"


def test_a_finished_run_that_is_typed_again_does_not_end_later(copy: Game) -> None:
    ended = read_state(copy.root).last_finished
    manifest = copy.root / "manifest.json"
    attempts = json.loads(manifest.read_text())["attempts"]
    again = {**attempts[-1], "started": "2031-01-01T00:00:00+00:00", "ended": "2031-01-01T00:00:09+00:00"}
    manifest.write_text(json.dumps({"attempts": [*attempts, again]}))
    state = read_state(copy.root)
    assert state.last_finished == ended == max(json.loads(file.read_text())["finished"] for file in copy.root.rglob("done.json"))
    assert f"finished {ended[:10]} {ended[11:16]} UTC" in " ".join(copy.command("status", "run").out.split())


def test_a_finished_run_whose_new_scores_were_refused_is_still_finished(copy: Game) -> None:
    """They are in a folder next to the former ones, which stay."""
    (copy.root / "iterations/000/evaluate.partial").mkdir()
    state = read_state(copy.root)
    assert state.process is ProcessState.FINISHED and state.stage is None


@pytest.mark.parametrize("columns", ["60", "80"])
def test_status_fits_a_narrow_terminal(played: Game, columns: str) -> None:
    result = played.command("status", "run", environment={"COLUMNS": columns, "FORCE_COLOR": "1", "NO_COLOR": "1"})
    lines = re.sub(r"\x1b\[[0-9;]*m", "", result.out).splitlines()
    assert result.code == 0 and max(map(len, lines)) <= int(columns) and not re.search(r"\x1b\[(3|4|9)\d", result.out)


def test_it_loads_no_torch(played: Game) -> None:
    code = "import sys\nsys.argv = ['sparring', 'status', 'run']\nfrom sparring.cli import main\n"
    code += "try: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=played.folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("False\n"), done.stderr


def test_a_killed_run_and_how_it_goes_on(game: Game) -> None:
    assert game.run("sampling.top_p=0.9", sabotage=[working("iterations/000/train", 2)]).code == -9
    before = tree(game.root)
    result = game.command("status", "run")
    out = " ".join(result.out.split())
    assert result.code == 0 and tree(game.root) == before
    assert "not running: process " in out and "was killed" in out
    assert "stage iterations/000/train (7 of 18 finished)" in out, result.out
    assert "resumes with iterations/000/train, from its checkpoint after 2 steps" in out
    assert "iteration 0, step 3: loss " in out and "start" in out
    assert result.out.rstrip().endswith("resume with:\n  sparring run recipe.yaml sampling.top_p=0.9")
    elsewhere = game.zygote.run(["status", str(game.root)], game.folder.parent)
    assert elsewhere.out.rstrip().endswith(f"cd {game.folder} && sparring run recipe.yaml sampling.top_p=0.9")
    watched = game.command("watch", "run")
    assert watched.code == 1 and "was killed" in watched.out
    assert game.run("sampling.top_p=0.9").code == 0
    assert read_state(game.root).process is ProcessState.FINISHED


def test_killed_while_it_sampled(game: Game) -> None:
    killed = game.run(sabotage=[written("000/generate.partial/shard-.*", nth=2)])
    assert killed.code == -9
    assert "with iterations/000/generate, from its first 32 replies" in game.command("status", "run").out


@pytest.mark.parametrize(("do", "word"), [("interrupt", "interrupted"), ("crash", "RuntimeError")])
def test_a_stopped_run_says_how_it_ended(game: Game, do: str, word: str) -> None:
    game.run(sabotage=[working("sft", 2, do)])
    out = " ".join(game.command("status", "run").out.split())
    assert "not running: the last attempt of 1 ended 20" in out and f": {word}" in out and "sparring run recipe.yaml" in out


def test_the_command_of_a_run_from_python_is_made_up_from_its_recipe(copy: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy.root / "progress.json").unlink()
    monkeypatch.chdir(copy.folder)
    assert read_state(Path("run")).command == "sparring run run/recipe.yaml"
    monkeypatch.chdir(copy.root)
    assert read_state(copy.root).command == f"sparring run {copy.root}/recipe.yaml run_dir={copy.root}"


def test_another_machines_run_is_judged_by_what_it_writes(copy: Game) -> None:
    (copy.root / LOCK).write_text("process 7 on elsewhere, since 2026-11-22T11:24:00+00:00")
    (copy.root / "iterations/001/train").rename(copy.root / "iterations/001/train.partial")
    os.utime(copy.root / "progress.json")
    assert "running: process 7 on elsewhere, since 2026-11-22 11:24 UTC" in copy.command("status", "run").out
    long_ago = time.time() - STALE_SECONDS - 600
    os.utime(copy.root / "progress.json", (long_ago, long_ago))
    silent = " ".join(copy.command("status", "run").out.split())
    assert "last progress 0:11:0" in silent and "it was killed, or its machine or disk cannot be reached" in silent
    assert "if its process no longer runs, resume with:" in silent
    assert copy.command("watch", "run").code == 1
    (copy.root / "progress.json").unlink()
    assert "no progress so far" in copy.command("status", "run").out


@pytest.mark.parametrize("command", ["status", "watch"])
def test_no_such_run(game: Game, command: str) -> None:
    result = game.command(command, "nowhere")
    assert result.code == 2 and "nowhere: not a run directory: no recipe.yaml in it" in result.err and "Traceback" not in result.err


def test_words_of_a_model_do_nothing_to_the_terminal(copy: Game) -> None:
    told = json.loads((copy.root / "progress.json").read_text())
    (copy.root / "progress.json").write_text(json.dumps({**told, "command": "sparring run 'r[red]'", "folder": "/x\x1b[2J"}))
    (copy.root / "iterations/001/train").rename(copy.root / "iterations/001/train.partial")
    out = copy.command("status", "run").out
    assert "\x1b" not in out and "cd '/x\ufffd[2J' && sparring run 'r[red]'" in out


# ---------------------------------------------------------------------------------------------- watch


def test_watch_follows_a_run_to_its_end(game: Game) -> None:
    running = game.start()
    running.wait_for(lambda: "SFT: training: 6 steps" in running.err)
    status = game.command("status", "run")
    assert f"running: process {running.pid} on " in status.out and "finished)" in status.out
    watched = game.zygote.start(["watch", "run"], game.folder)
    assert running.wait().code == 0
    result = watched.wait(60)
    assert result.code == 0 and result.err == "", result.err
    assert "running: process" in result.out and "iteration 1: training: 12 steps" in result.out
    assert '-> "' in result.out, "a reply now and then"
    assert " ".join(result.out.split()).endswith("The game ended - iterations: all 2 are played.")
    assert "DEBUG" not in result.out and "\x1b" not in result.out and "\r" not in result.out


def test_watch_says_that_the_writer_was_killed(game: Game) -> None:
    game.write(sft__epochs=200)
    running = game.start()
    running.wait_for(lambda: "SFT: training: 1,200 steps" in running.err)
    watched = game.zygote.start(["watch", "run"], game.folder)
    watched.wait_for(lambda: "running: process" in watched.out)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    result = watched.wait(60)
    assert result.code == 1 and f"not running: process {running.pid} on " in result.out and "was killed" in result.out
    assert result.out.rstrip().endswith("resume with:\n  sparring run recipe.yaml")


def test_ctrl_c_ends_watching_and_nothing_else(copy: Game) -> None:
    with hold(copy.root, LOCK):
        watched = copy.zygote.start(["watch", "run"], copy.folder)
        watched.wait_for(lambda: "running: process" in watched.out)
        time.sleep(0.1)
        os.kill(watched.pid, signal.SIGINT)
        result = watched.wait(30)
    assert result.code == 130 and result.err.strip() == "stopped watching; the run is not affected" and "Traceback" not in result.out


def test_watch_times_the_silence_of_another_machine_by_its_own_clock(copy: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy.root / LOCK).write_text("process 7 on elsewhere, since 2026-11-22T11:24:00+00:00")
    os.utime(copy.root / "progress.json", (1, 1))  # a clock far behind ours
    clock = 1000.0
    monkeypatch.setattr(live.time, "monotonic", lambda: clock)
    pulse = Pulse(copy.root)
    clock += STALE_SECONDS
    assert pulse.beats()
    clock += 1
    assert not pulse.beats()
    os.utime(copy.root / "progress.json", (2, 2))
    assert pulse.beats()
    (copy.root / LOCK).write_text("")
    assert not pulse.beats(), "it ended in good order"


def test_the_log_is_followed_by_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    tail = LogTail(file)
    assert list(tail.new_lines()) == []
    file.write_text("2026-11-22 11:24:00,123 INFO one\n2026-11-22 11:24:01,123 DEBUG hidden\nTraceback: hidden\n2026-11-22 11:24:02,1 WARN")
    assert list(tail.new_lines()) == ["11:24:00 one"]
    with open(file, "a") as more:
        more.write("ING two \x1b[2J[red]\n")
    assert list(tail.new_lines()) == ["11:24:02 two \ufffd[2J[red]"]
    assert list(LogTail(file).new_lines()) == [], "what was there before is not told again"
