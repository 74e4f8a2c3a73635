"""Memory: how many tokens are computed at once, and that freed memory is used again."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
import types

import pytest
import torch
import transformers

from sparring.policy import compute
from sparring.policy.compute import token_budget

FAULTS = """
import resource, sys, torch
from sparring.policy.compute import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.empty(64, 2**18).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(64, 2**18).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def model(parameters: int = 0, **changes: int) -> types.SimpleNamespace:
    config = transformers.LlamaConfig(**{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, **changes})
    return types.SimpleNamespace(config=config, device=torch.device("cpu"), num_parameters=lambda: parameters)


def test_a_budget_that_is_asked_for_is_taken() -> None:
    assert token_budget(77, model()) == 77


@pytest.mark.parametrize(
    ("gigabytes", "parameters", "tokens"),
    [
        (24, 135_000_000, 2048),  # no more on a CPU
        (3.64, 135_000_000, 256),  # (0.7 * 3.64 - 2.16) GB / 1.244 MB are 311
        (4, 135_000_000, 512),  # 514
        (1, 135_000_000, 256),  # less than the weights need: still something
    ],
)
def test_the_budget_by_hand(gigabytes: float, parameters: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_main_memory", lambda: int(gigabytes * 1e9))
    assert token_budget(None, model(parameters)) == tokens


def test_the_budget_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sparring")
    for _ in range(3):
        token_budget(None, model(parameters=123_456_789))
    (line,) = caplog.messages
    assert line.startswith("micro_batch_tokens: 2048, chosen for 123M parameters")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_freed_memory_is_used_again() -> None:
    """64 MiB twenty times over: faulted in page by page each time, or once."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 3 * 2**14 < 15 * 2**14 < faults["given back"], "64 MiB are 2**14 pages"
