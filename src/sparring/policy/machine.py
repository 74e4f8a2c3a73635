"""What this machine allows: the memory of this process, and the number format of the computation where the recipe leaves it open.

Memory is limited by the process's control group and all above it, in both versions (man 7 cgroups), which the machine's numbers do not
show. Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from sparring.config import OptimSection, Precision, Recipe
from sparring.console import log
from sparring.rundir import RunDir
from sparring.stage_names import SFT, START

ROOT, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# version -> files of a group: limit, use, and statistics with the name of the part that can be dropped at once
NAMES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
STATISTICS = "memory.stat"


def total_memory() -> int:
    """Bytes that this process and all others of the container may use."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _groups())])


def available_memory() -> int:
    """Bytes that could be allocated now."""
    return max(0, min([psutil.virtual_memory().available, *(limit - used for limit, used in _groups())]))


def _groups() -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of every group that has a limit."""
    for version, folder in _folders():
        limit, use, dropped = NAMES[version]
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found = int((folder / limit).read_text(encoding="ascii")), int((folder / use).read_text(encoding="ascii"))
            yield found[0], found[1] - _statistic(folder / STATISTICS, dropped)


def _folders() -> Iterator[tuple[int, Path]]:
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        version = 1 if "memory" in controllers.split(",") else 2
        if version == 1 or not controllers:
            top = ROOT / "memory" if version == 1 else ROOT
            own = top / path.lstrip("/")
            # inside a container the path is that of the host, and the mounted group is the container's own
            yield from ((version, folder) for folder in (own, *own.parents) if folder.is_relative_to(top))


def _statistic(file: Path, name: str) -> int:
    words = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return next((int(value) for key, value in words if key == name), 0)


# section of the recipe -> the stage that is the first to be computed in its number format, and where its inputs have the format
FIRST_STAGE = {"train": (f"{START}/measure", ("precision",)), "sft": (SFT, ("sft", "precision"))}
WORDS = {"cpu": "CPU", "cuda": "GPU"}  # kinds of devices, for messages


def fast_precision(kind: str) -> Precision:
    """bf16 where a device of this machine ("cpu", "cuda", ...) has fast bfloat16 products, else fp32.

    A CPU needs AVX-512 or Arm's bf16 instructions: without them torch multiplies bfloat16 matrices in plain loops, many times slower than
    in float32 (tests/policy/test_precision.py compares both). GPUs before Ampere emulate the format.
    """
    import torch  # `sparring plan` starts without it

    if kind == "cpu":
        is_fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        is_fast = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if is_fast else "fp32"


def with_precision(recipe: Recipe, kind: str, *runs: Path, fast: Precision | None = None) -> Recipe:
    """The recipe with its number format chosen where `precision` is null: the one that a game in `runs` began with, else `fast`.

    kind: of the device that computes. fast: its fast format; None if it is a device of this machine, which is asked. Warns of a format
    that is slow there.
    """
    fast = fast or fast_precision(kind)
    chosen: dict[str, OptimSection] = {}
    device = WORDS.get(kind, kind)
    for name, (stage, keys) in FIRST_STAGE.items():
        section: OptimSection | None = getattr(recipe, name)
        if section is None:
            continue
        begun = None if section.precision else next(filter(None, (_of_run(root, stage, keys) for root in runs)), None)
        chosen[name] = section = section.model_copy(update={"precision": section.precision or begun or fast})
        if section.number_format == "bf16" and fast == "fp32":
            log.warning(f"{name}.precision: bf16 is slow on this {device} without fast bfloat16 products; fp32 is faster in a new run")
        elif section.number_format != getattr(recipe, name).precision and begun is None:
            why = "the default" if fast == "bf16" else f"because this {device} has no fast bfloat16 products"
            log.info(f"{name}.precision: {fast}, {why}")
    return recipe.model_copy(update=chosen)


def _of_run(root: Path, stage: str, keys: Sequence[str]) -> Precision | None:
    """What a stage of the run in `root` was or is being computed in."""
    found: Any = RunDir(root).inputs_of(stage)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
