"""Runs of the evidence that share their start: the SFT stage and what was measured of it is played once a seed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from common import ROOT

RUNS = ROOT / "runs" / "evidence"
SHARED = ("base", "data", "sft", "start")  # what most values do not touch


def share_start(start: Path, root: Path) -> None:
    """Give a run that has not begun all stages that another one has left in `start`."""
    if start.exists() and not root.exists():
        copy_start(start, root, [stage.name for stage in start.iterdir()])


def copy_start(source: Path, target: Path, stages: Sequence[str] = SHARED) -> None:
    """Links, not copies: nothing changes a finished stage in place. Whole or not at all."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    for stage in stages:
        if (source / stage).exists():
            shutil.copytree(source / stage, partial / stage, copy_function=os.link)
    if target.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(target)
