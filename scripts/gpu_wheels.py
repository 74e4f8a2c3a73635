"""Fill a folder with what `make gpu-check` needs on a machine without network: wheels for Python 3.12 on x86-64 Linux.

    python scripts/gpu_wheels.py [FOLDER=wheels] [large]

The machine with the card must have Python 3.12, PyTorch for CUDA, transformers, accelerate and peft, and what these four require: numpy,
packaging, safetensors, tokenizers, huggingface_hub, jinja2, markupsafe, PyYAML, psutil, tqdm, filelock, fsspec. The wheels (NAMES) are the
other requirements of pyproject.toml, what its tests and benchmarks need (pytest, hypothesis, TRL), and what all of these require, in the
versions of requirements.lock. What the machine has already stays as it is, unless the project or a wheel that it gets needs another
version. `large` adds bitsandbytes (QLoRA), some 60 MB.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

try:
    from packaging import tags
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename
except ImportError:  # so that gpu_check.py can say that it is missing
    from pip._vendor.packaging import tags
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent.parent
NAMES = (
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("typer", "shellingham", "rich", "markdown-it-py", "mdurl", "Pygments", "annotated-doc"),
    *("datasets", "pyarrow", "pandas", "python-dateutil", "tzdata", "dill", "multiprocess", "xxhash", "trl"),
    *("scipy", "matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pillow", "pyparsing"),
    *("pytest", "pluggy", "iniconfig", "pytest-timeout", "pytest-xdist", "execnet", "hypothesis", "sortedcontainers"),
)
LARGE = ("bitsandbytes",)
FOR_TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")  # of the extra `dev`
GLIBC = (17, 24, 27, 28, 31, 34)


def locked() -> dict[str, str]:
    """name, as it is compared -> version, of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if "==" in line)}


# --- on the machine with the card


def unmet(folder: Path, with_tests: bool) -> list[str]:
    """Requirements of the project that are neither installed nor among the wheels of the folder; of these wheels' own, those of which
    there is no version at all. What is installed is not asked for its requirements."""
    wheels, project = missing(folder), required(with_tests)
    there = installed() | {name: _version(wheel) for name, wheel in wheels.items()}
    found = []
    for name, requirement in _with_those_of_wheels(project, wheels).items():
        if name not in there:
            found.append(f"{requirement.name}{requirement.specifier}")
        elif name in project and not _meets(there[name], requirement):
            found.append(f"{requirement.name}{requirement.specifier} (there is {there[name]})")
    return found


def missing(folder: Path) -> dict[str, Path]:
    """name -> the folder's wheel for this Python, of packages that are not installed, or in a version that the project or another wheel
    of these cannot use."""
    here, project, fits = installed(), required(with_tests=True), set(tags.sys_tags())
    wheels = {wheel: parse_wheel_filename(wheel.name) for wheel in sorted(folder.glob("*.whl")) if zipfile.is_zipfile(wheel)}
    named = {name: wheel for wheel, (name, _, _, of_wheel) in wheels.items() if of_wheel & fits}

    def are_needed(requirements: dict[str, Requirement]) -> list[str]:
        return [name for name, one in requirements.items() if name in named and not (name in here and _meets(here[name], one))]

    needed = [*dict.fromkeys([*(name for name in named if name not in here), *are_needed(project)])]
    for name in needed:  # grows
        needed += [other for other in are_needed(_required_by(named[name])) if other not in needed]
    return {name: named[name] for name in needed}


def required(with_tests: bool) -> dict[str, Requirement]:
    """name -> what pyproject.toml requires here, for the tests too if they are to run."""
    project = _project()
    tests = [text for text in project["optional-dependencies"]["dev"] if Requirement(text).name in FOR_TESTS]
    return _named([*project["dependencies"], *(tests if with_tests else [])])


def installed() -> dict[str, str]:
    """name -> version."""
    return {canonicalize_name(found.name): found.version for found in distributions()}


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _with_those_of_wheels(project: dict[str, Requirement], wheels: dict[str, Path]) -> dict[str, Requirement]:
    found, todo = dict(project), list(project)
    for name in todo:  # grows
        own = _required_by(wheels[name]) if name in wheels else {}
        new = {other: requirement for other, requirement in own.items() if other not in found}
        found |= new
        todo += new
    return found


def _required_by(wheel: Path) -> dict[str, Requirement]:
    return _named(text for found in distributions(path=[str(wheel)]) for text in found.requires or [])


def _named(requirements: Iterable[str]) -> dict[str, Requirement]:
    """Without those of extras, of other platforms and of other versions of Python."""
    every = map(Requirement, requirements)
    return {canonicalize_name(one.name): one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})}


def _meets(version: str, requirement: Requirement) -> bool:
    return requirement.specifier.contains(version, prereleases=True)


def _version(wheel: Path) -> str:
    return str(parse_wheel_filename(wheel.name)[1])


def install(folder: Path, target: Path) -> list[str]:
    """Unpack the missing wheels into `target`, for Python's path, and say there which version sparring is. Returns their names."""
    wheels = missing(folder)
    target.mkdir(parents=True, exist_ok=True)
    for wheel in wheels.values():
        unpacked = target / f".{wheel.name}"  # by an earlier call
        if not unpacked.exists():
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(target)
            unpacked.touch()
    if "sparring" not in installed():
        version = _project()["version"]
        facts = target / f"sparring-{version}.dist-info" / "METADATA"
        facts.parent.mkdir(exist_ok=True)
        facts.write_text(f"Metadata-Version: 2.1\nName: sparring\nVersion: {version}\n", encoding="utf-8")
    return [wheel.name for wheel in wheels.values()]


# --- before it, where there is network


def fill(folder: Path, names: Iterable[str]) -> None:
    versions = locked()
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64"]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", "-d", str(folder)]
    options += [word for platform in platforms for word in ("--platform", platform)]
    wanted = [f"{name}=={versions[canonicalize_name(name)]}" for name in names]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, *wanted], check=True)
    for wheel in sorted(folder.glob("*.whl")):
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")


if __name__ == "__main__":
    words = sys.argv[1:]
    fill(Path(next((word for word in words if word != "large"), "wheels")), (*NAMES, *(LARGE if "large" in words else ())))
