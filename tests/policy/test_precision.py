"""The number format that a device computes fast, and the one of a run whose recipe names none."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.benchmark import Timer

from sparring.config import Recipe, load_recipe
from sparring.policy.machine import fast_precision, with_precision
from sparring.policy.player import Player
from sparring.rundir import RunDir
from sparring.stages.run_stage import Examples, Scoring, StageWork, fingerprint
from sparring.stages.train import _sft


def recipe(tmp_path: Path, **more: Any) -> Recipe:
    given = {"run_dir": str(tmp_path / "run"), "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}, "sft": {}, **more}
    return load_recipe(given)


def sft_work(recipe: Recipe) -> StageWork:
    """The work of its SFT stage, whose fingerprint names the format among the options of `sft`."""
    assert recipe.sft is not None
    start = Player("start", Path("model"), "hash")
    return partial(_sft, None, sft=recipe.sft, steps=None, iterations=None, start=start, data=Examples([], "hash"), seed=0)


def formats(recipe: Recipe) -> tuple[str | None, str | None]:
    return recipe.train.precision, recipe.sft.precision if recipe.sft else None


@pytest.mark.parametrize(
    ("kind", "has_kernels", "fast"), [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "bf16"), ("cuda", False, "fp32")]
)
def test_bf16_where_the_device_multiplies_it(kind: str, has_kernels: bool, fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_kernels, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_kernels and not including_emulation)
    assert fast_precision(kind) == fast


def test_what_is_called_fast_is_not_slow() -> None:
    """On this machine: a product in the chosen format takes at most thrice the other's time; one without kernels does not."""
    seconds = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(128, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype)
        seconds[precision] = min(Timer("a @ b", globals={"a": a, "b": b}).timeit(1).mean for _ in range(5))
    chosen = seconds.pop(fast_precision("cpu"))
    assert chosen < 3 * min(seconds.values())


@pytest.mark.parametrize("fast", ["bf16", "fp32"])
def test_an_open_format_is_chosen_once_and_announced(fast: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And a run keeps it on a machine that would choose another, section by section."""
    other = {"bf16": "fp32", "fp32": "bf16"}[fast]
    named = recipe(tmp_path)
    assert formats(named) == (None, None)
    with caplog.at_level("INFO"):
        found = with_precision(named, "cpu", tmp_path, fast=fast)
    assert formats(found) == (fast, fast)
    assert [f"{name}.precision: {fast}" in caplog.text for name in ("train", "sft")] == [True, True]
    RunDir(tmp_path).stage("sft", fingerprint(sft_work(found)), lambda stage: {})
    assert formats(with_precision(named, "cpu", tmp_path / "seed-1", tmp_path, fast=other)) == (other, fast)
    RunDir(tmp_path).stage("start/measure", Scoring.of(found.train).inputs(), lambda stage: {})
    caplog.clear()
    with caplog.at_level("INFO"):
        assert formats(with_precision(named, "cpu", tmp_path, fast=other)) == (fast, fast)
    assert ("bf16 is slow on this CPU" in caplog.text) == (fast == "bf16") and ("the default" in caplog.text) is False


def test_a_format_that_is_named_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning where the device is slow at it."""
    named = recipe(tmp_path, train={"precision": "bf16"}, sft=None)
    with caplog.at_level("INFO"):
        assert with_precision(named, "cuda", fast="bf16") == named and not caplog.text
        assert with_precision(named, "cpu", fast="fp32") == named
    assert caplog.text.count("train.precision: bf16 is slow on this CPU") == 1
    assert formats(with_precision(recipe(tmp_path, train={"precision": "fp32"}), "cuda", fast="bf16")) == ("fp32", "bf16")
