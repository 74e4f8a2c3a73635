"""Random kills, faults, invalid input and adversarial text against tiny games: how many were tried, and how many passed.

    python benchmarks/chaos.py [kills=200] [inputs=500] [probes=100] [seed=0] [folder=runs/chaos]

A trial is a function of the seed and its number, and leaves a line in FOLDER/KIND.jsonl: the same command resumes after an interruption,
and a larger number adds trials to those that are there. Prints the figures and writes them to benchmarks/results/chaos.json.

kills    a game is killed, interrupted, terminated or out of disk up to three times at random moments, then ends as one that was never
         touched: weights, replies, log-probs, scores and metrics bit by bit
inputs   a recipe, an override, a data file or a model folder is changed at random: the game is played, or refused with exit code 2
         and an error, without a traceback
probes   words for terminals, browsers, Markdown and YAML in rows or names, through a whole game: nothing of them is obeyed in terminal,
         run.log, report, model card and data card
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from common import options_of, save  # noqa: E402
from conftest import Game, rows, write_rows  # noqa: E402
from probes import ALL, as_name  # noqa: E402
from test_kill_and_resume import assert_same_outcome  # noqa: E402
from test_probes import check_card, check_page, harmless  # noqa: E402
from zygote import ADVANCE, PAUSE_SECONDS, Result, Sabotage, Zygote  # noqa: E402

from sparring.config import section_of, walk_fields  # noqa: E402
from sparring.locks import LOCK  # noqa: E402

DEFAULTS = {"kills": "200", "inputs": "500", "probes": "100", "seed": "0", "folder": str(ROOT / "runs" / "chaos")}
SHORT = {"iterations": 1, "controls": None, "sft": None}
# where a full disk or a kill may happen, in addition to random moments
FUNCTIONS = ["os:replace", "os:fsync", ADVANCE, "sparring.data.tables:write_table", "shutil:rmtree"]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    10**17,
    1e-300,
    1e300,
    "",
    "x",
    "\x01",
    "x" * 300,
    "../..",
    [],
    ["x"],
    {},
    {"x": 1},
    [[1]],
    "1e-6",
]
JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


class Campaign:
    """The trials of all kinds over one game that is never touched, and its model; `calm` where it was played already."""

    def __init__(self, folder: Path, seed: int, zygote: Zygote, calm: Game | None) -> None:
        self.folder, self.seed, self.zygote = folder, seed, zygote
        shutil.rmtree(folder / "work", ignore_errors=True)
        self.calm = calm or Game(folder / "work" / "calm", zygote, {})
        if calm is None:
            result = self.calm.run()
            assert result.code == 0, result.err
        self.files = count_files(self.calm.root)  # how far a game has come, on a machine as busy as it is

    def play(self, kind: str, count: int) -> list[dict[str, Any]]:
        """The first `count` trials of a kind, those that are on the disk taken from there."""
        trial: Callable[[random.Random, Game], str] = getattr(self, f"try_{kind}")
        file = self.folder / f"{kind}.jsonl"
        done = {found["n"]: found for found in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
        for n in range(count):
            if n in done:
                continue
            game = Game(self.folder / "work" / f"{kind}-{n}", self.zygote, {})
            found: dict[str, Any] = {"n": n, "passed": True}
            try:
                found["what"] = trial(random.Random(f"{self.seed} {kind} {n}"), game)
            except AssertionError as error:
                broken = traceback.extract_tb(error.__traceback__)[-1].line
                found |= {"passed": False, "what": f"{broken}: {error}"[:3000]}
                print(f"{kind} {n}: FAILED: {found['what'][:500]}", flush=True)
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(found) + "\n")
            done[n] = found
            if found["passed"]:
                shutil.rmtree(game.folder)
        return [done[n] for n in range(count)]

    # --- kills

    def try_kills(self, draw: random.Random, game: Game) -> str:
        told: list[str] = []
        while all(one.endswith(": 0") for one in told):  # it was over before anything happened to it
            shutil.rmtree(game.root, ignore_errors=True)
            told = [self._interrupt(draw, game) for _ in range(draw.randint(1, 3))]
        result = game.run()
        assert result.code == 0, f"{told}: {result.err}"
        assert_same_outcome(game.root, self.calm.root)
        return ", ".join(told)

    def _interrupt(self, draw: random.Random, game: Game) -> str:
        """One attempt that something happens to, unless it is over before."""
        if draw.random() < 0.4:
            do = draw.choice(["kill", "full disk", "terminate", "interrupt"])
            at = Sabotage(draw.choice(FUNCTIONS), nth=draw.randint(1, 60), do=do)
            _as_it_must_end(result := game.run(sabotage=[at]), (0, 2, 130, -signal.SIGKILL))
            return f"{do} at call {at.nth} of {at.function}: {result.code}"
        number = draw.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
        running, files = game.start(), draw.uniform(0, self.files)
        while self.zygote.poll(running.pid) is None and not (has_begun(running.pid, game.root) and count_files(game.root) >= files):
            time.sleep(PAUSE_SECONDS)
        time.sleep(draw.uniform(0, 0.2))
        if self.zygote.poll(running.pid) is None:
            os.kill(running.pid, number)
        _as_it_must_end(result := running.wait(), (0, 130, -signal.SIGKILL))
        return f"{number.name}: {result.code}"

    # --- bad input

    def try_inputs(self, draw: random.Random, game: Game) -> str:
        change = draw.choice([self._change_recipe, self._change_override, self._change_data, self._change_model])
        game.write(**SHORT)
        told, overrides = change(draw, game)
        result = game.run(*overrides)
        _as_it_must_end(result, (0, 2))
        assert result.code == 0 or "error: " in result.err, result.err
        return f"{told}: {result.code}"

    def _change_recipe(self, draw: random.Random, game: Game) -> tuple[str, list[str]]:
        content = bytearray((game.folder / "recipe.yaml").read_bytes())
        at, new = (
            draw.randrange(len(content)),
            draw.choice([b"", b"\xff", b"[" * 50, b"&a *a", b"!!x", b"<<: ", b"\t", b"{", b"'", b"\x00"]),
        )
        content[at : at + draw.choice([0, 1, 5])] = new
        (game.folder / "recipe.yaml").write_bytes(content)
        return f"recipe, byte {at}: {new!r}", []

    def _change_override(self, draw: random.Random, game: Game) -> tuple[str, list[str]]:
        own = ("run_dir", "data.path", "model.path", "launcher", "track", "sampling.engine", "iterations", "seeds")
        keys = [key for key, field in walk_fields() if section_of(field.annotation) is None and not key.startswith(own)]
        override = f"{draw.choice(keys)}={json.dumps(draw.choice(VALUES))}"
        return override, [override]

    def _change_data(self, draw: random.Random, game: Game) -> tuple[str, list[str]]:
        file = game.folder / "rows.jsonl"
        lines = file.read_text().splitlines()
        at = draw.randrange(len(lines))
        key, value = draw.choice(["prompt", "completion", "messages", "system"]), draw.choice(VALUES)
        lines[at] = draw.choice(
            [lines[at][: len(lines[at]) // 2], json.dumps({**json.loads(lines[at]), key: value}), json.dumps(value), "\0"]
        )
        file.write_text("\n".join(lines))
        return f"row {at}: {lines[at][:80]}", []

    def _change_model(self, draw: random.Random, game: Game) -> tuple[str, list[str]]:
        folder = Path(shutil.copytree(self.calm.root / "base" / "model", game.folder / "model"))
        name = draw.choice([*JSON_FILES, "model.safetensors"])
        content = (folder / name).read_bytes()
        if name in JSON_FILES and draw.random() < 0.8:
            found = json.loads(content)
            key, value = draw.choice(sorted(found)), draw.choice(VALUES)
            (folder / name).write_text(json.dumps({**found, key: value}))
            return f"{name}: {key} = {value!r}", ["model.path=model"]
        at = draw.randrange(len(content))
        (folder / name).write_bytes(content[:at] + draw.randbytes(draw.randint(0, 4)) + content[at + draw.choice([0, 1, 10**9]) :])
        return f"{name}, byte {at}", ["model.path=model"]

    # --- adversarial text

    def try_probes(self, draw: random.Random, game: Game) -> str:
        texts = draw.sample(ALL, 3)
        run_dir, model = as_name(f"run {texts[0]}"), as_name(f"model {texts[1]}")
        shutil.copytree(self.calm.root / "base" / "model", game.folder / model)
        write_rows(
            game.folder / "rows.jsonl", [*({"prompt": f"{n} {text}", "completion": text} for n, text in enumerate(texts)), *rows(20)]
        )
        shown = [text for text in texts if "\x00" not in text]
        game.write(run_dir=run_dir, model__path=model, showcase=shown, report=True, **SHORT)
        commands = [
            ["run", "recipe.yaml"],
            ["status", run_dir],
            ["sample", run_dir, "say " + "x".join(shown)],
            ["compare", run_dir, "--html", "p.html"],
        ]
        commands += [["push", run_dir, "--repo", "me/it", "--dataset-repo", "me/data", "--dry-run", "card"]]
        for command in commands:
            result = game.command(*command)
            assert result.code == 0, result.err
            harmless(result)
        for page in (game.folder / run_dir / "report.html", game.folder / "p.html"):
            check_page(page.read_text())
        for card in ("model", "data"):
            check_card((game.folder / "card" / card / "README.md").read_text())
        return repr(texts)


def count_files(folder: Path) -> int:
    """Folders among them; `os.walk` passes over those that get another name meanwhile."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def has_begun(pid: int, root: Path) -> bool:
    """Whether the process has taken the run: before that there is nothing to lose, and a signal ends it as any Python that starts."""
    return (root / LOCK).exists() and f"process {pid} on" in (root / LOCK).read_text()


def _as_it_must_end(result: Result, codes: tuple[int, ...]) -> None:
    assert result.code in codes, (result.code, result.err)
    assert "Traceback" not in result.out + result.err and "fault: " not in result.err, result.err


def main(options: dict[str, str], zygote: Zygote, calm: Game | None = None) -> dict[str, Any]:
    folder = Path(options["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(folder, int(options["seed"]), zygote, calm)
    figures = {}
    for kind in ("kills", "inputs", "probes"):
        found = campaign.play(kind, int(options[kind]))
        figures[kind] = {"tried": len(found), "passed": sum(one["passed"] for one in found)}
        print(f"{kind}: {figures[kind]['passed']} of {figures[kind]['tried']} passed", flush=True)
    return figures


if __name__ == "__main__":
    chosen = options_of(DEFAULTS, sys.argv[1:])
    with contextlib.closing(Zygote()) as started:
        found = main(chosen, started)
    save("chaos", {"command": " ".join(["python benchmarks/chaos.py", *sys.argv[1:]]), "figures": found})
    sys.exit(any(one["passed"] < one["tried"] for one in found.values()))
