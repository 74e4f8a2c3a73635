"""The line of progress: what is in it, how it fits, and what it does to terminals, pipes and records."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Game as PlayedGame
from rich.console import Console

from sparring import progress
from sparring.config import load_recipe
from sparring.console import animates, quoted
from sparring.progress import GameProgress, PhaseProgress, Snapshot, at_stage, in_one_line, read_progress, written_to
from sparring.stage_names import place_in

SRC = Path(__file__).parent.parent / "src"
NOW = Snapshot(
    phase="iteration 0: training",
    unit="steps",
    done=30,
    total=120,
    rate=1.5,
    numbers={"loss": 0.51234, "margin": 0.4, "accuracy": 0.7},
    memory=("RAM", 4_300_000_000),
    sample=None,
    game=None,
)
WHOLE = "iteration 0: training 30/120 steps  0:01:00 left  loss 0.5123  margin 0.4  accuracy 0.7  1.5/s  RAM 4.3 GB"


def test_the_line_holds_everything() -> None:
    assert in_one_line(NOW) == WHOLE
    nothing_yet = in_one_line({**NOW, "done": 0, "rate": 0.0, "numbers": {}})
    assert nothing_yet == "iteration 0: training 0/120 steps  RAM 4.3 GB"


GAME = GameProgress(number=11, stages=20, iterations=3, stage_seconds=100.0, later_seconds=600.0)


def test_the_line_of_a_game_begins_with_its_place() -> None:
    now = {**NOW, "phase": "iteration 1: training", "game": GAME}
    assert in_one_line(now).startswith("[11/20] iteration 1 of 3: training 30/120 steps  0:01:00 left  0:11:00 of the game  loss")
    assert in_one_line({**now, "phase": "continued-sft/train"}).startswith("[11/20] continued-sft/train 30/120 steps")


def test_time_left_of_a_game_is_told_when_something_tells_it() -> None:
    first = {**NOW, "rate": 0.0, "done": 0, "game": GAME}
    assert "steps  0:11:40 of the game" in in_one_line(first)
    for game in ({**GAME, "later_seconds": None}, {**GAME, "stage_seconds": None}):
        assert "of the game" not in in_one_line({**first, "game": game})
    assert "of the game" in in_one_line({**NOW, "game": {**GAME, "stage_seconds": None}}), "by the phase's own pace"


@pytest.mark.parametrize("width", [10, 40, 60, 80, 200])
def test_a_narrow_terminal_gets_what_matters_most(width: int) -> None:
    line = in_one_line(NOW, width)
    assert len(line) <= width and WHOLE.startswith(line.split("  ")[0])
    assert ("left" in line) == (width >= 60) and ("GB" in line) == (width > len(WHOLE))


# A child that works for a moment: phases with numbers, a reply full of control characters and markup, a log line in between.
CHILD = r"""
import time
from sparring.console import log, set_up_logging
from sparring.progress import progress
set_up_logging()
log.setLevel("INFO")  # as the file of a run does
with progress("iteration 0: training", 40, "steps") as shown:
    for step in range(40):
        shown.advance(1, loss=0.5, margin=0.25, accuracy=0.75)
        if step == 20:
            shown.sample("say \x1b[2J[red]a", "b\r\n\x07[/red] \u202e " + "c" * 500)
            log.info("a line in between")
        time.sleep(0.02)
print("the end")
"""


def in_terminal(columns: int, **environment: str) -> str:
    """Everything that the child wrote to a terminal of that width."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=child, stdout=child, stderr=child, env=child_environment(environment))
    os.close(child)
    found = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        found += part
    os.close(parent)
    assert process.wait(30) == 0, found
    return found.decode()


def child_environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": str(SRC), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **changes}


def lines_of(text: str) -> list[str]:
    """What stood on the terminal's lines at any time, without control sequences."""
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", text)]


@pytest.mark.parametrize("columns", [60, 160])
def test_in_a_terminal_it_changes_in_place_and_leaves_no_trace(columns: int) -> None:
    text = in_terminal(columns)
    lines = lines_of(text)
    assert all(len(line) <= columns for line in lines) and "\x1b[2J" not in text and "\x07" not in text and "\u202e" not in text
    seen = [line for line in lines if line.startswith("iteration 0: training ")]
    assert len(seen) > 3 and all("left" in line or "40/40" in line or " 0/40" in line for line in seen)
    running = [line for line in seen[1:] if "left" in line]
    assert all(("margin" in line) == ("\u2500" in line or "\u2501" in line) == (columns == 160) for line in running), running
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is there again"
    after = text.rpartition("\x1b[?25h")[2]
    assert lines_of(after)[-2:] == ["the end", ""] and not re.search(r"\d+/40", "".join(lines_of(after)))


def test_replies_are_shown_in_a_line_without_control_characters_or_markup() -> None:
    logged = " ".join(in_terminal(200).split())
    assert 'iteration 0: training: "say \ufffd[2J[red]a" -> "b\ufffd \ufffd[/red] \ufffd ccc' in logged and "a line in between" in logged
    assert quoted("\x1b]0;title\x07 one\n two ", 30) == '"\ufffd]0;title\ufffd one two"' and len(quoted("long " * 100)) <= 72


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_is_none_gets_plain_lines(environment: dict[str, str]) -> None:
    text = in_terminal(60, **environment)
    assert "\x1b[?25" not in text and "\x1b[1A" not in text and "\x1b[2K" not in text
    assert "/40 steps" not in text, "lines come every 15 seconds"
    assert "a line in between" in text


def test_no_color_is_kept_to() -> None:
    assert "\x1b[32m" in in_terminal(160)
    colours = set(re.findall(r"\x1b\[([0-9;]*)m", in_terminal(160, NO_COLOR="1")))
    assert not [code for code in colours if re.search(r"(^|;)(3[0-9]|4[0-9]|9[0-7])(;|$)", code)], colours


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_in_a_pipe_there_are_whole_lines_only(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, env=child_environment(environment), timeout=30, check=True)
    text = done.stderr.decode() + done.stdout.decode()
    assert "\r" not in text and "\x1b[?" not in text and "\x1b[1A" not in text and "\x1b[2K" not in text
    assert ("\x1b" not in text) or environment
    assert "a line in between" in text and text.endswith("the end\n")


def test_a_notebook_is_no_terminal() -> None:
    assert not animates(Console(force_jupyter=True))


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.0)
    with caplog.at_level("INFO", "sparring"), progress.progress("sampling", 4, "replies", 2) as shown:
        shown.advance(1, tokens_per_reply=3.0)
    assert re.fullmatch(r"sampling 3/4 replies  \S+ left  tokens per reply 3  \S+/s  RAM \d+\.\d GB", caplog.messages[-1])


def test_a_reply_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = PhaseProgress("sampling", 4, "replies", 0)
    assert shown.wants_sample
    shown.sample("a", "b")
    assert not shown.wants_sample and shown.snapshot()["sample"] == ('"a"', '"b"')
    later = time.monotonic() + progress.SAMPLE_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert shown.wants_sample


# ---------------------------------------------------------------------------------------------- progress.json


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.05)


def soon(root: Path, **wanted: Any) -> dict[str, Any]:
    end = time.monotonic() + 10
    while not ((found := read_progress(root)).items() >= wanted.items()):
        assert time.monotonic() < end, found
        time.sleep(0.005)
    return found


def test_the_file_follows_the_work(tmp_path: Path, quick: None) -> None:
    with written_to(tmp_path, "sparring run it.yaml"):
        assert soon(tmp_path, stage=None, now=None, command="sparring run it.yaml", folder=os.getcwd())
        with at_stage("sft"), progress.progress("sft", 5, "steps") as shown:
            soon(tmp_path, stage="sft")
            shown.advance(2, loss=0.5)
            end = time.monotonic() + 10
            while (now := read_progress(tmp_path)["now"]) is None or now["done"] != 2:
                assert time.monotonic() < end
            assert now["phase"] == "sft" and now["total"] == 5 and now["numbers"] == {"loss": 0.5}
            assert in_one_line(now).startswith("sft 2/5 steps")
    ended = json.loads((tmp_path / "progress.json").read_text())
    assert ended["stage"] is None and ended["now"] is None and ended["command"] == "sparring run it.yaml"
    assert not list(tmp_path.glob("*.tmp"))


def test_it_beats_while_nothing_moves_and_while_others_write(tmp_path: Path, quick: None) -> None:
    def beats() -> None:
        before, end = (tmp_path / "progress.json").stat().st_mtime_ns, time.monotonic() + 10
        while (tmp_path / "progress.json").stat().st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.005)

    with written_to(tmp_path):
        soon(tmp_path, stage=None)
        beats()
        with at_stage("iterations/000/train", in_ranks=True):
            time.sleep(0.05)  # a write that was under way
            (tmp_path / "progress.json").write_text('{"stage": "of a rank"}')
            beats()
            assert read_progress(tmp_path) == {"stage": "of a rank"}


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\xff"])
def test_nonsense_in_the_file_is_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "progress.json").write_bytes(content.encode("latin-1"))
    assert read_progress(tmp_path) == {}


def test_a_run_directory_that_cannot_be_written_ends_nothing(tmp_path: Path, quick: None) -> None:
    with written_to(tmp_path / "gone"):
        time.sleep(0.05)


# ---------------------------------------------------------------------------------------------- place in the game


def test_the_place_of_a_stage_and_what_the_others_will_take(played: PlayedGame) -> None:
    """A finished game, looked at from its second iteration: the first one's seconds are all that was known then."""
    recipe = load_recipe(played.root / "recipe.yaml")
    place = place_in(played.root, recipe)
    took = {
        part: played.json(f"iterations/000/{part}/done.json")["facts"]["wall_seconds"] for part in ("score", "train", "measure", "evaluate")
    }
    found = place("iterations/001/generate")
    assert (found["number"], found["stages"], found["iterations"]) == (11, 18, 2)
    assert found["stage_seconds"] is not None
    of_control = 2 * sum(took[part] for part in ("score", "train")) + 2 * found["stage_seconds"]
    of_players = [took[part] for part in ("score", "train", "measure", "evaluate", "measure", "evaluate")]
    assert found["later_seconds"] == pytest.approx(sum(of_players) + of_control, abs=0.01)
    first = place("iterations/000/generate")
    assert first["stage_seconds"] is None or first["later_seconds"] is None, "nothing has been sampled before"
    assert place("elsewhere") is None and place("continued-sft/evaluate")["later_seconds"] == 0
