"""`sparring doctor`: what is installed here, what the machine has, and whether a game can be played."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sparring.config import ENGINES
from sparring.console import printable
from sparring.errors import UserError

PACKAGE, GB = "sparring", 1e9
SHOWN = ("torch", "transformers", "accelerate", "peft")  # always; other requirements only where missing or out of range
EXTRAS = {
    "math": "the checker math",
    "gguf": "models in GGUF files, such as the demo's",
    "8bit": "8-bit optimizers, and adapters on a 4-bit base",
    **{spec.extra: f"replies {spec.what}" + ", and judges" * bool(spec.urls) for spec in ENGINES.values() if spec.extra},
    "eval": "benchmarks of lm-evaluation-harness",
    "tensorboard": "metrics in TensorBoard",
    "trackio": "metrics in Trackio",
    "wandb": "metrics in Weights & Biases",
    "mlflow": "metrics in MLflow",
}


class Finding(NamedTuple):
    """One line of the report; `remedy` is set if it makes a game impossible."""

    name: str
    value: str
    remedy: str | None = None


def examine() -> None:
    """Print what was found. Raises UserError with all remedies if no game can be played."""
    versions = list(_versions())
    sections = {"versions": versions, f"extras, as in pip install '{PACKAGE}[math]'": list(_extras())}
    if not any(finding.remedy for finding in versions):  # the other sections import these packages
        sections |= {"machine": list(_machine()), "Hugging Face Hub": list(_hub())}
    for title, findings in sections.items():
        print(f"{title}\n" + "".join(f"  {finding.name:<14}{printable(finding.value)}\n" for finding in findings))
    wrong = [finding for findings in sections.values() for finding in findings if finding.remedy]
    if wrong:
        what = "; ".join(f"{finding.name}: {finding.value}" for finding in wrong)
        raise UserError(what, where="no game can be played here", remedy="\n     ".join(finding.remedy or "" for finding in wrong))
    print("A game can be played here. `sparring run builtin:tiny` plays the smallest one.")


def _versions() -> Iterator[Finding]:
    own = metadata.distribution(PACKAGE)
    yield Finding(PACKAGE, f"{own.version} in {Path(__file__).parent}")
    wanted, python = SpecifierSet(own.metadata["Requires-Python"]), platform.python_version()
    remedy = None if wanted.contains(python, prereleases=True) else f"create an environment with Python {wanted}"
    yield Finding("python", python + (f", but {PACKAGE} needs {wanted}" if remedy else ""), remedy)
    for requirement in _requirements():
        problem = _problem(requirement)
        if problem is not None:
            yield Finding(requirement.name, problem, f"pip install '{requirement.name}{requirement.specifier}'")
        elif requirement.name in SHOWN:
            yield Finding(requirement.name, metadata.version(requirement.name))


def _extras() -> Iterator[Finding]:
    for extra, use in EXTRAS.items():
        missing = [f"{one.name}: {problem}" for one in _requirements(extra) if (problem := _problem(one)) is not None]
        yield Finding(extra, f"{use} ({', '.join(missing) or 'installed'})")


def _requirements(extra: str = "") -> list[Requirement]:
    """The requirements of the package, or the additional ones of an extra."""
    found = map(Requirement, metadata.requires(PACKAGE) or [])
    if not extra:
        return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [one for one in found if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})]


def _problem(requirement: Requirement) -> str | None:
    """What is wrong with the installed version, or None."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    is_right = requirement.specifier.contains(version, prereleases=True)
    return None if is_right else f"{version} is installed, but {PACKAGE} needs {requirement.specifier}"


def _machine() -> Iterator[Finding]:
    from sparring.policy.machine import available_memory, total_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", f"{cores} cores, {available_memory() / GB:.1f} of {total_memory() / GB:.1f} GB of memory free")
    yield from _devices()
    here = Path.cwd()
    if os.access(here, os.W_OK):
        yield Finding("disk", f"{shutil.disk_usage(here).free / GB:.1f} GB free in {here}")
    else:
        yield Finding("disk", f"{here} cannot be written to", "go to a folder that you may write to")


def _devices() -> Iterator[Finding]:
    """The GPUs, and the number format that a recipe has by default."""
    try:
        import torch

        from sparring.policy.machine import fast_precision
    except (ImportError, OSError) as error:  # a library that it needs is missing
        yield Finding("torch", f"cannot be loaded: {error}", "pip install --force-reinstall torch")
        return
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield Finding("gpu", f"none that PyTorch can use (it was built {built})")
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding(f"gpu {number}", f"{device.name}, {device.total_memory / GB:.1f} GB")
    precision = fast_precision("cuda" if torch.cuda.is_available() else "cpu")
    yield Finding("precision", precision + ("" if precision == "bf16" else ": there are no fast bfloat16 products here"))


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    offline = "offline (HF_HUB_OFFLINE): models and data come from the cache alone"
    yield Finding("network", offline if constants.HF_HUB_OFFLINE else "online, unless HF_HUB_OFFLINE=1 is set")
    yield Finding("token", "set" if get_token() else "none; private models and `sparring push` need one (`hf auth login`)")
    yield Finding("cache", constants.HF_HUB_CACHE)
