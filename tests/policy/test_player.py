"""A model in a run is pinned by what its stage committed: the same hash as that of the folder, without reading the weights again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparring.policy.load import weights_hash
from sparring.policy.player import Player
from sparring.policy.tiny import make_tiny
from sparring.rundir import RunDir, StageRecord


@pytest.fixture
def record(tmp_path: Path) -> StageRecord:
    def work(stage: Path) -> dict[str, Any]:
        make_tiny(stage / "model", 0)
        (stage / "metrics.jsonl").write_text("{}")
        return {}

    return RunDir(tmp_path / "run").stage("sft", {}, work)


def test_the_hash_of_a_stage_is_that_of_its_model_folder(record: StageRecord) -> None:
    player = Player.of_stage(record)
    assert player.folder == record.path / "model" and player.hash == weights_hash(player.folder)
    assert (player.name, player.owner, player.title) == ("start", "start", "start")
    assert player.measured is None and player.evaluated is None


@pytest.mark.parametrize(
    ("name", "counts"),
    [("model/model.safetensors", True), ("model/config.json", True), ("model/tokenizer.json", False), ("metrics.jsonl", False)],
)
def test_the_hash_is_of_the_weights_and_the_config(record: StageRecord, name: str, counts: bool) -> None:
    other = StageRecord(**{**vars(record), "outputs": {**record.outputs, name: "another"}})
    assert (Player.of_stage(other).hash != Player.of_stage(record).hash) == counts


def test_a_config_below_another_folder_is_none_of_the_models(record: StageRecord) -> None:
    other = StageRecord(**{**vars(record), "outputs": {**record.outputs, "config.json": "x", "old/model.safetensors": "y"}})
    assert Player.of_stage(other) == Player.of_stage(record)


def test_another_config_of_the_same_weights_is_another_model(record: StageRecord) -> None:
    before = weights_hash(record.path / "model")
    config = json.loads((record.path / "model" / "config.json").read_text())
    (record.path / "model" / "config.json").write_text(json.dumps({**config, "rope_theta": 123.0}))
    assert weights_hash(record.path / "model") != before


def test_results_are_of_the_same_model(record: StageRecord, tmp_path: Path) -> None:
    player = Player.of_stage(record)
    shown = player.with_results(tmp_path / "measure", tmp_path / "evaluate")
    assert (shown.folder, shown.hash) == (player.folder, player.hash)
    assert (shown.measured, shown.evaluated) == (tmp_path / "measure", tmp_path / "evaluate")
