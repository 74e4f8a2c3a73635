"""Names of devices as people write them."""

from __future__ import annotations

import pytest

from sparring.errors import UserError
from sparring.planning import hardware
from sparring.planning.hardware import DEVICES, Hardware, find_hardware


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xA100-80G", 8, "A100-80G"),
        ("1xRTX4090", 1, "RTX4090-24G"),
        ("rtx 4090", 1, "RTX4090-24G"),
        ("8xA100-80GB", 8, "A100-80G"),
        ("2 x h100-80g", 2, "H100-80G"),
        ("16*L4", 16, "L4-24G"),
        ("H100-PCIE", 1, "H100-PCIE-80G"),
    ],
)
def test_devices_by_name(text: str, count: int, name: str) -> None:
    found = find_hardware(text)
    assert (found.count, found.name, found.kind) == (count, name, "cuda")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("8xA100", "did you mean A100-80G or A100-40G?"),  # which of the two is not guessed
        ("8xA101-80G", "did you mean A100-80G?"),
        ("toaster", "known: cpu (the one of this machine), B200-180G"),
        ("0xA100-80G", "8xNAME"),
        ("", "8xNAME"),
        ("4xcpu", "cpu (the one of this machine)"),
        pytest.param("9" * 5000 + "xL4", "known: cpu", id="thousands of digits"),
        ("4xA100-80G+4xL4", "known: cpu"),
    ],
)
def test_other_names_are_refused_with_the_known_ones(text: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        find_hardware(text)
    assert "--hardware" in str(refused.value) and told in str(refused.value)


def test_every_device_says_where_its_numbers_are_from_and_holds_what_its_name_says() -> None:
    for name, device in DEVICES.items():
        assert device.source and device.memory == pytest.approx(float(name.rpartition("-")[2].removesuffix("G")) * 1e9)
        assert 1e13 < device.flops < 1e16 and 1e11 < device.bandwidth < 1e13


def test_ranks_share_a_cpu_and_have_a_gpu_each() -> None:
    gpu, cpu = find_hardware("8xL4"), Hardware("cpu", "cpu", 8e11, 4e10, 16e9, "by hand")
    assert gpu.shared_by(4) == gpu and cpu.shared_by(1) == cpu
    part = cpu.shared_by(4)
    assert (part.flops, part.bandwidth, part.memory, part.count) == (2e11, 1e10, 4e9, 4)


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.this_cpu.cache_clear()
    found = find_hardware("cpu")
    assert found.kind == "cpu" and found.count == 1
    assert 1e9 < found.flops < 1e14 and 1e8 < found.bandwidth < 1e12 and found.memory > 1e9
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_hardware(None) == found
