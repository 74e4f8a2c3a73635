"""The limits of containers and batch jobs, in made-up trees of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from sparring.planning import hardware
from sparring.policy import machine
from sparring.policy.compute import free_memory

GB = 10**9


def group(folder: Path, version: int, limit: object, used: int, dropped: int) -> None:
    limit_file, use_file, name = machine.NAMES[version]
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in {limit_file: limit, use_file: used, machine.STATISTICS: f"anon 5\n{name} {dropped}\nfile 7"}.items():
        (folder / file).write_text(f"{value}\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root without limits, on a machine of a terabyte."""
    monkeypatch.setattr(machine, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    host = psutil.virtual_memory()._replace(total=1000 * GB, available=900 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: host)
    return tmp_path


@pytest.mark.parametrize(("version", "own"), [(2, "0::/\n"), (2, "0::/docker/abc\n"), (1, "4:memory:/docker/abc\n3:cpu:/\n0::/\n")])
def test_a_container_sees_its_own_limit(tree: Path, version: int, own: str) -> None:
    (tree / "own").write_text(own)
    group(tree / "cgroup" / ("memory" if version == 1 else ""), version, 4 * GB, used=3 * GB, dropped=2 * GB)
    assert machine.total_memory() == 4 * GB and machine.available_memory() == 3 * GB
    assert free_memory(torch.device("cpu")) == 3 * GB


def test_the_tightest_of_nested_groups_counts(tree: Path) -> None:
    """As those of a batch job are: of the machine's slice, the job, the step."""
    (tree / "own").write_text("0::/slice/job/step\n")
    group(tree / "cgroup/slice", 2, 64 * GB, used=60 * GB, dropped=0)
    group(tree / "cgroup/slice/job", 2, 16 * GB, used=1 * GB, dropped=0)
    group(tree / "cgroup/slice/job/step", 2, "max", used=1 * GB, dropped=0)
    assert machine.total_memory() == 16 * GB and machine.available_memory() == 4 * GB


def test_without_limits_it_is_the_machines(tree: Path) -> None:
    assert machine.total_memory() == 1000 * GB, "no control groups at all"
    (tree / "own").write_text("0::/\nnonsense\n")
    assert machine.available_memory() == 900 * GB
    group(tree / "cgroup", 1, 9223372036854771712, used=GB, dropped=0)
    assert machine.total_memory() == 1000 * GB


def test_a_full_container_has_nothing_free(tree: Path) -> None:
    (tree / "own").write_text("0::/\n")
    group(tree / "cgroup", 2, GB, used=GB + 1, dropped=0)
    assert machine.available_memory() == 0


def test_a_plan_is_made_for_the_container(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "own").write_text("0::/\n")
    group(tree / "cgroup", 2, 4 * GB, used=GB, dropped=0)
    monkeypatch.setattr(hardware, "_measured_rates", lambda number_format: (1e12, 1e10))
    hardware.this_cpu.cache_clear()
    try:
        assert hardware.find_hardware("cpu").memory == 4 * GB
    finally:
        hardware.this_cpu.cache_clear()
