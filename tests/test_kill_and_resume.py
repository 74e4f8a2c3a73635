"""A game killed anywhere and started again by the same command ends as one that was never killed, bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Game
from zygote import Result, Sabotage, Zygote, begun, committed, unnamed, working, written

from sparring.data.tables import read_rows
from sparring.rundir import digest

TIMES = {"seconds", "tokens_per_second", "wall_seconds", "train_seconds", "finished", "stamps"}
SHARD = r"shard-\d+-\d+\.parquet"

# place -> (the stage that is in work or was just finished there, what kills the process, one after the other). The game has the stages
# before it from a finished one. There are 6 steps in sft and in iteration 0, 12 in iteration 1 (its window is two iterations), a checkpoint
# after every other one, and three shards of 16 replies in each.
KILLS: dict[str, tuple[str, list[Sabotage]]] = {
    "base model made, not committed": ("base", [unnamed("run/base")]),
    "data half written": ("data", [Sabotage("pyarrow.parquet:write_table", args=r"data\.partial/held_out\.parquet$")]),
    "sft before its first checkpoint": ("sft", [working("sft", 1)]),
    "start: measured, not evaluated": ("start/evaluate", [begun("start/evaluate")]),
    "generation in a later shard": ("iterations/000/generate", [working("iterations/000/generate", 32)]),
    "generation, shard written, not renamed": ("iterations/001/generate", [unnamed(f"001/generate.partial/{SHARD}", nth=2)]),
    "generation between two shards": ("iterations/001/generate", [written(f"001/generate.partial/{SHARD}", nth=2)]),
    "generation done, not committed": ("iterations/001/generate", [unnamed("001/generate")]),
    "scoring in its first shard": ("iterations/000/score", [working("iterations/000/score", 3)]),
    "scoring between two shards": ("iterations/001/score", [written(f"001/score.partial/{SHARD}")]),
    "training before its first checkpoint": ("iterations/000/train", [working("iterations/000/train", 1)]),
    "training between two checkpoints": ("iterations/000/train", [working("iterations/000/train", 3)]),
    "training in the step after a checkpoint": ("iterations/001/train", [working("iterations/001/train", 8)]),
    "checkpoint half written": ("iterations/000/train", [unnamed("000/train.partial/checkpoint-0000004/step.json")]),
    "checkpoint written, old one still there": ("iterations/001/train", [written("001/train.partial/checkpoint-0000006/step.json")]),
    "metrics being cut on the way back": (
        "iterations/001/train",
        [working("iterations/001/train", 5), unnamed("001/train.partial/metrics.jsonl")],
    ),
    "trained model half saved": ("iterations/000/train", [unnamed("000/train.partial/model/generation_config.json")]),
    "trained, checkpoints not removed": ("iterations/001/train", [written("001/train.partial/fit.json")]),
    "commit before done.json": ("iterations/001/train", [unnamed("001/train.partial/done.json")]),
    "commit between done.json and the rename": ("iterations/001/train", [unnamed("001/train")]),
    "measuring, replies written, not renamed": ("iterations/000/measure", [unnamed(f"000/measure.partial/replies/{SHARD}")]),
    "measuring, replies drawn, not scored": ("iterations/000/measure", [written(f"000/measure.partial/replies/{SHARD}")]),
    "measuring, log-probs not written": ("iterations/001/measure", [unnamed("001/measure.partial/logps.parquet")]),
    "measured, not committed": ("iterations/001/measure", [unnamed("001/measure")]),
    "evaluation, scores written": ("iterations/001/evaluate", [written("001/evaluate.partial/scores.json")]),
    "evaluation, samples written, showcase not": ("iterations/000/evaluate", [unnamed("000/evaluate.partial/showcase.json")]),
    "evaluation, showcase written": ("start/evaluate", [written("start/evaluate.partial/showcase.json")]),
    "evaluated, not committed": ("iterations/000/evaluate", [unnamed("000/evaluate")]),
    "publishing between summary and metrics": ("iterations/000/evaluate", [unnamed("run/metrics.jsonl")]),
    "control in training": ("continued-sft/train", [working("continued-sft/train", 4)]),
    "control in measuring": ("continued-sft/measure", [working("continued-sft/measure", 0)]),
    "control in evaluation": ("continued-sft/evaluate", [unnamed("continued-sft/evaluate.partial/items.parquet")]),
    "before the last summary": ("continued-sft/evaluate", [committed("continued-sft/evaluate")]),
    "killed three times in one stage": (
        "iterations/001/train",
        [working("iterations/001/train", 3), working("iterations/001/train", 5), unnamed("001/train.partial/fit.json")],
    ),
    "Ctrl-C in generation": ("iterations/000/generate", [working("iterations/000/generate", 32, "interrupt")]),
    "Ctrl-C in foreign code": ("sft", [working("sft", 4, "interrupt, lost")]),
    "SIGTERM in training": ("iterations/001/train", [working("iterations/001/train", 7, "terminate")]),
    "a crash in training": ("iterations/000/train", [working("iterations/000/train", 3, "crash")]),
}
# one of every kind of stage that is not in the last iteration: the process that goes on computes the rest of the game too; elsewhere, the
# rest is that of the game that was never killed, and the run takes it only if its fingerprints are the same
TO_THE_END = (
    "sft before its first checkpoint",
    "generation in a later shard",
    "scoring in its first shard",
    "training between two checkpoints",
    "measuring, replies drawn, not scored",
    "Ctrl-C in generation",
)
EXIT = {"kill": -signal.SIGKILL, "interrupt": 130, "interrupt, lost": 130, "terminate": 130, "crash": 1}
STOPPED = dict.fromkeys(("interrupt", "interrupt, lost", "terminate"), "interrupted")
OUTCOME = {"kill": "running or killed", **STOPPED, "crash": "RuntimeError"}


# ---------------------------------------------------------------------------------------------- what a game comes to


def outcome(root: Path) -> dict[str, Any]:
    """Everything that a run leaves except times: weights, replies, log-probs, scores, metrics, summary, fingerprints, file names."""
    assert not [path for path in root.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    stages = {done.parent.relative_to(root).as_posix(): json.loads(done.read_text()) for done in root.rglob("done.json")}
    files = [file.relative_to(root).as_posix() for name in stages for file in (root / name).rglob("*") if file.is_file()]
    return {
        "files": sorted(files),
        "weights": {name: hash_of(root / name) for name in files if name.endswith(".safetensors")},
        "tables": {name: pq.read_table(root / name).to_pylist() for name in files if name.endswith(".parquet")},
        "scores": {name: (root / name).read_text() for name in files if name.endswith("scores.json")},
        "showcase": {name: (root / name).read_text() for name in files if name.endswith("showcase.json")},
        "stages": {name: without_times({**done, "outputs": sorted(done["outputs"])}) for name, done in stages.items()},
        "metrics": [without_times(row) for row in metrics(root)],
        "summary": without_times(json.loads((root / "summary.json").read_text())),
        "best": os.readlink(root / "best"),
        "recipe": (root / "recipe.yaml").read_text(),
    }


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def metrics(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def assert_same_outcome(found: Path, expected: Path) -> None:
    ours, theirs = outcome(found), outcome(expected)
    for part in theirs:
        assert ours[part] == theirs[part], part


# ---------------------------------------------------------------------------------------------- the kills


@dataclass(frozen=True)
class Story:
    """What happened to one game: each attempt's result, and what was finished before the last."""

    game: Game
    attempts: list[Result]
    kept: dict[str, tuple[str, int]]
    partial: list[str]


def live_through(name: str, folder: Path, played: Game) -> Story:
    stage, sabotages = KILLS[name]
    game = Game(folder, played.zygote, {})
    game.copy_stages(played, before=stage)
    attempts = [game.run(sabotage=[one]) for one in sabotages]
    kept = game.state()
    partial = [path.relative_to(game.root).as_posix().removesuffix(".partial") for path in game.root.rglob("*.partial")]
    if name not in TO_THE_END:
        game.copy_later_stages(played, after=stage)
    return Story(game, [*attempts, game.run()], kept, partial)


@pytest.fixture(scope="module")
def stories(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, played: Game) -> Iterator[dict[str, Future[Story]]]:
    """The games of all selected places, two at a time."""
    wanted = [item.callspec.params["place"] for item in request.session.items if "stories" in getattr(item, "fixturenames", ())]
    folder = tmp_path_factory.mktemp("kills")
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(live_through, name, folder / re.sub(r"\W+", "-", name), played) for name in wanted}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("place", KILLS)
def test_killed_and_resumed_is_as_if_never_killed(place: str, stories: dict[str, Future[Story]], played: Game) -> None:
    story, (stage, sabotages) = stories[place].result(), KILLS[place]
    root = story.game.root
    assert [attempt.code for attempt in story.attempts] == [*(EXIT[one.do] for one in sabotages), 0], story.attempts[-1].err
    # the kill came where it was meant to, and nothing finished was lost or done again
    assert story.partial == [stage] or (not story.partial and (f"{stage}/done.json" in story.kept)), story.partial
    assert story.kept.items() <= story.game.state().items()
    assert all("Traceback" not in attempt.err for attempt in story.attempts)
    assert_same_outcome(root, played.root)
    assert_opponents_are_pinned(root)
    steps = [(row.get("iteration", row.get("stage")), row["step"]) for row in metrics(root)]
    assert len(steps) == len(set(steps))
    assert steps[:24] == [(name, step) for name, count in (("sft", 6), (0, 6), (1, 12)) for step in range(count)]
    attempts = story.game.json("manifest.json")["attempts"]
    assert [attempt["outcome"] for attempt in attempts] == [*(OUTCOME[one.do] for one in sabotages), "done"]


def test_there_are_enough_points() -> None:
    reached = {stage.split("/")[-1] for stage, _ in KILLS.values()}
    assert set(TO_THE_END) < set(KILLS)
    assert len(KILLS) >= 30 and {"sft", "generate", "score", "train", "measure", "evaluate"} <= reached


def assert_opponents_are_pinned(root: Path) -> None:
    """The opponent of iteration t has the hash of the player of iteration t - 1 (of the SFT stage for t = 0)."""

    def done(stage: str) -> dict[str, Any]:
        return json.loads((root / stage / "done.json").read_text())

    models = [root / stage / "model" for stage in ("sft", "iterations/000/train")]
    players = [digest({name: hash_of(model / name) for name in ("config.json", "model.safetensors")}) for model in models]
    for t, player in enumerate(players):
        used = {done(f"iterations/{t:03d}/{part}")["inputs"].get("opponent") for part in ("score", "train", "measure")}
        assert used == {player} and done(f"iterations/{t:03d}/generate")["inputs"]["model"] == player
    assert len(set(players)) == 2


def test_killed_again_and_again_it_still_arrives(game: Game, played: Game) -> None:
    """Every attempt is killed when its ninth file has everything but its name: each goes a little further, whatever it was doing."""
    attempts = 0
    while (result := game.run(sabotage=[unnamed(".*", nth=9)])).code == -signal.SIGKILL:
        attempts += 1
        assert attempts < 60
    assert result.code == 0 and attempts >= 10
    assert_same_outcome(game.root, played.root)


@pytest.mark.parametrize("shard_rows", [1, 24])
def test_another_shard_size_after_a_kill_in_generation(game: Game, played: Game, shard_rows: int) -> None:
    """The same replies, so the same game; what was committed before the kill stays as it is."""
    game.copy_stages(played, before="iterations/000/generate")
    killed = game.run(sabotage=[written(f"000/generate.partial/{SHARD}", nth=2)])
    kept = game.state()
    assert killed.code == -signal.SIGKILL and sum("generate" in name for name in kept) == 2
    result = game.run(f"sampling.shard_rows={shard_rows}")
    assert result.code == 0 and kept.items() <= game.state().items(), result.err
    ours, theirs = outcome(game.root), outcome(played.root)
    assert [len(read_rows(game.root / f"iterations/{t:03d}/generate")) for t in (0, 1)] == [48, 48]
    for folder in (*(f"iterations/{t:03d}/generate" for t in (0, 1)), "iterations/001/measure/replies", "continued-sft/measure/replies"):
        assert read_rows(game.root / folder) == read_rows(played.root / folder), folder
    assert len(list((game.root / "iterations/001/generate").glob("shard-*"))) == math.ceil(24 / shard_rows)
    for part in ("weights", "scores", "showcase", "metrics", "summary", "best"):
        assert ours[part] == theirs[part], part


# ---------------------------------------------------------------------------------------------- stopped by a person


def test_ctrl_c_in_the_real_command(game: Game, zygote: Zygote) -> None:
    game.write(sft__epochs=100, sft__checkpoint_every=20, iterations=1, controls=None)
    command = [str(Path(sys.executable).with_name("sparring")), "run", "recipe.yaml", "seed=3"]
    process = subprocess.Popen(command, cwd=game.folder, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics_file = game.root / "sft.partial" / "metrics.jsonl"
    end = time.monotonic() + 300  # of a machine that is busy
    while not metrics_file.exists() or metrics_file.read_text().count("\n") < 50:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)  # by a person in a hurry
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; nothing finished is lost" in err and "Traceback" not in err
    assert err.rstrip().endswith("sparring run recipe.yaml seed=3")
    again = shlex.split(err.rstrip().splitlines()[-1])[1:]  # the command that it says goes on with the work
    running = zygote.start(again, game.folder)
    running.wait_for(lambda: "SFT: training: resuming at step" in running.err)
    before = int(re.search(r"resuming at step (\d+) of 600", running.err)[1])
    assert before >= 40 and before % 20 == 0
    os.kill(running.pid, signal.SIGTERM)  # as a batch system does it
    stopped = running.wait()
    assert stopped.code == 130 and "Resume with:\n  sparring run recipe.yaml seed=3" in stopped.err and "Traceback" not in stopped.err
    assert [attempt["outcome"] for attempt in game.json("manifest.json")["attempts"]] == ["interrupted"] * 2
