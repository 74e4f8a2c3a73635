"""Nothing of the fast path changes results: however a training stage is computed, its losses are the same to rounding.

The tolerance, 1e-4 of the loss after 14 steps at a learning rate at which the loss falls by half, is some hundred times float32's own
rounding: rmsprop's first steps have the size of the learning rate whatever the gradient's size, so that rounding in a gradient near 0
becomes a step of full length the other way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_fit import DUELS, llama, metrics, plain_opponent, plan_of, run_fit, settings

from sparring.config import TrainSection
from sparring.policy.score import Scorer
from sparring.training.tasks import SpinTask

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A player and an opponent that is somebody else, so that there is something to lose from the first step on."""
    folder = tmp_path_factory.mktemp("models")
    llama(folder / "start", 0)
    llama(folder / "other", 1)
    return folder / "start", folder / "other"


def losses(folders: tuple[Path, Path], stage: Path, section: TrainSection) -> list[float]:
    task = SpinTask(DUELS, plain_opponent(folders[1]), 0.3, "logistic")
    run_fit(stage, folders[0], task, plan_of(section, len(DUELS), epochs=4.0), section)
    return [row["loss"] for row in metrics(stage)]


@pytest.fixture(scope="module")
def expected(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(folders, tmp_path_factory.mktemp("expected"), settings(micro_batch_tokens=100_000))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def only(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scorer, "choose_layout", lambda scorer, *_, **__: setattr(scorer, "layout", layout))


def test_the_loss_falls_far(expected: list[float]) -> None:
    assert len(expected) == 14 and sum(expected[-3:]) < sum(expected[:3]) / 2


@pytest.mark.parametrize("tokens", [1, 40, 90])
def test_packing(tokens: int, expected: list[float], folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert losses(folders, tmp_path, settings(micro_batch_tokens=tokens)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sparring.policy.score.HEAD_CHUNK", 5),
        ("sparring.policy.tree_attention.MAX_QUERIES", 3),
        ("sparring.policy.tree_attention.MAX_SCORES", 1),
        ("sparring.policy.tree_attention.KEPT_SCORES", 0),
        ("sparring.policy.head.ROWS_AT_ONCE", {"cpu": 2, "cuda": 2}),
    ],
)
def test_sizes_of_chunks_and_blocks(
    option: str, value: object, expected: list[float], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(option, value)
    assert losses(folders, tmp_path, settings(micro_batch_tokens=100_000)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("layout", ["rows", "plain"])
def test_layouts_and_with_them_the_attention_kernel(
    layout: str, expected: list[float], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without trees the model's own attention is at work, torch's."""
    only(layout, monkeypatch)
    assert losses(folders, tmp_path, settings()) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("kept_scores", [0, 512])
def test_checkpointing(
    kept_scores: int, expected: list[float], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparring.policy.tree_attention.KEPT_SCORES", kept_scores)
    section = settings(micro_batch_tokens=100_000, gradient_checkpointing=True)
    assert losses(folders, tmp_path, section) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(count: int, expected: list[float], folders: tuple[Path, Path], tmp_path: Path) -> None:
    with threads(count):
        assert losses(folders, tmp_path, settings(micro_batch_tokens=100_000)) == pytest.approx(expected, rel=TOLERANCE)
