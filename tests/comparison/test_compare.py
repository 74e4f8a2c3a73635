"""`sparring compare` on games that were played: numbers against the runs' own, and everything that it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Game, rows, write_rows
from zygote import Zygote, working

from sparring.comparison.compare import _labels
from sparring.config import load_recipe
from sparring.cost import iterations_cost
from sparring.data.tables import read_rows
from sparring.rundir import RunDir


@pytest.fixture(scope="module")
def two(played: Game, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """The finished game as `run`, and a second one of another objective on the same rows as `other`."""
    game = Game(tmp_path_factory.mktemp("compare") / "game", zygote, {})
    shutil.copytree(played.root, game.root, symlinks=True)
    return game.play("run_dir=other", "objective.beta=0.1", "iterations=1", "controls=null")


@pytest.fixture(scope="module")
def found(two: Game) -> dict[str, Any]:
    result = two.command("compare", "run", "other", "--json", "c.json", "--markdown", "c.md", "--html", "c.html")
    assert result.code == 0 and "Traceback" not in result.err, result.err
    return {**json.loads((two.folder / "c.json").read_text()), "out": result.out}


def player(found: dict[str, Any], run: str, name: str) -> dict[str, Any]:
    return next(one for one in found["players"] if (one["run"], one["player"]) == (run, name))


def items(game: Game, stage: str) -> dict[str, dict[str, Any]]:
    return {row["row_id"]: row for row in read_rows(game.root / stage / "evaluate" / "items.parquet")}


def test_all_players_of_all_runs(found: dict[str, Any]) -> None:
    names = [(one["run"], one["player"]) for one in found["players"]]
    assert names == [("run", name) for name in ("start", "0", "1", "continued-sft")] + [("other", "start"), ("other", "0")]
    assert found["against"] == "run:start" and found["paired_over"] == "rows" and found["n"] == 8
    assert list(found["metrics"]) == ["exact_match", "nll_per_token"]
    assert all(one["scores"]["exact_match"]["difference"] is None for one in found["players"][:1])


def test_the_values_are_the_runs_own(found: dict[str, Any], two: Game) -> None:
    summary = two.json("summary.json")
    owners = {"start": summary["start"], "0": summary["iterations"][0], "1": summary["iterations"][1]}
    owners["continued-sft"] = summary["controls"][0]
    for name, owner in owners.items():
        for metric, score in player(found, "run", name)["scores"].items():
            assert score["value"] == pytest.approx(owner["scores"][metric]["value"], rel=1e-12)
            assert score["stderr"] == pytest.approx(owner["scores"][metric]["stderr"], rel=1e-9)


def test_the_difference_is_paired_by_row_id(found: dict[str, Any], two: Game) -> None:
    start, last = items(two, "start"), items(two, "iterations/001")
    gaps = [last[row]["nll_per_reply"] - start[row]["nll_per_reply"] for row in start]
    tokens = [start[row]["human_reply_tokens"] for row in start]
    difference = player(found, "run", "1")["scores"]["nll_per_token"]["difference"]
    assert difference["difference"] == pytest.approx(sum(gaps) / sum(tokens), rel=1e-12) and difference["test"] == "sign-flip"
    residual = np.array(gaps) - sum(gaps) / sum(tokens) * np.array(tokens)
    assert difference["stderr"] == pytest.approx(np.sqrt(residual.var(ddof=1) / 8) / np.mean(tokens), rel=1e-9)
    assert difference["low"] < difference["difference"] < difference["high"] and difference["p"] <= difference["p_holm"] <= 1
    same = player(found, "other", "start")["scores"]
    assert same["nll_per_token"]["difference"]["difference"] == 0 and same["nll_per_token"]["difference"]["p"] == 1
    assert same["exact_match"]["difference"]["test"] == "McNemar"


def test_compute_stands_beside_quality(found: dict[str, Any], two: Game) -> None:
    """Counted as the control's own budget is: continued SFT costs what the iterations do, to half a step."""
    start, control = (player(found, "run", name)["compute"] for name in ("start", "continued-sft"))
    last = player(found, "run", "1")["compute"]
    assert 0 < start["flops"] < player(found, "run", "0")["compute"]["flops"] < last["flops"]
    spent = iterations_cost(RunDir(two.root), load_recipe(two.root / "recipe.yaml"), 2)
    of_stages = two.json("summary.json")["stages"]
    keys = {"generate": "sampled_tokens", "score": "scored_tokens", "train": "trained_tokens"}
    assert spent.tokens == sum(of_stages[f"iterations/00{t}/{part}"][key] for t in (0, 1) for part, key in keys.items())
    assert last["tokens"] == start["tokens"] + spent.tokens
    weights = last["flops"] / 2 / (spent.forward_tokens + 3 * of_stages["sft"]["trained_tokens"])
    assert weights == pytest.approx(weights_of_tiny(), rel=1e-9)
    steps = two.json("continued-sft/train/done.json")["facts"]["steps"]
    step = 2 * weights * 3 * of_stages["continued-sft/train"]["trained_tokens"] / steps
    assert abs(control["flops"] - last["flops"]) < 0.8 * step


def weights_of_tiny() -> int:
    """All matrices of the tiny model: the embedding is the head too, norms are none."""
    hidden, inner, layers, vocabulary = 64, 128, 2, 258
    return layers * (hidden * (64 + 32 + 32 + 64) + 3 * hidden * inner) + vocabulary * hidden


def test_the_files_say_the_same(found: dict[str, Any], two: Game) -> None:
    text, page = ((two.folder / name).read_text() for name in ("c.md", "c.html"))
    assert text.count("| run: iteration 1 \\* |") == 2 and "other: iteration 0" in text
    assert (
        "iteration 1 *" in found["out"] and "difference from run: start (SFT)" in found["out"] and "Holm over all 10 tests" in found["out"]
    )
    value = f"{player(found, 'run', '0')['scores']['nll_per_token']['value']:.4f}"
    assert value in text and value in page and value in found["out"]
    assert page.count("<svg") == 2 and "NLL per token against compute" in page
    assert "not finished" not in found["out"]


def test_another_reference_turns_the_sign(two: Game, found: dict[str, Any]) -> None:
    for name, against in (("run:best", "run:1"), ("other:0", "other:0"), ("run:001", "run:1")):
        assert two.command("compare", "run", "other", "--against", name, "--json", "d.json").code == 0
        assert json.loads((two.folder / "d.json").read_text())["against"] == against
    assert two.command("compare", "run", "--against", "1", "--metric", "nll_per_reply", "--json", "d.json").code == 0
    turned = json.loads((two.folder / "d.json").read_text())
    assert list(turned["metrics"]) == ["nll_per_reply"]
    assert two.command("compare", "run", "--metric", "nll_per_reply", "--json", "e.json").code == 0
    straight = json.loads((two.folder / "e.json").read_text())
    gaps = [player(one, "run", name)["scores"]["nll_per_reply"]["difference"] for one, name in ((turned, "start"), (straight, "1"))]
    assert gaps[0]["difference"] == -gaps[1]["difference"] and gaps[0]["p"] == gaps[1]["p"]


def refused(game: Game, *args: str, words: tuple[str, ...]) -> None:
    result = game.command("compare", *args)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    for word in words:
        assert word in result.err, result.err


def test_what_it_does_not_know(two: Game) -> None:
    refused(two, "run", "nowhere", words=("not a run directory", "nowhere"))
    refused(two, "run", "run", words=("given twice",))
    refused(two, "run", "./other/../run", words=("given twice",))
    refused(two, "run", "other", "--against", "best", words=("'best' is not a player of the compared runs: run, other",))
    refused(two, "run", "--against", "run:7", words=("run has no player '7'", "it has start, 0, 1, continued-sft"))
    refused(two, "other", "run", "--metric", "exact_mach", words=("no metric 'exact_mach'", "did you mean exact_match?"))
    refused(two, "run", "--metric", "duel_accuracy", words=("each player's own opponent",))
    refused(two, "run", "--json", "no/where.json", words=("the folder does not exist", "--json"))


def test_a_metric_that_a_run_does_not_have(two: Game) -> None:
    for name, pattern in (("plain", "null"), ("pattern", "'[a-z] [0-9]+$'")):
        shutil.copytree(two.root, two.folder / name, symlinks=True)
        assert two.run(f"run_dir={name}", "iterations=1", "controls=null", f"evaluate.answer_pattern={pattern}").code == 0
    refused(two, "run", "plain", "--metric", "exact_match", words=("exact_match is not defined for plain", "no evaluate.answer_pattern"))
    refused(two, "run", "pattern", "--metric", "exact_match", words=("another evaluate.answer_pattern",))
    result = two.command("compare", "run", "plain", "pattern")
    assert result.code == 0 and "note: exact_match is not defined for plain" in result.out
    assert "note: exact_match finds its answers by another" in result.out and "NLL per token" in result.out


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (["runs/a", "elsewhere/b"], ["a", "b"]),
        (["runs/a/seed", "runs/b/seed"], ["a/seed", "b/seed"]),
        (["x/runs/a", "y/runs/a", "z"], ["x/runs/a", "y/runs/a", "z"]),
        (["/x/run", "/x/run"], ["/x/run", "/x/run"]),
    ],
)
def test_runs_are_called_by_as_little_of_their_paths_as_tells_them_apart(folders: list[str], labels: list[str]) -> None:
    assert _labels([Path(folder) for folder in folders]) == labels


def test_other_rows_are_refused(two: Game) -> None:
    write_rows(two.folder / "more.jsonl", rows(40))
    assert two.run("run_dir=rows", "data.path=more.jsonl", "data.held_out=10", "iterations=1", "controls=null").code == 0
    mine, theirs = (set(items_of(two.folder / name)) for name in ("run", "rows"))
    words = ("run was scored on 8 held-out rows", f"rows on 10, with {len(mine & theirs)} in both")
    lines = (f"only in rows ({len(theirs - mine)}): {sorted(theirs - mine)[0]}",)
    refused(two, "rows", "run", words=(lines[0], "the same data section"))
    refused(two, "run", "rows", words=(*words, *lines))


def items_of(root: Path) -> list[str]:
    return [row["row_id"] for row in read_rows(root / "start" / "evaluate" / "items.parquet")]


def test_a_run_that_is_still_going(two: Game) -> None:
    shutil.copytree(two.root, two.folder / "going", symlinks=True)
    killed = two.run("run_dir=going", "--restart-from", "iterations/001/train", sabotage=[working("iterations/001/train", 2)])
    assert killed.code < 0
    refused(two, "run", "going", words=("this run is not finished: 1 iteration scored", "--unfinished"))
    result = two.command("compare", "run", "going", "--unfinished", "--json", "g.json")
    assert result.code == 0 and result.out.count("(not finished)") == 4 and "note: going is not finished" in result.out
    names = [one["player"] for one in json.loads((two.folder / "g.json").read_text())["players"] if one["still_going"]]
    assert names == ["start", "0"]
    fresh = two.run("run_dir=fresh", sabotage=[working("sft", 0)])
    assert fresh.code < 0
    refused(two, "fresh", "--unfinished", words=("this run has no scores yet",))


def test_a_finished_run_that_is_played_on(two: Game) -> None:
    """Its summary still tells of the end that it had; its lock tells that more comes."""
    with RunDir(two.folder / "other").lock():
        refused(two, "run", "other", words=("other: this run is not finished", "--unfinished"))
    assert two.command("compare", "run", "other").code == 0


def test_scores_that_were_changed_or_are_of_an_older_version(two: Game) -> None:
    shutil.copytree(two.root, two.folder / "copy", symlinks=True)
    table = two.folder / "copy" / "iterations" / "000" / "evaluate" / "items.parquet"
    table.write_bytes(table.read_bytes() + b" ")
    refused(two, "copy", words=("items.parquet was changed after the stage had finished",))
    done = table.with_name("done.json")
    kept = json.loads(done.read_text())
    del kept["outputs"]["items.parquet"]
    table.unlink()
    done.write_text(json.dumps(kept))
    refused(two, "copy", words=("stored no values per row", "scores its replies again"))


def test_names_of_folders_cannot_spoil_the_page(two: Game) -> None:
    name = "a|b<script>"
    shutil.copytree(two.folder / "other", two.folder / name, symlinks=True)
    assert two.command("compare", "other", name, "--markdown", "x.md", "--html", "x.html").code == 0
    assert not re.search(r"<script>(?!\s*$)", (two.folder / "x.html").read_text().replace("<script></script>", ""))
    assert "a\\|b&lt;script>" in (two.folder / "x.md").read_text()
