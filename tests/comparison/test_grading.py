"""`sparring compare` of scores of answers: several replies to a prompt, checkers, and when two runs cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SUMS, TINY, Game
from zygote import Zygote

from sparring.comparison.pairing import other_answers, other_grading, right_answers
from sparring.comparison.statistics import Values, over_rows
from sparring.config import Recipe, load_recipe
from sparring.data.prepare import write_examples
from sparring.data.records import Conversation, Example
from sparring.data.tables import read_rows
from sparring.rundir import RunDir, write_json


@pytest.fixture(scope="module")
def pair(majority_game: Game, verified_game: Game, tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """The majority game as `run`, the verified one as `verified`: the same held-out rows, the same checker."""
    game = Game(tmp_path_factory.mktemp("graded") / "game", zygote, {})
    shutil.copytree(majority_game.root, game.root, symlinks=True)
    shutil.copytree(verified_game.root, game.folder / "verified", symlinks=True)
    return game


def compared(game: Game, *args: str) -> dict[str, Any]:
    result = game.command("compare", *args, "--json", "c.json")
    assert result.code == 0, result.err
    return json.loads((game.folder / "c.json").read_text())


def test_shares_of_replies_are_compared_by_sign_flips(pair: Game) -> None:
    found = compared(
        pair, "run", "verified", "--metric", "exact_match", "--metric", "pass_at_4", "--metric", "maj_at_4", "--metric", "vote_share"
    )
    assert list(found["metrics"]) == ["exact_match", "pass_at_4", "maj_at_4", "vote_share"]
    assert [found["metrics"][name]["higher_is_better"] for name in found["metrics"]] == [True, True, True, None]
    tables = [read_rows(pair.root / owner / "evaluate/items.parquet") for owner in ("start", "iterations/001")]
    start, last = ({row["row_id"]: row for row in table} for table in tables)
    scores = next(one for one in found["players"] if (one["run"], one["player"]) == ("run", "1"))["scores"]
    for name in found["metrics"]:
        gap = np.mean([last[row][name] - start[row][name] for row in start])
        assert scores[name]["difference"]["difference"] == pytest.approx(gap)
    assert any(0 < row["exact_match"] < 1 for row in tables[0])
    assert scores["exact_match"]["difference"]["test"] == scores["vote_share"]["difference"]["test"] == "sign-flip"
    assert found["notes"] == [], "graded alike, and as often"


def test_mcnemar_needs_zeros_and_ones() -> None:
    whole, shares = Values.of_mean([1.0, 0.0, 0.0, 1.0]), Values.of_mean([1.0, 0.25, 0.0, 1.0])
    assert over_rows(whole, whole, 0.95, 0).test == "McNemar"
    assert over_rows(whole, shares, 0.95, 0).test == over_rows(shares, whole, 0.95, 0).test == "sign-flip"


def test_a_metric_of_more_replies_than_there_are(pair: Game) -> None:
    result = pair.command("compare", "run", "--metric", "pass_at_8")
    assert result.code == 2 and "no metric 'pass_at_8'" in result.err and "did you mean pass_at_4?" in result.err


# --- two recipes, without their games


def recipe(target: dict[str, Any] | None, **changes: Any) -> Recipe:
    evaluate = {"evaluate": {"samples": 4, "answer_pattern": "[0-9]+$", **changes}}
    made = {**TINY, **{name: value for name, value in SUMS.items() if name != "target"}, **evaluate}
    if target is None:
        made["data"] = {"path": "rows.jsonl", "held_out": 8}
    return load_recipe({**made, **({"target": target} if target else {})})


def run(root: Path, name: str, found: Recipe, checker: dict[str, Any] | None, **inputs: Any) -> tuple[RunDir, Recipe, str]:
    """A run of which only the evaluation's inputs are there. checker: None for those of a version without checkers."""
    stage = root / name / "start/evaluate"
    stage.mkdir(parents=True)
    own = inputs if checker is None else {"checker": checker, "pass_score": 1.0, **inputs}
    write_json(stage / "done.json", {"inputs": own, "outputs": {}, "facts": {}, "stamps": {}})
    return RunDir(root / name), found, name


NUMBER = {"kind": "number", "answer_pattern": None, "tolerance": 0.0}
EXACT = {"kind": "exact", "answer_pattern": "[0-9]+$"}
OWN = {"kind": "own", "path": "/a/rules.py", "function": "check", "sha256": "abc", "answer_pattern": None}
VERIFIED = {"kind": "verified", "checker": "number"}


def test_other_checkers_are_told_apart(tmp_path: Path) -> None:
    number = run(tmp_path, "number", recipe(VERIFIED), NUMBER)
    loose = run(tmp_path, "loose", recipe({**VERIFIED, "tolerance": 0.5}), {**NUMBER, "tolerance": 0.5})
    lenient = run(tmp_path, "lenient", recipe({**VERIFIED, "pass_score": 0.5}), NUMBER, pass_score=0.5)
    for other in (loose, lenient):
        for metric in ("exact_match", "exact_match_greedy", "pass_at_4", "maj_at_4", "vote_share"):
            assert f"is graded by another checker in number than in {other[2]}" in other_grading(metric, number, other)
        assert other_grading("nll_per_token", number, other) is None and other_grading("reply_tokens", number, other) is None
    assert other_grading("exact_match", number, number) is None


def answered(root: Path, target: dict[str, Any], *answers: str | None) -> dict[str, str | None]:
    """The right answers of a run with these in the column `data.answer`; the human reply to row r0 is `so 0`."""
    (root / "data").mkdir(parents=True)
    asked = ({"role": "user", "content": "?"},)
    rows = [Example(f"r{n}", Conversation(asked, f"so {n}", answer, {}), (1,), (2,)) for n, answer in enumerate(answers)]
    write_examples(root / "data/held_out.parquet", rows)
    return right_answers(RunDir(root), recipe(target, answer_pattern="[0-9]+"))


def test_other_right_answers_to_the_same_rows_are_told_apart(tmp_path: Path) -> None:
    read, same = answered(tmp_path / "read", VERIFIED, None, None), answered(tmp_path / "same", VERIFIED, "0.0", "it is 1")
    other = answered(tmp_path / "other", VERIFIED, "0", "5")
    for metric in ("exact_match", "exact_match_greedy", "pass_at_4", "maj_at_4"):
        assert other_answers(metric, read, same, "in a than in b") is None
        told = other_answers(metric, read, other, "in a than in b")
        assert told == "has other right answers in a than in b, to 1 of the held-out rows (data.answer)"
    assert other_answers("vote_share", read, other, "") is None and other_answers("nll_per_token", read, other, "") is None


def test_right_answers_of_a_function_are_those_that_the_rows_give(tmp_path: Path) -> None:
    own = {"kind": "verified", "checker": "/a/rules.py:check"}
    given, none = answered(tmp_path / "given", own, "x", None), answered(tmp_path / "none", own, None, None)
    assert given == {"r0": "x"} and other_answers("exact_match", given, none, "") is None
    assert "to 1 of the" in (other_answers("exact_match", given, {"r0": "y", "r1": "z"}, "") or "")
    assert right_answers(RunDir(tmp_path / "no data"), recipe(VERIFIED)) == {}


def test_a_function_is_known_by_its_text(tmp_path: Path) -> None:
    target = {"kind": "verified", "checker": "/a/rules.py:check"}
    here, there = run(tmp_path, "here", recipe(target), OWN), run(tmp_path, "there", recipe(target), {**OWN, "path": "/b/rules.py"})
    changed = run(tmp_path, "changed", recipe(target), {**OWN, "sha256": "def"})
    assert other_grading("exact_match", here, there) is None
    assert "rules.py:check and rules.py:check, by their contents" in other_grading("exact_match", here, changed)
    assert "/a/" not in other_grading("exact_match", here, changed)


def test_a_run_from_before_there_were_checkers_is_one_by_its_pattern(tmp_path: Path) -> None:
    old, new = run(tmp_path, "old", recipe(None), None), run(tmp_path, "new", recipe(None), EXACT)
    other = run(tmp_path, "other", recipe(None, answer_pattern="[a-z]+"), {**EXACT, "answer_pattern": "[a-z]+"})
    assert other_grading("exact_match", old, new) is None
    assert other_grading("exact_match", old, other) == "finds its answers by another evaluate.answer_pattern in old than in other"


def test_a_cut_reply_passes_where_no_checker_is_named(tmp_path: Path) -> None:
    plain, strict = run(tmp_path, "plain", recipe(None), EXACT), run(tmp_path, "strict", recipe({**VERIFIED, "checker": "exact"}), EXACT)
    for pair in ((plain, strict), (strict, plain)):
        assert "cut at the limit in plain and not in strict" in other_grading("exact_match", *pair)


def test_what_all_replies_say_depends_on_their_number(tmp_path: Path) -> None:
    four, eight = run(tmp_path, "four", recipe(VERIFIED), NUMBER), run(tmp_path, "eight", recipe(VERIFIED, samples=8), NUMBER)
    assert other_grading("vote_share", four, eight) == "uses another evaluate.samples in four than in eight (4 and 8)"
    assert other_grading("exact_match", four, eight) is None and other_grading("pass_at_4", four, eight) is None
