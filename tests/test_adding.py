"""What docs/contributing.md says to add (engine, launcher, metric, objective, target), in a copy of the package, which plays games."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Game, package_with, rows, write_rows
from test_own_objective import AT_START, BETA, CLASS, FILE, first_step
from zygote import Zygote

END_OF_TABLE = "\n    )\n}\n"
SMALL: dict[str, Any] = {"sft": None, "controls": None, "iterations": 1, "showcase": []}
EVEN = "def even(completions, **_):\n    return [float(len(c[0]['content']) % 2 == 0) for c in completions]\n"
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts the commands of a copy of the package to which all code blocks of the page were added."""
    folder = tmp_path_factory.mktemp("package")
    source, blocks = package_with(folder, *(f"How to add {what}" for what in ("an engine", "a launcher", "a metric", "a target")))
    for block in blocks:
        add(block, folder)
    add_objective(source / "sparring" / "objectives")
    zygote = Zygote(source)
    yield zygote
    zygote.close()


def add(block: str, folder: Path) -> None:
    """Its first line has the file, and after a comma where in it."""
    name, _, where = block.splitlines()[0].removeprefix("# ").partition(", ")
    file = folder / name
    before = file.read_text(encoding="utf-8") if where else ""
    value = block.splitlines()[1]
    owner, _, wanted = where.rpartition(" ")[2].rpartition(".")  # `TABLE`, `Name` or `Class.option`
    if where.startswith("one more entry"):
        above, table, below = before.partition(f"\n{wanted} = {{")
        entries, end, rest = below.partition(END_OF_TABLE)
        assert table and end
        changed = f"{above}{table}{entries}\n        {value},{end}{rest}"
    elif where.startswith("one more value"):
        above, head, body = before.partition(f"\nclass {owner}(") if owner else ("", "", before)
        body, count = re.subn(rf"(\b{wanted}(?: =|:) Literal\[[^\]]*)\]", rf"\1, {value}]", body)
        assert count == 1
        changed = above + head + body
    else:
        changed = before + block
    file.write_text(changed, encoding="utf-8")


def add_objective(objectives: Path) -> None:
    """The two files of the page."""
    (objectives / "ipo.py").write_text(f"{FILE}\n\n{CLASS}", encoding="utf-8")
    table = (objectives / "__init__.py").read_text(encoding="utf-8")
    known = re.search(r"^KINDS.*= \((.*)\)$", table, re.MULTILINE)[1]
    imported = f"from sparring.objectives.ipo import Ipo\n{table.replace(known, f'{known}, Ipo')}"
    (objectives / "__init__.py").write_text(imported, encoding="utf-8")


def small_game(folder: Path, extended: Zygote, **sections: Any) -> Game:
    return Game(folder / "game", extended, {**SMALL, **sections})


def test_an_engine(extended: Zygote, tmp_path: Path) -> None:
    game = small_game(tmp_path, extended, sampling={**TINY["sampling"], "engine": "plain"})
    played = game.run()
    assert played.code == 0, played.err
    facts = game.json("iterations/000/generate/done.json")["facts"]
    assert facts["replies"] == 48 and facts["logp_check"]["mean"] < 1e-5
    refused = game.run("run_dir=other", "sampling.top_p=0.5")
    assert refused.code == 2 and "sampling.top_p" in refused.err and "Traceback" not in refused.err


def test_a_target(extended: Zygote, tmp_path: Path) -> None:
    game = small_game(
        tmp_path,
        extended,
        target={"kind": "shortest", "checker": "even.py:even"},
        objective={"loss": "sft"},
        evaluate={"metric": "nll_per_token"},
        sampling={**TINY["sampling"], "temperature": 2.0, "max_new_tokens": 60},  # some end their turn, and can win
    )
    (game.folder / "even.py").write_text(EVEN, encoding="utf-8")
    for arguments in (["run", "recipe.yaml"], ["status", "run"], ["report", "run"]):
        done = game.command(*arguments)
        assert done.code == 0, done.err
    counts = game.json("iterations/000/train/done.json")["facts"]["counts"]
    assert counts["winners"] <= counts["prompts"] == 24 and counts["human_wins"] + counts.get("decided", 0) <= 24


def test_a_metric(extended: Zygote, tmp_path: Path) -> None:
    game = small_game(tmp_path, extended, evaluate={"metric": "repeated_bigrams"}, report=True)
    played = game.run()
    assert played.code == 0, played.err
    summary = game.json("summary.json")
    scores = [entry["scores"]["repeated_bigrams"] for entry in (summary["start"], *summary["iterations"])]
    assert [score["n"] for score in scores] == [8, 8] and all(0 <= score["value"] <= 1 for score in scores)
    assert summary["best"]["metric"] == "repeated_bigrams" and not scores[0]["higher_is_better"]
    compared = game.command("compare", "run", "--metric", "repeated_bigrams", "--json", "run/compared.json")
    assert compared.code == 0, compared.err
    assert [row["scores"]["repeated_bigrams"]["value"] for row in game.json("compared.json")["players"]] == [s["value"] for s in scores]


def test_a_launcher(extended: Zygote, tmp_path: Path) -> None:
    game = small_game(tmp_path, extended, train__micro_batch_tokens=60)
    played = game.run()
    assert played.code == 0, played.err
    again = "iterations/000/score"
    shutil.rmtree(game.root / again)
    launcher = ["launcher.kind=torchrun", "launcher.processes=2", "launcher.cpu=true"]
    launched = game.run(*launcher)
    assert launched.code == 0, launched.err
    assert "torchrun" in (game.root / "launch.yaml").read_text(encoding="utf-8"), "what the ranks were given"
    assert game.json(f"{again}/done.json")["facts"]["ranks"] == 2
    refused = game.run("run_dir=other", *launcher, "launcher.machines=2", "launcher.main_process_ip=127.0.0.1")
    assert refused.code == 2 and "on one machine" in refused.err, refused.err


def test_an_objective(extended: Zygote, tmp_path: Path) -> None:
    game = small_game(tmp_path, extended, objective={"loss": "ipo", "beta": BETA}, data__held_out=4)
    write_rows(game.folder / "rows.jsonl", rows(12))
    played = game.run()
    assert played.code == 0, played.err
    assert first_step(game.root)["loss"] == pytest.approx(AT_START, rel=1e-12)
    helped = game.command("run", "--help")
    assert "`ipo` brings every margin" in " ".join(helped.out.split())
