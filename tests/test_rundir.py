"""The run directory: stages that are skipped, refused or gone on with, commits that survive a crash at any call, one writer."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Game

from sparring import interrupts, rundir
from sparring.errors import UserError
from sparring.rundir import ATTEMPT, DONE, INPUTS, PARTIAL, RunDir, differences, digest, file_hash, read_json, write_json
from sparring.stage_names import stage_names, stages_from

NAME = "iterations/000/train"
INPUT = {"opponent": "abc", "train": {"lr": 1e-6, "epochs": 2}}


class Work:
    """A stage's work that counts its calls: three files, one of them in a folder; keeps a file of an earlier attempt."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "model").mkdir(exist_ok=True)
        if not (folder / "shard-0").exists():
            (folder / "shard-0").write_text("first part")
        (folder / "model" / "weights").write_text("weights")
        write_json(folder / "scores.json", {"value": 1})
        return {"rows": 3}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def finished(run: RunDir) -> RunDir:
    run.stage(NAME, INPUT, Work())
    return run


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- skip, refuse, go on


def test_a_stage_is_done_once(run: RunDir) -> None:
    work = Work()
    first = run.stage(NAME, INPUT, work)
    again = RunDir(run.root).stage(NAME, json.loads(json.dumps(INPUT)), work)
    assert work.calls == 1 and again == first
    assert first.path == run.root / NAME and first.facts["rows"] == 3 and first.facts["wall_seconds"] >= 0
    assert first.outputs == {name: file_hash(first.path / name) for name in ("model/weights", "scores.json", "shard-0")}
    assert files_of(first.path) == {DONE, "model/weights", "scores.json", "shard-0"}
    assert not (run.root / (NAME + PARTIAL)).exists()


def test_tuples_and_lists_are_the_same_input(run: RunDir) -> None:
    work = Work()
    run.stage(NAME, {"showcase": ("a", "b")}, work)
    run.stage(NAME, {"showcase": ["a", "b"]}, work)
    assert work.calls == 1


def test_other_inputs_under_a_finished_stage_are_refused(finished: RunDir) -> None:
    before, work = files_of(finished.root), Work()
    with pytest.raises(UserError) as caught:
        finished.stage(NAME, {"opponent": "abc", "train": {"lr": 5e-7, "epochs": 2}, "window": 2}, work)
    assert "train.lr: 1e-06 -> 5e-07" in str(caught.value) and "window: null -> 2" in str(caught.value)
    assert "opponent" not in caught.value.what and "epochs" not in caught.value.what
    assert f"--restart-from {NAME}" in caught.value.remedy and "undo the change" in caught.value.remedy and "run_dir" in caught.value.remedy
    assert work.calls == 0 and files_of(finished.root) == before


def half_finished(run: RunDir) -> None:
    """A stage whose work was cut off after its first file."""

    def crash(folder: Path) -> dict[str, Any]:
        (folder / "shard-0").write_text("an earlier attempt's")
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("not yet trained")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.stage(NAME, INPUT, crash)


def test_seconds_of_all_attempts_are_counted(run: RunDir) -> None:
    """The last one of 40 seconds after 5 of those before, then killed: the time until the next one is nobody's."""
    half_finished(run)
    partial, began = run.root / (NAME + PARTIAL), time.time() - 1000
    write_json(partial / ATTEMPT, {"began": began, "seconds": 5.0})
    for file in ("shard-0", "model/weights"):
        os.utime(partial / file, (began + 40, began + 40))
    found = run.stage(NAME, INPUT, Work())
    assert found.facts["wall_seconds"] == pytest.approx(45, abs=1) and ATTEMPT not in found.outputs
    assert not (found.path / ATTEMPT).exists()


def test_other_inputs_under_a_half_finished_stage_are_refused(run: RunDir) -> None:
    half_finished(run)
    with pytest.raises(UserError, match=r"opponent: \"abc\" -> \"xyz\"") as caught:
        run.stage(NAME, {**INPUT, "opponent": "xyz"}, Work())
    assert f"--restart-from {NAME}" in caught.value.remedy and "undo" in caught.value.remedy
    assert (run.root / (NAME + PARTIAL) / "shard-0").read_text() == "an earlier attempt's"


def test_an_attempt_that_wrote_nothing_does_not_stand_in_the_way(run: RunDir) -> None:
    def meets_bad_data(folder: Path) -> dict[str, Any]:
        (folder / "metrics.jsonl").touch()
        raise UserError("broken row")

    with pytest.raises(UserError, match="broken row"):
        run.stage(NAME, INPUT, meets_bad_data)
    assert run.stage(NAME, {"mended": True}, Work()).inputs == {"mended": True}


def test_a_half_finished_stage_is_gone_on_with(run: RunDir) -> None:
    half_finished(run)
    assert run.finished(NAME) is None and run.inputs_of(NAME) == INPUT
    record = run.stage(NAME, INPUT, Work())
    assert (record.path / "shard-0").read_text() == "an earlier attempt's"
    assert files_of(record.path) == {DONE, "model/weights", "scores.json", "shard-0"}


def test_leftovers_without_inputs_are_not_trusted(run: RunDir) -> None:
    leftover = run.root / (NAME + PARTIAL)
    leftover.mkdir(parents=True)
    (leftover / "shard-0").write_text("of nobody knows what")
    record = run.stage(NAME, INPUT, Work())
    assert (record.path / "shard-0").read_text() == "first part"


def test_a_stage_is_redone_after_its_removal(finished: RunDir) -> None:
    work = Work()
    assert finished.remove_stage(NAME) and not finished.remove_stage(NAME)
    assert finished.finished(NAME) is None and finished.inputs_of(NAME) is None
    finished.stage(NAME, {"other": 1}, work)
    assert work.calls == 1


def test_the_changes_since_a_stage_was_made(run: RunDir) -> None:
    other = {"opponent": "abc", "train": {"lr": 5e-7, "epochs": 2}}
    assert run.changes(NAME, other) == [], "there is no stage"
    half_finished(run)
    assert run.changes(NAME, other) == ["train.lr: 1e-06 -> 5e-07"] and run.changes(NAME, INPUT) == []
    run.stage(NAME, INPUT, Work())
    assert run.changes(NAME, other) == ["train.lr: 1e-06 -> 5e-07"] and run.changes(NAME, INPUT) == []
    assert run.changes(NAME, {**INPUT, "train": {"lr": 1e-6, "epochs": 2}, "showcase": ("a",)}) == ['showcase: null -> ["a"]']
    assert run.changes(NAME, {**INPUT, "opponent": "abc"}) == []


def test_what_was_finished_but_has_no_name_yet_has_inputs_too(run: RunDir) -> None:
    """Killed between the last two moves of a commit: a stage to be made anew must be seen as other, not refused."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda old, new: interrupted() if new == run.root / NAME else os.rename(old, new))
        run.stage(NAME, INPUT, Work())
    assert not (run.root / (NAME + PARTIAL) / INPUTS).exists()
    assert run.finished(NAME) is None and run.inputs_of(NAME) == INPUT
    assert run.changes(NAME, {**INPUT, "opponent": "xyz"}) == ['opponent: "abc" -> "xyz"']
    assert run.remove_stage(NAME) and run.inputs_of(NAME) is None
    assert run.stage(NAME, {"other": 1}, Work()).inputs == {"other": 1}


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------- changed by hand


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "model" / "weights").write_text("Weights"), "model/weights was changed after the stage had finished"),
        (lambda folder: (folder / "scores.json").write_text('{"value": 2}'), "scores.json was changed"),
        (lambda folder: (folder / "shard-0").unlink(), "shard-0 is missing"),
        (lambda folder: (folder / "shard-1").write_text("x"), "shard-1 was added"),
        (lambda folder: (folder / DONE).write_text("{}"), "not the record of a finished stage"),
        (lambda folder: (folder / DONE).write_text('{"inputs": '), "not valid JSON"),
    ],
)
def test_a_stage_changed_by_hand_is_noticed(finished: RunDir, change: Callable[[Path], None], message: str) -> None:
    change(finished.root / NAME)
    work = Work()
    with pytest.raises(UserError, match=message) as caught:
        finished.stage(NAME, INPUT, work)
    assert NAME in caught.value.where and "restart" in caught.value.remedy and work.calls == 0
    with pytest.raises(UserError, match=message):  # readers that do no work notice it too
        finished.verified(NAME)


def test_the_same_content_at_another_time_is_fine(finished: RunDir) -> None:
    path, work = finished.root / NAME / "model" / "weights", Work()
    path.write_text("weights")
    os.utime(path, (1, 1))
    finished.stage(NAME, INPUT, work)
    assert work.calls == 0


def test_a_copied_run_is_the_same_run(finished: RunDir, tmp_path: Path) -> None:
    copy, work = RunDir(shutil.copytree(finished.root, tmp_path / "elsewhere")), Work()
    assert copy.stage(NAME, INPUT, work).outputs == finished.finished(NAME).outputs
    assert work.calls == 0


def test_hidden_files_of_the_system_do_not_matter(finished: RunDir) -> None:
    (finished.root / NAME / ".DS_Store").write_text("x")
    finished.stage(NAME, INPUT, Work())


# ---------------------------------------------------------------------------------------------- a crash at every call


class Crash(BaseException):
    """Stands for the end of the process."""


# everything in rundir.py that touches the disk
TOUCHES = [
    (os, "replace"),
    (os, "fsync"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (shutil, "rmtree"),
    (Path, "write_text"),
    (rundir, "write_text"),
]


@contextlib.contextmanager
def crash_at(call: int, after: bool) -> Iterator[list[int]]:
    """Raise at the `call`-th of all calls of TOUCHES, before or after it took place; yields the count of calls."""
    count = [0]

    def touched(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            mine = count[0] == call
            if mine and not after:
                raise Crash
            result = original(*args, **kwargs)
            if mine:
                raise Crash
            return result

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for holder, name in TOUCHES:
            patch.setattr(holder, name, touched(getattr(holder, name)))
        yield count


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_of_a_stage_is_mended_by_the_next_run(tmp_path: Path, after: bool) -> None:
    expected = RunDir(tmp_path / "expected").stage(NAME, INPUT, Work())
    calls, call = None, 0
    while calls is None or call < calls:
        call += 1
        run = RunDir(tmp_path / f"{call}")
        work = Work()
        with crash_at(call, after) as count, contextlib.suppress(Crash):
            run.stage(NAME, INPUT, work)
            calls = count[0]
        whole = (run.root / NAME / DONE).exists() or (run.root / (NAME + PARTIAL) / DONE).exists()
        assert run.finished(NAME) is None or run.finished(NAME).outputs == expected.outputs
        again = Work()
        record = run.stage(NAME, INPUT, again)
        assert again.calls == (0 if whole else 1), "work that was whole is not done again"
        assert record.outputs == expected.outputs and record.inputs == expected.inputs
        assert files_of(run.root) == files_of(tmp_path / "expected")
        run.stage(NAME, INPUT, again)  # checks hashes
    assert call > 15


def partly_removed(folder: Path, **_: Any) -> None:
    """rmtree, cut off after its first file."""
    next(path for path in sorted(folder.rglob("*"), reverse=True) if path.is_file()).unlink()
    raise Crash


@pytest.mark.parametrize("begin", [half_finished, lambda run: run.stage(NAME, {"other": 1}, Work())], ids=["begun", "finished"])
def test_a_crash_at_any_call_of_a_removal_leaves_no_half_of_a_stage(tmp_path: Path, begin: Callable[[RunDir], Any]) -> None:
    whole = []
    for call in range(1, 6):
        run = RunDir(tmp_path / f"{call}")
        begin(run)
        with crash_at(call, after=False), contextlib.suppress(Crash), pytest.MonkeyPatch.context() as patch:
            if call == 5:  # inside rmtree itself
                patch.setattr(shutil, "rmtree", partly_removed)
            run.remove_stage(NAME)
        work = Work()
        try:
            record = run.stage(NAME, {**INPUT, "new": True}, work)
        except UserError:  # still whole
            whole.append(call)
            continue
        assert work.calls == 1 and (record.path / "shard-0").read_text() == "first part"
        assert files_of(record.path) == {DONE, "model/weights", "scores.json", "shard-0"}
    assert whole in ([1], [1, 2])


@pytest.mark.parametrize("call", range(1, 4))
def test_json_is_written_whole_or_not_at_all(tmp_path: Path, call: int) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with crash_at(call, after=False), contextlib.suppress(Crash):
        write_json(path, {"new": 2})
    assert read_json(path) in ({"old": 1}, {"new": 2})


# ---------------------------------------------------------------------------------------------- one writer

HOLDER = """
import sys, time
from pathlib import Path
from sparring.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_works_there_and_a_kill_frees_the_lock(run: RunDir) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run.root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {holder.pid} on {socket.gethostname()}, since 20") as caught, run.lock():
            pass
        assert str(run.root) in caught.value.where and "run_dir" in caught.value.remedy
    finally:
        holder.kill()
        holder.wait()
    with run.lock():
        assert f"process {os.getpid()} " in (run.root / ".lock").read_text()
    with run.lock():  # and again after a normal end
        pass


def test_a_place_that_cannot_be_a_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/none/run")):
        with pytest.raises(UserError, match="cannot create the run directory") as caught, RunDir(place).lock():
            pass
        assert str(place) in caught.value.where


# ---------------------------------------------------------------------------------------------- manifest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_put_off_has_its_effect_afterwards(number: signal.Signals) -> None:
    came, passed = [], []
    before = signal.signal(number, lambda *_: came.append(number))
    try:
        with interrupts.signals_deferred():
            signal.raise_signal(number)
            passed.append(list(came))
    finally:
        signal.signal(number, before)
    assert passed == [[]] and came == [number]


def test_a_second_ctrl_c_leaves_the_first_ones_word(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the manifest is written for the last time."""
    run.root.mkdir()
    whole = rundir.write_json

    def hurried(path: Path, value: Any) -> None:
        if value["attempts"][-1]["ended"]:
            signal.raise_signal(signal.SIGINT)
        whole(path, value)

    monkeypatch.setattr(rundir, "write_json", hurried)
    with pytest.raises(KeyboardInterrupt), run.attempt():
        raise KeyboardInterrupt
    assert [attempt["outcome"] for attempt in read_json(run.root / "manifest.json")["attempts"]] == ["interrupted"]


def test_the_manifest_records_every_attempt_and_how_it_ended(run: RunDir) -> None:
    run.root.mkdir()
    for error in (None, KeyboardInterrupt(), UserError("x"), ValueError("x")):
        with contextlib.suppress(KeyboardInterrupt, UserError, ValueError), run.attempt():
            assert read_json(run.root / "manifest.json")["attempts"][-1]["outcome"] == "running or killed"
            if error:
                raise error
    attempts = read_json(run.root / "manifest.json")["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == ["done", "interrupted", "UserError", "ValueError"]
    for attempt in attempts:
        assert attempt["started"] <= attempt["ended"] <= rundir.now()
        assert {"sparring", "python", "libraries", "hardware"} <= attempt.keys() and "torch" in attempt["libraries"]


def test_what_is_published_names_no_host_no_person_and_no_folder(played: Game) -> None:
    private = {socket.gethostname(), str(played.folder), str(Path.home()), os.getcwd(), str(Path(sys.prefix)), "/tmp"}
    if len(getpass.getuser()) > 3:
        private.add(getpass.getuser())
    for file in ("manifest.json", "summary.json", "metrics.jsonl", *(path.relative_to(played.root) for path in played.root.rglob(DONE))):
        text = (played.root / file).read_text()
        assert not [word for word in private if word in text], file


# ---------------------------------------------------------------------------------------------- small pieces


def test_differences_name_each_leaf() -> None:
    before, after = {"a": 1, "b": {"c": [1, 2], "d": None}, "long": "x" * 200}, {"a": 1, "b": {"c": [1, 3]}, "long": "y", "new": True}
    lines = list(differences(before, after))
    assert lines[0] == "b.c: [1, 2] -> [1, 3]" and lines[-1] == "new: null -> true"
    assert len(lines[1]) < 120 and lines[1].startswith('long: "xxx') and lines[1].endswith('... -> "y"')
    assert list(differences(before, before)) == []


def test_the_digest_is_of_the_content() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


def test_where_a_restart_begins(tmp_path: Path) -> None:
    controls = ["continued-sft"]
    names = stage_names(tmp_path, 2, controls)
    of_player = ("measure", "evaluate", "benchmarks")
    assert names[:6] == ["base", "data", "sft", *(f"start/{part}" for part in of_player)]
    assert names[6:8] == ["probe/train", "start/headroom"]
    assert names[8:16] == [f"iterations/000/{part}" for part in ("generate", "grade", "score", "score-start", "train", *of_player)]
    assert names[-4:] == [f"continued-sft/{part}" for part in ("train", *of_player)]
    assert stages_from("start", tmp_path, 2, controls) == stages_from("start/measure", tmp_path, 2, controls) == names[3:]
    later = [name for name in names if name.startswith(("iterations/001", "continued"))]
    assert stages_from("iterations/001", tmp_path, 2, controls) == later
    assert stages_from("iterations/001/train", tmp_path, 2, controls)[0] == "iterations/001/train"
    (tmp_path / "iterations" / "004").mkdir(parents=True)
    assert "iterations/004/evaluate" in stages_from("sft", tmp_path, 2, controls), "what an earlier, longer run left goes too"
    for owner in ("dpo", "probe"):
        (tmp_path / owner / "train").mkdir(parents=True)
        (tmp_path / owner / "train" / "done.json").write_text("{}")
    of_dpo = [f"dpo/{part}" for part in ("train", *of_player)]
    assert stages_from("continued-sft", tmp_path, 2, controls)[-4:] == of_dpo, "the probe is no control"
    with pytest.raises(UserError, match="no stage named 'iteration/001'; did you mean iterations/001") as caught:
        stages_from("iteration/001", tmp_path, 2, controls)
    assert "start" in caught.value.remedy and caught.value.where == "--restart-from"
