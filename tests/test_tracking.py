"""Trackers: what is sent, and that a killed and resumed run leaves every point once. tensorboard, trackio and others are the real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Game
from test_kill_and_resume import outcome
from zygote import ADVANCE, Sabotage, unnamed

from sparring.config import load_recipe
from sparring.errors import UserError
from sparring.rundir import RunDir
from sparring.tracking import sending, trackers
from sparring.tracking.sending import Point, _Sender, identities, points, series_of
from sparring.tracking.trackers import Opened, flat, require_trackers

# Of the game: 6 steps of SFT, 6 and 12 of the two iterations; the control trains on from the 6.
GAME_STEPS, EVALUATED_AT = list(range(1, 25)), [6, 12, 24]


def everything(game: Game, name: str = "game") -> list[Point]:
    recipe = load_recipe(game.folder / "recipe.yaml")
    (series,) = (one for one in series_of(recipe) if one.name == name)
    return list(points(RunDir(game.root), series, -1))


# ---------------------------------------------------------------------------------------------- what is sent


def test_one_axis_over_all_stages(played: Game) -> None:
    found = everything(played)
    assert [point.step for point in found] == GAME_STEPS
    assert [point.step for point in found if "scores/nll_per_token" in point.values] == EVALUATED_AT
    rows = [json.loads(line) for line in (played.root / "metrics.jsonl").read_text().splitlines()][:24]
    kinds = ["sft"] * 6 + ["train"] * 18
    assert [point.values[f"{kind}/loss"] for kind, point in zip(kinds, found, strict=True)] == [row["loss"] for row in rows]
    last = found[-1].values
    assert last["train/iteration"] == 1 and last["train/margin"] == rows[-1]["margin"] and "sft/loss" not in last
    scores = played.json("iterations/001/evaluate/scores.json")
    assert last["scores/duel_accuracy"] == scores["duel_accuracy"]["value"]
    assert last["scores/nll_per_token_stderr"] == scores["nll_per_token"]["stderr"]
    assert all(isinstance(value, (int, float)) for point in found for value in point.values.values())


def test_the_control_sets_out_from_the_same_start(played: Game) -> None:
    found = everything(played, "continued-sft")
    steps = len((played.root / "continued-sft/train/metrics.jsonl").read_text().splitlines())
    assert [point.step for point in found] == list(range(7, 7 + steps)) and "scores/nll_per_token" in found[-1].values


def test_the_last_step_of_a_stage_waits_for_its_scores(copy: Game) -> None:
    shutil.rmtree(copy.root / "iterations/001/evaluate")
    assert [point.step for point in everything(copy)] == GAME_STEPS[:-1]
    train = copy.root / "iterations/001/train"
    train.rename(train.with_name("train.partial"))
    (train.with_name("train.partial") / "done.json").unlink()
    with open(train.with_name("train.partial") / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 1, "st')  # being written
    assert [point.step for point in everything(copy)] == GAME_STEPS[:-1]
    assert [point.step for point in points(RunDir(copy.root), series_of(load_recipe(copy.folder / "recipe.yaml"))[0], 20)] == [21, 22, 23]


def test_without_sft_the_start_stands_at_step_0(game: Game) -> None:
    game.write(sft=None, iterations=1, controls=None)
    assert game.run().code == 0
    found = everything(game)
    assert [point.step for point in found] == list(range(7))
    assert "scores/nll_per_token" in found[0].values and not [name for name in found[0].values if not name.startswith("scores/")]


# ---------------------------------------------------------------------------------------------- sending, to one that is made here


class Recorder:
    """A tracker that keeps what it gets; `fails` points are refused first."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.opened, self.closed, self.fails = 0, 0, 0

    def open(self, kind: str, place: trackers.SeriesLocation, sent: int, config: dict[str, Any]) -> Opened:
        assert self.opened == self.closed, "one run at a time"
        self.opened += 1
        self.name = f"{place.project}/{place.name}/{place.identity}"
        self.runs.setdefault(self.name, {})
        return Opened(self, max(self.runs[self.name], default=-1))

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route to the tracker\nmore of it")
        assert step not in self.runs[self.name] and step > max(self.runs[self.name], default=-1)
        self.runs[self.name][step] = values

    def finish(self) -> None:
        self.closed += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(sending, "open_tracker", made.open)
    return made


def send(game: Game, *overrides: str, times: int = 1) -> None:
    sender = _Sender(load_recipe(game.folder / "recipe.yaml", ["track=tensorboard", *overrides]), RunDir(game.root))
    for turn in range(times):
        sender.send(is_last=turn == times - 1)


def test_every_point_once_however_often_it_is_started(copy: Game, recorder: Recorder) -> None:
    send(copy, times=3)
    (game, control) = recorder.runs.values()
    assert list(game) == GAME_STEPS and list(control) == [point.step for point in everything(copy, "continued-sft")]
    assert [name.rsplit("/", 1)[0] for name in recorder.runs] == ["sparring/run", "sparring/run-continued-sft"]
    opened = recorder.opened
    send(copy)
    assert recorder.opened == opened, "all has arrived: it is not even asked"


def test_what_was_lost_on_the_way_is_sent_again(copy: Game, recorder: Recorder) -> None:
    send(copy)
    memory = copy.json("trackers.json")
    memory["game"]["closed"] = []  # as after a kill
    (copy.root / "trackers.json").write_text(json.dumps(memory))
    game = next(iter(recorder.runs.values()))
    for step in GAME_STEPS[-5:]:
        del game[step]
    send(copy)
    assert list(game) == GAME_STEPS and len(recorder.runs) == 2


def test_stages_that_are_to_be_redone_have_no_points(copy: Game) -> None:
    run, (series, *_) = RunDir(copy.root), series_of(load_recipe(copy.folder / "recipe.yaml"))
    run.redo(["iterations/001/train", "iterations/001/measure", "iterations/001/evaluate"])
    assert [point.step for point in points(run, series, -1)] == GAME_STEPS[:12]
    assert list(identities(run, series)) == ["sft", "iterations/000/train"]


def test_a_stage_made_from_something_else_is_another_run(copy: Game, recorder: Recorder) -> None:
    send(copy)
    done = copy.root / "iterations/001/train/done.json"
    found = json.loads(done.read_text())
    done.write_text(json.dumps({**found, "inputs": {**found["inputs"], "seed": 7}}))
    send(copy)
    assert [list(steps) for name, steps in recorder.runs.items() if "continued" not in name] == [GAME_STEPS] * 2


def test_a_failing_tracker_costs_one_warning_and_no_point(
    copy: Game, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sending, "RETRY_SECONDS", 0.0)
    recorder.fails = 3
    send(copy, times=5)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "track: tensorboard failed (no route to the tracker); the run continues, and sending is retried later"
    ]
    assert list(next(iter(recorder.runs.values()))) == GAME_STEPS


def test_names_are_the_recipes(copy: Game, recorder: Recorder) -> None:
    send(copy, "track.project=mine", "track.name=first")
    assert [name.rsplit("/", 1)[0] for name in recorder.runs] == ["mine/first", "mine/first-continued-sft"]


# ---------------------------------------------------------------------------------------------- before anything starts


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.errors.is_installed", lambda package: False)
    with pytest.raises(UserError, match=rf"track: {name} is not installed\n  -> pip install 'sparring\[{name}\]'"):
        require_trackers(load_recipe({"run_dir": "r", "model": {"path": "m"}, "data": {"path": "d"}, "track": name}).track)


def test_the_options_of_a_recipe_in_one_level() -> None:
    recipe = load_recipe({"run_dir": "r", "model": {"path": "m"}, "data": {"path": "d"}, "train": {"lr": [1e-6, 1e-6, 1e-7]}})
    found = flat(recipe)
    assert found["train.lr"] == "[1e-06, 1e-06, 1e-07]" and found["objective.beta"] == 1.0 and "sft" not in found
    assert all(isinstance(value, (bool, int, float, str)) for value in found.values())


# ---------------------------------------------------------------------------------------------- the real ones, killed and resumed

# Each attempt is killed there: while points are logged, between logging and remembering, in training, in the end's rest
KILLS = [
    Sabotage("sparring.tracking.trackers:Opened.log", nth=4),
    Sabotage("sparring.tracking.trackers:Opened.log", nth=3, when="after"),
    unnamed("run/trackers.json", nth=2),
    Sabotage(ADVANCE, nth=4, args=" steps"),
    Sabotage(ADVANCE, nth=9, args=" steps"),
    Sabotage("sparring.tracking.trackers:Opened.log", nth=12),
    unnamed("run/trackers.json", nth=4),
]
QUICK = "import sys\nfrom sparring.tracking import sending\nsending.POLL_SECONDS = 0.05\nfrom sparring.cli import main\nmain()"


def play_through_kills(game: Game, name: str, **environment: str) -> None:
    game.write(track=name)
    codes = [game.run(sabotage=[one], python=QUICK, environment=environment).code for one in KILLS]
    assert codes.count(-9) >= 5, codes
    result = game.run(python=QUICK, environment=environment)
    assert result.code == 0 and "track:" not in result.err, result.err


def assert_read_back(read: Callable[[str], list[tuple[int, float]]], game: Game) -> None:
    """`read(metric)` gives (step, value) in the order of the tracker: all of the game's points, each once."""
    expected = everything(game)
    for metric in ("sft/loss", "train/loss", "train/margin", "scores/nll_per_token", "train/iteration"):
        wanted = [(point.step, point.values[metric]) for point in expected if metric in point.values]
        found = read(metric)
        assert [step for step, _ in found] == [step for step, _ in wanted], metric
        assert [value for _, value in found] == pytest.approx([value for _, value in wanted], rel=1e-6), metric


def assert_as_untracked(game: Game, played: Game) -> None:
    ours, theirs = outcome(game.root), outcome(played.root)
    for part in ("weights", "tables", "scores", "stages", "metrics", "summary", "best"):
        assert ours[part] == theirs[part], part


def identity(game: Game, series: str = "game") -> str:
    return game.json("trackers.json")[series]["identity"]


def test_tensorboard(game: Game, played: Game) -> None:
    pytest.importorskip("tensorboard", reason="not installed: make test-trackers has it")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play_through_kills(game, "tensorboard")
    folder = game.root / "trackers/tensorboard"
    assert {path.name for path in folder.iterdir()} == {f"game-{identity(game)}", f"continued-sft-{identity(game, 'continued-sft')}"}
    events = EventAccumulator(str(folder / f"game-{identity(game)}"), size_guidance={"scalars": 0})
    events.Reload()
    assert_read_back(lambda metric: [(event.step, event.value) for event in events.Scalars(metric)], game)
    assert_as_untracked(game, played)


def test_trackio(game: Game, played: Game, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="not installed: make test-trackers has it")
    play_through_kills(game, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    name = f"run-{identity(game)}"
    code = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as S\n"
        f"print(json.dumps([sorted(S.get_runs('sparring')), S.get_logs('sparring', {name!r})]))"
    )
    answer = game.zygote.run([], game.folder, python=code, environment={"TRACKIO_DIR": str(tmp_path / "trackio")})
    runs, rows = json.loads(answer.out.splitlines()[-1])
    assert runs == sorted([name, f"run-continued-sft-{identity(game, 'continued-sft')}"])
    assert [row["step"] for row in rows] == GAME_STEPS
    assert_read_back(lambda metric: [(row["step"], row[metric]) for row in rows if metric in row], game)
    assert_as_untracked(game, played)


def test_mlflow(game: Game) -> None:
    pytest.importorskip("mlflow", reason="not installed: make test-trackers has it")
    store = {"MLFLOW_TRACKING_URI": f"file://{game.folder}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    play_through_kills(game, "mlflow", **store)
    code = (
        "import json, mlflow\nclient = mlflow.MlflowClient()\n"
        "experiment = client.get_experiment_by_name('sparring')\n"
        "run, = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == 'run']\n"
        "print(json.dumps({key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics}))"
    )
    answer = game.zygote.run([], game.folder, python=code, environment=store)
    history = json.loads(answer.out.splitlines()[-1])
    assert_read_back(lambda metric: [tuple(pair) for pair in history[metric]], game)


def test_wandb_offline(game: Game) -> None:
    """What cannot be told offline is who has what: the points are counted over the folders of all attempts."""
    pytest.importorskip("wandb", reason="not installed: make test-trackers has it")
    game.write(track="wandb", controls=None)
    result = game.run(python=QUICK, environment={"WANDB_MODE": "offline", "WANDB_DIR": str(game.folder)})
    assert result.code == 0 and "track:" not in result.err, result.err
    assert list((game.root / "trackers/wandb").glob(f"offline-run-*-{identity(game)}"))


def test_a_crash_of_the_real_one_is_one_warning(game: Game, played: Game) -> None:
    pytest.importorskip("tensorboard", reason="not installed: make test-trackers has it")
    game.write(track=["tensorboard"])
    result = game.run(sabotage=[Sabotage("accelerate.tracking:TensorBoardTracker.log", do="crash", forever=True)], python=QUICK)
    assert result.code == 0 and result.err.count("track: tensorboard failed (a crash made by a test)") == 1, result.err
    assert_as_untracked(game, played)
    assert game.run(python=QUICK).code == 0 and game.json("trackers.json")["game"]["sent"]["tensorboard"] == 24


def test_identities_are_those_of_the_stages(played: Game) -> None:
    game, control = series_of(load_recipe(played.folder / "recipe.yaml"))
    assert set(identities(RunDir(played.root), game)) == {"sft", "iterations/000/train", "iterations/001/train"}
    assert set(identities(RunDir(played.root), control)) == {"continued-sft/train"}
