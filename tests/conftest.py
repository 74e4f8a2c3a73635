"""Shared pieces: a game of a few seconds, and commands in real processes."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings
from zygote import Result, Running, Zygote, do_not_wait_for_the_disk

settings.register_profile("sparring", deadline=None)  # machines are as slow as they are
settings.load_profile("sparring")

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: the commands under test must be able to get it.
signal.signal(signal.SIGINT, signal.default_int_handler)
do_not_wait_for_the_disk()

# Two iterations, with several shards, checkpoints and score shards in each: at every point there is something to go on from.
TINY: dict[str, Any] = {
    "run_dir": "run",
    "model": {"path": "builtin:tiny", "dtype": "float32"},
    "data": {"path": "rows.jsonl", "held_out": 8},
    "sft": {"lr": 3e-3, "epochs": 1, "batch_size": 4, "precision": "fp32", "checkpoint_every": 2},
    "iterations": 2,
    "sampling": {"max_new_tokens": 6, "replies_per_prompt": 2, "shard_rows": 8, "batch_tokens": 300},
    "objective": {"beta": 1.0, "window": 2},
    "train": {"lr": 1e-3, "epochs": 1, "batch_size": 4, "precision": "fp32", "checkpoint_every": 2, "micro_batch_tokens": 120},
    "evaluate": {"answer_pattern": "[0-9]+$", "metric": "nll_per_token"},
    "stop": {"indistinguishable": False},
    "controls": {"kind": "continued-sft", "batch_size": 16},
    "showcase": ["say ab"],
    "report": False,  # seconds of drawing that few tests look at
}


def rows(count: int = 32) -> list[dict[str, str]]:
    """Short rows of the prompt/completion shape, each prompt its own."""
    return [{"prompt": f"say {chr(97 + n % 26)}{chr(97 + n // 26)}", "completion": f"{chr(97 + n % 26)} {n}"} for n in range(count)]


def write_rows(path: Path, found: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "zygote" in getattr(item, "fixturenames", ()):
            item.add_marker("long")
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: it runs with --slow"))


def pytest_collection_finish() -> None:
    """A game in this process collects garbage after every stage, and would go through the libraries' million objects each time."""
    gc.freeze()


class Game:
    """A folder with recipe.yaml and rows.jsonl in it, and the commands that a person would type there."""

    def __init__(self, folder: Path, zygote: Zygote, changes: dict[str, Any]) -> None:
        self.folder, self.zygote = folder, zygote
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "rows.jsonl", rows())
        self.write(**changes)

    @property
    def root(self) -> Path:
        return self.folder / "run"

    def write(self, **changes: Any) -> None:
        """Write recipe.yaml: TINY with `section__key=value` or `key=value` replaced; None for a section removes it."""
        recipe = deepcopy(TINY)
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                recipe.setdefault(section, {})[key] = value
            else:
                recipe[section] = value
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")

    def copy_stages(self, finished: Game, before: str) -> None:
        """Take over the stages that `finished`, a game of the same recipe, had finished when the stage `before` began."""
        stages = finished.stages()
        self._copy(finished, stages[: stages.index(before)])

    def copy_later_stages(self, finished: Game, after: str) -> None:
        """Take over those that come after the stage `after`: a run goes on with them only if what it has itself is the same to the bit.

        Their fingerprints contain the hashes of all that they were made from; the run is refused, or computes them again, if one differs.
        """
        stages = finished.stages()
        self._copy(finished, stages[stages.index(after) + 1 :])

    def stages(self) -> list[str]:
        """The names of its stages, in their order."""
        from sparring.config import load_recipe
        from sparring.stage_names import stages_of_game

        return stages_of_game(self.root, load_recipe(self.root / "recipe.yaml"))

    def _copy(self, finished: Game, stages: list[str]) -> None:
        for stage in stages:
            shutil.copytree(finished.root / stage, self.root / stage, symlinks=True)

    def run(self, *args: str, **more: Any) -> Result:
        return self.command("run", "recipe.yaml", *args, **more)

    def play(self, *args: str, **more: Any) -> Game:
        """Run it to its end, which it must reach."""
        result = self.run(*args, **more)
        assert result.code == 0, result.err
        return self

    def start(self, *args: str, **more: Any) -> Running:
        return self.zygote.start(["run", "recipe.yaml", *args], self.folder, **more)

    def command(self, *args: str, **more: Any) -> Result:
        return self.zygote.run(list(args), self.folder, **more)

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text(encoding="utf-8"))

    def finished_stages(self) -> int:
        """How many there are, counted while the game may be renaming and deleting folders (which `Path.rglob` does not survive)."""
        return sum("done.json" in files for _, _, files in os.walk(self.root))

    def state(self) -> dict[str, tuple[str, int]]:
        """name -> (content, time of writing) of every file that no later attempt may touch: finished stages and shards."""
        of_stages = [path for done in self.root.rglob("done.json") for path in done.parent.rglob("*") if path.is_file()]
        return {
            file.relative_to(self.root).as_posix().replace(".partial", ""): (file.read_bytes().hex(), file.stat().st_mtime_ns)
            for file in (*of_stages, *self.root.rglob("shard-*.parquet"))
        }


def package_with(folder: Path, *sections: str) -> tuple[Path, list[str]]:
    """A copy of `src` below `folder`, for what docs/contributing.md says to add to it, and the Python blocks of the page's `sections`."""
    root = Path(__file__).parent.parent
    page = (root / "docs" / "contributing.md").read_text(encoding="utf-8")
    text = "".join(page.partition(f"\n## {section}\n")[2].partition("\n## ")[0] for section in sections)
    shutil.copytree(root / "src" / "sparring", folder / "src" / "sparring", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "src", re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _log_reaches_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A game played in this process before may have cut the log off from its root; changed within a test, lines would come twice."""
    monkeypatch.setattr(logging.getLogger("sparring"), "propagate", True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built-in model, for tests that only read."""
    from sparring.policy.tiny import make_tiny

    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, 0)
    return folder


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


@pytest.fixture
def game(tmp_path: Path, zygote: Zygote) -> Game:
    """A game not yet played."""
    return Game(tmp_path / "game", zygote, {})


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A finished game for tests that only read; `copy` is for those that change something."""
    finished = Game(tmp_path_factory.mktemp("played") / "game", zygote, {})
    return finished.play()


# Sums, of which some have a worked answer and 24 more have none: a majority game with several replies to every held-out prompt.
SUMS: dict[str, Any] = {
    "data": {"path": "rows.jsonl", "held_out": 8, "prompts": {"path": "prompts.jsonl", "answer": "gold"}},
    "sft": {"lr": 3e-3, "epochs": 20, "batch_size": 8, "precision": "fp32"},
    "sampling": {"max_new_tokens": 12, "replies_per_prompt": 4},
    "objective": {"beta": 0.5, "nll_weight": 1.0},
    "target": {"kind": "majority", "checker": "number", "min_votes": 0.25},
    "train": {"lr": 1e-4, "epochs": 1, "batch_size": 8, "precision": "fp32"},
    "evaluate": {"samples": 4, "greedy": True},
    "stop": {"plateau": False, "min_pass_at_k": None},
    "showcase": [],
}


def play_sums(folder: Path, zygote: Zygote, **changes: Any) -> Game:
    """A finished game of sums: SUMS with `section__key=value` or `key=value` replaced."""
    game = Game(folder, zygote, {**SUMS, **changes})
    sums = [(a, b) for a in range(6) for b in range(6)]
    write_rows(folder / "rows.jsonl", [{"prompt": f"add {a} {b}", "completion": f"{a} + {b} = {a + b}"} for a, b in sums])
    write_rows(folder / "prompts.jsonl", [{"prompt": f"add {a} {b}", "gold": a + b} for a in range(6, 10) for b in range(6)])
    return game.play()


@pytest.fixture(scope="session")
def majority_game(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A finished majority game of sums, for tests that only read."""
    return play_sums(tmp_path_factory.mktemp("majority_game") / "game", zygote)


@pytest.fixture(scope="session")
def verified_game(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A finished verified game of sums that learns from winners alone, for tests that only read."""
    changes = {"target": {"kind": "verified", "checker": "number"}, "objective": {"loss": "sft"}, "iterations": 1, "controls": None}
    return play_sums(tmp_path_factory.mktemp("verified_game") / "game", zygote, **changes)


@pytest.fixture
def copy(tmp_path: Path, played: Game, zygote: Zygote) -> Game:
    """A finished game that may be changed."""
    game = Game(tmp_path / "game", zygote, {})
    shutil.copytree(played.root, game.root, symlinks=True)
    return game


@pytest.fixture
def fresh_scripts() -> Iterator[None]:
    """Modules of benchmarks/ that a test imports, from there or from a copy, are not those of another test."""
    names = [file.stem for file in (Path(__file__).parent.parent / "benchmarks").glob("*.py")]

    def forget() -> None:
        for name in names:
            sys.modules.pop(name, None)

    forget()
    yield
    forget()
