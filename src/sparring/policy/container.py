"""The memory that this process may use, within the limit of its container or batch job, which the machine's numbers do not show.

The limits are those of the process's control group and all above it, in both versions (man 7 cgroups). Imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

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
