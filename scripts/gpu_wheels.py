"""Fill a folder with what `make gpu-check` needs on a machine without network: wheels for Python 3.12 on x86-64 Linux.

    python scripts/gpu_wheels.py [FOLDER=wheels] [large]

The versions are those of requirements.lock. PyTorch, transformers, accelerate, peft and their own requirements are expected on the card's
machine; whatever else of the list is there already stays as it is. `large` adds bitsandbytes (QLoRA), some 60 MB.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parent.parent
# pure ones, but for pydantic_core and xxhash, which are compiled
NAMES = (
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("typer", "shellingham", "rich", "markdown-it-py", "mdurl", "Pygments", "annotated-doc"),
    *("datasets", "dill", "multiprocess", "xxhash", "trl"),
    *("pytest", "pluggy", "iniconfig", "pytest-timeout", "pytest-xdist", "execnet", "hypothesis", "sortedcontainers"),
)
LARGE = ("bitsandbytes",)
NEWEST = ("typing-extensions",)  # pydantic needs that of its own time
GLIBC = (17, 24, 27, 28, 31, 34)


def locked() -> dict[str, str]:
    """name, as it is compared -> version, of requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {key(name): version for name, version in (line.split("==") for line in lines if "==" in line)}


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def missing(folder: Path) -> list[Path]:
    """The wheels in the folder whose package is not installed here, or of those that must not be older, is."""
    here = {key(found.name): found.version for found in distributions()}
    named = {wheel: wheel.name.split("-")[:2] for wheel in sorted(folder.glob("*.whl"))}
    return [wheel for wheel, (name, version) in named.items() if _is_needed(here.get(key(name)), key(name), version)]


def _is_needed(here: str | None, name: str, version: str) -> bool:
    return here is None or (name in NEWEST and Version(here) < Version(version))


def install(folder: Path, target: Path) -> list[str]:
    """Unpack the missing wheels into `target`, for Python's path, and say there which version sparring is. Returns their names."""
    wheels = missing(folder)
    target.mkdir(parents=True, exist_ok=True)
    if wheels:
        options = ("-q", "--no-index", "--no-deps", "--no-compile", "--target", str(target))
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, wheels)], check=True)
    if "sparring" not in {key(found.name) for found in distributions()}:
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
        facts = target / f"sparring-{version}.dist-info" / "METADATA"
        facts.parent.mkdir(exist_ok=True)
        facts.write_text(f"Metadata-Version: 2.1\nName: sparring\nVersion: {version}\n", encoding="utf-8")
    return [wheel.name for wheel in wheels]


def fill(folder: Path, names: Iterable[str]) -> None:
    versions = locked()
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64"]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", "-d", str(folder)]
    options += [word for platform in platforms for word in ("--platform", platform)]
    wanted = [f"{name}=={versions[key(name)]}" for name in names]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, *wanted], check=True)
    for wheel in sorted(folder.glob("*.whl")):
        print(f"{wheel.stat().st_size / 1e6:6.1f} MB  {wheel.name}")


if __name__ == "__main__":
    words = sys.argv[1:]
    fill(Path(next((word for word in words if word != "large"), "wheels")), (*NAMES, *(LARGE if "large" in words else ())))
