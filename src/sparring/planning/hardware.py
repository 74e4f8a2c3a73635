"""Devices: their peak rates, and how a recipe's stages are distributed over them.

Vendors' numbers, dense (without sparsity), for bfloat16 products with float32 accumulation.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from sparring.config import Precision, Recipe
from sparring.errors import UserError, nearest
from sparring.launch import with_config
from sparring.policy.footprint import Parallel
from sparring.policy.machine import fast_precision, total_memory

GB = 1e9


@dataclass(frozen=True)
class Hardware:
    """`count` equal devices of one `kind` ("cuda" or "cpu"); rates per device, in operations and bytes per second."""

    name: str
    kind: str
    flops: float
    bandwidth: float
    memory: float
    source: str
    count: int = 1

    @property
    def label(self) -> str:
        """The name, with the number of devices for GPUs."""
        return f"{self.count}x {self.name}" if self.kind == "cuda" else self.name

    def shared_by(self, processes: int) -> Hardware:
        """The share of a process: its own device, or its part of the CPU and its memory."""
        if self.kind == "cuda" or processes == 1:
            return self
        rates = {name: getattr(self, name) / processes for name in ("flops", "bandwidth", "memory")}
        return replace(self, **rates, count=processes)


def _gpu(name: str, teraflops: float, gigabytes: float, bandwidth: float, source: str) -> Hardware:
    # 80G are counted as 80e9 bytes, 7% less than the 80 GiB of such a card, since the driver and fragmentation take some
    return Hardware(name, "cuda", teraflops * 1e12, bandwidth * GB, gigabytes * GB, source)


_GPUS = (
    _gpu("B200-180G", 2250, 180, 8000, "NVIDIA Blackwell data sheet (HGX B200)"),
    _gpu("H200-141G", 989.4, 141, 4800, "NVIDIA H200 data sheet (SXM)"),
    _gpu("H100-80G", 989.4, 80, 3350, "NVIDIA H100 data sheet (SXM)"),
    _gpu("H100-PCIE-80G", 756, 80, 2000, "NVIDIA H100 data sheet (PCIe)"),
    _gpu("A100-80G", 312, 80, 2039, "NVIDIA A100 data sheet (SXM)"),
    _gpu("A100-40G", 312, 40, 1555, "NVIDIA A100 data sheet (SXM)"),
    _gpu("L40S-48G", 362, 48, 864, "NVIDIA L40S data sheet"),
    _gpu("A6000-48G", 154.8, 48, 768, "NVIDIA GA102 whitepaper, RTX A6000"),
    _gpu("RTX5090-32G", 209.5, 32, 1792, "NVIDIA Blackwell RTX whitepaper"),
    _gpu("RTX4090-24G", 165.2, 24, 1008, "NVIDIA Ada whitepaper"),
    _gpu("RTX3090-24G", 71, 24, 936, "NVIDIA GA102 whitepaper"),
    _gpu("A10G-24G", 70, 24, 600, "NVIDIA and AWS data sheets (G5 instances)"),
    _gpu("L4-24G", 121, 24, 300, "NVIDIA L4 data sheet"),
)
DEVICES = {device.name.upper(): device for device in _GPUS}
WHERE = "--hardware"


def find_hardware(text: str | None, precision: Precision | None = None) -> Hardware:
    """The devices named `8xA100-80G`, `RTX4090` (one) or `cpu` (this machine's); None for this machine's own. precision: of the products
    whose rate is measured on a CPU; None for its fast one. Raises UserError with the known names."""
    if text is None:
        return _own_gpus() or this_cpu(precision)
    found = re.fullmatch(r"\s*(?:(\d{1,6})\s*[xX*]\s*)?(\S.*?)\s*", text)
    count, name = (int(found[1] or 1), re.sub(r"(?<=\d)GB$", "G", found[2].upper().replace(" ", ""))) if found else (0, "")
    if name == "CPU" and count == 1:
        return this_cpu(precision)
    alike = [device for key, device in DEVICES.items() if name in (key, key.rpartition("-")[0])]
    if count and len(alike) == 1:
        return replace(alike[0], count=count)
    guesses = [device.name for device in alike if count] or [DEVICES[key].name for key in [nearest(name, DEVICES)] if key]
    hint = f"did you mean {' or '.join(guesses)}? " if guesses else ""
    raise UserError(f"{text!r} is not a known device", where=WHERE, remedy=f"{hint}{_known()}")


def _known() -> str:
    names = ", ".join(device.name for device in DEVICES.values())
    return f"known: cpu (the one of this machine), {names}; 8xNAME for eight of them, as in 8xA100-80G"


def _own_gpus() -> Hardware | None:
    """This machine's CUDA devices; None if it has none. Raises UserError if they are not in the table."""
    import torch

    if not torch.cuda.is_available():
        return None
    own = torch.cuda.get_device_name(0).upper().replace(" ", "")
    memory = torch.cuda.get_device_properties(0).total_memory
    alike = [device for device in DEVICES.values() if device.name.upper().partition("-")[0] in own]
    if not alike:
        raise UserError(f"this machine's {torch.cuda.get_device_name(0)} is not in the table", where=WHERE, remedy=_known())
    device = min(alike, key=lambda device: abs(device.memory - memory))
    return replace(device, count=torch.cuda.device_count())


@lru_cache
def this_cpu(precision: Precision | None = None) -> Hardware:
    """This machine's processor, with rates measured for a second or less, since no data sheet has those of a container."""
    number_format = "bfloat16" if (precision or fast_precision("cpu")) == "bf16" else "float32"
    flops, bandwidth = _measured_rates(number_format)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = f"cpu ({cores} cores)"
    return Hardware(name, "cpu", flops, bandwidth, total_memory(), f"measured now: the best of some {number_format} products")


def _measured_rates(number_format: str) -> tuple[float, float]:
    """(operations a second of products in the format, bytes a second read and written by a copy), the best of a few."""
    import time

    import torch

    def seconds(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    rows, inner, columns = 2048, 1024, 2048
    dtype = getattr(torch, number_format)
    a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    block, copy = torch.zeros(2, 2**26, dtype=torch.uint8)
    flops = max(2 * rows * inner * columns / seconds(lambda: torch.nn.functional.linear(a, b)) for _ in range(8))
    bandwidth = max(2 * block.nbytes / seconds(lambda: copy.copy_(block)) for _ in range(4))
    return flops, bandwidth


@dataclass(frozen=True)
class Samplers:
    """`copies` of the model sample in parallel, each sharded over `split` devices."""

    copies: int = 1
    split: int = 1

    @property
    def devices(self) -> int:
        """Devices of all copies together."""
        return self.copies * self.split


def of_training(recipe: Recipe, hardware: Hardware) -> Parallel:
    """How log-probs and training are parallel: on one device without a launcher, else on its processes, or on all devices."""
    launcher = recipe.launcher
    if launcher.kind == "inline":
        return Parallel()
    launcher = with_config(launcher)
    return Parallel(launcher.processes or hardware.count, launcher.strategy)


def of_sampling(recipe: Recipe, hardware: Hardware) -> Samplers:
    """How sampling is parallel: every rank that samples has the whole model. Ray's workers take all devices, and the server of every URL
    counts as one device."""
    sampling, spec, split = recipe.sampling, recipe.sampling.spec, recipe.sampling.devices_of_a_copy
    if spec.hosts:
        room = hardware.count // max(split, math.ceil(sampling.ray.gpus_per_worker or 1))
        return Samplers(max(1, min(room, sampling.ray.max_workers or room)), split)
    if spec.urls:
        return Samplers(copies=len(sampling.option(spec.urls)))
    return Samplers(of_training(recipe, hardware).devices if spec.on_ranks else 1, split)


def devices_wanted(recipe: Recipe, hardware: Hardware) -> tuple[int, str]:
    """The largest number of devices that an option requires, and that option. On a CPU all processes share the one device."""
    if hardware.kind == "cpu":
        return 1, "a run"
    sampling = recipe.sampling
    wanted = [(of_training(recipe, hardware).devices, "launcher.processes")]
    if sampling.inner.devices:  # those of a copy are in one machine, and each of the launcher's machines has them
        wanted.append((sampling.devices_of_a_copy * recipe.launcher.machines, f"sampling.{sampling.inner.devices}"))
    return max(wanted)
