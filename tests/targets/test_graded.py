"""A table of grades as candidates: what is read from the files of a played game."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Game

from sparring.checkers.make import asked_of, open_checker
from sparring.config import load_recipe
from sparring.data.prepare import read_played
from sparring.data.records import Reply
from sparring.data.tables import read_rows
from sparring.rundir import RunDir
from sparring.stages.context import RunContext
from sparring.stages.grade import grading
from sparring.targets.select import HUMAN, candidates_of


def test_candidates_of_some_prompts_are_those_of_all(majority_game: Game) -> None:
    iteration = majority_game.root / "iterations/001"
    everybody = _candidates(majority_game, None)
    some = sorted(everybody)[:3]
    assert _candidates(majority_game, some) == {row_id: everybody[row_id] for row_id in everybody if row_id in some}
    assert len(everybody) == 28 + 24 and sum(one.human is not None for one in everybody.values()) == 28
    assert all(len(one.replies) == 4 for one in everybody.values())
    graded = [row for row in read_rows(iteration / "grade") if row["replica"] == HUMAN]
    assert {row["row_id"] for row in graded} == {row_id for row_id, one in everybody.items() if one.human is not None}


def test_human_replies_that_take_no_part_are_not_graded_with_the_votes(
    majority_game: Game, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tolerance they could decide which answers vote together."""
    monkeypatch.chdir(majority_game.root.parent)
    recipe = load_recipe(majority_game.root / "recipe.yaml")
    counts = []
    for human in ("fallback", "never"):
        own = recipe.model_copy(update={"target": recipe.target.model_copy(update={"human": human})})
        folder = tmp_path / human
        folder.mkdir()
        with open_checker(own, "number") as checker:
            grading(RunContext(own, RunDir(majority_game.root)), 1, checker)(folder)
        counts.append([sum((row["replica"] == HUMAN) is by_human for row in read_rows(folder)) for by_human in (True, False)])
    assert counts == [[28, 52 * 4], [0, 52 * 4]]


@pytest.mark.parametrize("with_human", [True, False])
def test_a_checker_is_told_which_replies_were_cut(majority_game: Game, with_human: bool) -> None:
    examples = read_played(majority_game.root / "data", None)
    replies = [Reply.of_row(row) for row in read_rows(majority_game.root / "iterations/001/generate")]
    cut = {(one.row_id, one.replica) for one in replies if one.finish_reason == "length"}
    assert cut and len(cut) < len(replies)
    asked = asked_of(examples, replies, lambda ids: " ".join(map(str, ids)), with_human)
    before = {one.row_id: int(with_human and one.has_reply) for one in examples}
    assert {(one.row_id, place - before[one.row_id]) for one in asked for place in one.cut} == cut
    assert all(len(one.replies) == 4 + before[one.row_id] for one in asked)


def _candidates(game: Game, row_ids: list[str] | None) -> dict:
    grades, replies = (read_rows(game.root / "iterations/001" / part, row_ids) for part in ("grade", "generate"))
    return candidates_of(grades, [Reply.of_row(row) for row in replies], read_played(game.root / "data", row_ids), 1.0)
