"""A table of grades as candidates: what is read from the files of a played game."""

from __future__ import annotations

from conftest import Game

from sparring.data.prepare import read_played
from sparring.data.records import Reply
from sparring.data.tables import read_rows
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


def _candidates(game: Game, row_ids: list[str] | None) -> dict:
    grades, replies = (read_rows(game.root / "iterations/001" / part, row_ids) for part in ("grade", "generate"))
    return candidates_of(grades, [Reply.of_row(row) for row in replies], read_played(game.root / "data", row_ids), 1.0)
