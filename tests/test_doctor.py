"""`sparring doctor`: what it reports, and that it ends in 2, with the remedy, where no game can be played."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from test_bad_input import refused
from zygote import Result, Zygote

from sparring.doctor import EXTRAS
from sparring.policy.machine import fast_precision

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TOKEN = "hf_aB3dE5gH7jK9mN1pQ3sT5vW7"


def examined(zygote: Zygote, folder: Path, before: str = "", **environment: str) -> Result:
    """The command, after some Python that changes what it finds."""
    code = f"import sys\n{before}\nsys.argv = ['sparring', 'doctor']\nfrom sparring.cli import main\nmain()"
    return zygote.run([], folder, python=code, environment=environment)


def with_version(package: str, version: str) -> str:
    """As if this version were installed; none where it is empty."""
    return f"""
from importlib import metadata
real = metadata.version
def version(name):
    if name == {package!r} and not {version!r}:
        raise metadata.PackageNotFoundError(name)
    return {version!r} if name == {package!r} else real(name)
metadata.version = version"""


def test_a_machine_that_can_play(zygote: Zygote, tmp_path: Path) -> None:
    result = examined(zygote, tmp_path, HF_TOKEN=TOKEN, HF_HOME=str(tmp_path / "home"))
    assert result.code == 0, result.err
    for package in ("sparring", "torch", "transformers", "accelerate", "peft"):
        assert f"  {package:<14}{metadata.version(package)}" in result.out
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines() if line.startswith("  "))
    assert lines["python"] and "GB of memory free" in lines["cpu"] and f"GB free in {tmp_path}" in lines["disk"] and lines["gpu"]
    assert lines["precision"].partition(":")[0] == fast_precision("cuda" if torch.cuda.is_available() else "cpu")
    assert "offline" in lines["network"] and lines["token"] == "set" and TOKEN not in result.out + result.err
    assert lines["cache"]
    assert set(EXTRAS) <= set(lines) and lines["gguf"].endswith("(installed)")
    assert result.out.endswith("A game can be played here. `sparring run builtin:tiny` plays the smallest one.\n")


def test_every_extra_has_its_use() -> None:
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {"dev"}


def test_an_extra_that_is_missing_hinders_nothing(zygote: Zygote, tmp_path: Path) -> None:
    result = examined(zygote, tmp_path, with_version("gguf", ""))
    assert result.code == 0 and "models in GGUF files, such as the demo's (gguf: not installed)" in result.out


@pytest.mark.parametrize(
    "package, version, parts",
    [
        (
            "transformers",
            "4.57.0",
            ["transformers: 4.57.0 is installed, but sparring needs <6,>=5.10", "pip install 'transformers<6,>=5.10'"],
        ),
        ("peft", "", ["peft: not installed", "pip install 'peft>=0.17'"]),
    ],
)
def test_a_package_out_of_range(package: str, version: str, parts: list[str], zygote: Zygote, tmp_path: Path) -> None:
    result = examined(zygote, tmp_path, with_version(package, version))
    refused(result, "no game can be played here: ", *parts)
    assert "versions" in result.out and "A game can be played" not in result.out


def test_an_old_python(zygote: Zygote, tmp_path: Path) -> None:
    result = examined(zygote, tmp_path, "import platform\nplatform.python_version = lambda: '3.9.1'")
    refused(result, "python: 3.9.1, but sparring needs >=3.11", "create an environment with Python >=3.11")


def test_a_torch_that_cannot_be_loaded(zygote: Zygote, tmp_path: Path) -> None:
    broken = "import sparring.policy.machine\nsys.modules['torch'] = None"
    refused(examined(zygote, tmp_path, broken), "torch: cannot be loaded", "pip install --force-reinstall torch")
