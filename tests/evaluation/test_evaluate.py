"""Scores and samples of three held-out rows, by hand; and the answer pattern against the human replies."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sparring.checkers.grades import Checker, Grade, GradingRequest
from sparring.checkers.make import held_out_checker
from sparring.config import Recipe, load_recipe
from sparring.data.records import Conversation, Example, Reply
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.evaluation.evaluate import GRADES, Grading, write_scores
from sparring.evaluation.measure import Measured
from sparring.evaluation.metrics import auc_score, wilson_interval
from sparring.stage_names import ITEMS, SAMPLES, SCORES
from sparring.stages.check import check_answers, check_human_replies

END = 0


class FakeChat:
    """A token is a character, and 0 ends the turn."""

    stop_ids = frozenset({END})

    def decode(self, ids: tuple[int, ...]) -> str:
        return "".join(chr(token) for token in ids if token != END)


def ids(text: str, end: bool = True) -> tuple[int, ...]:
    return tuple(map(ord, text)) + ((END,) if end else ())


def example(name: str, prompt: str, reply: str) -> Example:
    return Example(name, Conversation(({"role": "user", "content": prompt},), reply), ids(prompt), ids(reply))


HELD_OUT = [example("a", "2+2", "is 4"), example("b", "2+3", "is 5"), example("c", "2+4", "six")]
REPLIES = [Reply("a", 0, ids("it is 4"), "stop"), Reply("b", 0, ids(""), "stop"), Reply("c", 0, ids("9 or", end=False), "length")]
GREEDY = [Reply("a", 0, ids("4"), "stop"), Reply("b", 0, ids("is 5"), "stop"), Reply("c", 0, ids("six"), "stop")]
LOGPS: list[dict[str, Any]] = [
    {"row_id": "a", "real": -2.0, "own": -3.0},
    {"row_id": "b", "real": -4.0, "own": -0.5},
    {"row_id": "c", "real": -1.0, "own": -7.0},
]
DUELS = [(-2.0, -3.0, -3.0, -3.0), (-4.0, -4.0, -5.0, -5.0), (-1.0, -2.0, -9.0, -7.0)]  # (player, opponent) of the human, of the generated
NAMES = ("player_real", "opponent_real", "player_generated", "opponent_generated")
WITH_OPPONENT = [{**row, **dict(zip(NAMES, duel, strict=True))} for row, duel in zip(LOGPS, DUELS, strict=True)]


def recipe(pattern: str | None = "[0-9]", confidence: float = 0.95) -> Recipe:
    sections = {"evaluate": {"answer_pattern": pattern}, "stop": {"confidence": confidence}}
    return load_recipe({"run_dir": "run", "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}, **sections})


Evaluate = Callable[[Path, Measured], dict[str, int]]


def made(chosen: Recipe, held_out: list[Example]) -> Evaluate:
    with held_out_checker(chosen) as checker:
        grading = Grading.of(chosen, checker)
        return partial(write_scores, chat=FakeChat(), held_out=held_out, grading=grading, confidence=chosen.stop.confidence)


def scores_of(evaluate: Evaluate, measured: Measured) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        evaluate(Path(folder), measured)
        return json.loads((Path(folder) / SCORES).read_text())


def check(chosen: Recipe, held_out: list[Example]) -> None:
    with held_out_checker(chosen) as checker:
        check_answers(chosen, held_out, checker)


def evaluator(pattern: str | None = "[0-9]", confidence: float = 0.95) -> Evaluate:
    return made(recipe(pattern, confidence), HELD_OUT)


def test_the_scores_by_hand() -> None:
    scores = scores_of(evaluator(), Measured(REPLIES, GREEDY, WITH_OPPONENT))
    values = {name: score["value"] for name, score in scores.items()}
    assert values == pytest.approx(
        {
            "exact_match": 1 / 3,  # "4"; nothing; the human reply to c has no answer to match
            "exact_match_greedy": 2 / 3,
            "nll_per_token": 7 / 14,
            "nll_per_reply": 7 / 3,
            "duel_margin": (1 + 0 + 3) / 3,
            "duel_accuracy": (1 + 0.5 + 1) / 3,
            "real_logp": -7 / 3,
            "generated_logp": -10.5 / 3,
            "reply_tokens": (8 + 1 + 4) / 3,
            "human_reply_tokens": (5 + 5 + 4) / 3,
            "truncated": 1 / 3,
            "identical": 0,
            "empty": 1 / 3,
            "length_auc": auc_score([5, 5, 4], [8, 1, 4])["value"],
        }
    )
    assert all(score["n"] == 3 and score["stderr"] >= 0 for score in scores.values())
    better = {name: score["higher_is_better"] for name, score in scores.items()}
    assert better == {
        **dict.fromkeys(("exact_match", "exact_match_greedy", "duel_margin", "duel_accuracy", "real_logp"), True),
        **dict.fromkeys(("nll_per_token", "nll_per_reply", "truncated", "empty", "length_auc"), False),
        **dict.fromkeys(("generated_logp", "reply_tokens", "human_reply_tokens", "identical"), None),
    }


def test_the_human_reply_word_for_word_is_identical() -> None:
    scores = scores_of(evaluator(), Measured(GREEDY, None, LOGPS))
    assert scores["identical"]["value"] == pytest.approx(2 / 3) and scores["empty"]["value"] == scores["truncated"]["value"] == 0


def test_the_interval_has_the_recipes_confidence() -> None:
    for confidence in (0.8, 0.99):
        score = scores_of(evaluator(confidence=confidence), Measured(REPLIES, GREEDY, WITH_OPPONENT))["duel_accuracy"]
        assert (score["low"], score["high"]) == wilson_interval(2.5 / 3, 3, confidence)


def test_what_was_not_measured_has_no_score() -> None:
    full = scores_of(evaluator(), Measured(REPLIES, GREEDY, WITH_OPPONENT)).keys()
    assert full - scores_of(evaluator(), Measured(REPLIES, GREEDY, LOGPS)).keys() == {"duel_margin", "duel_accuracy"}
    assert full - scores_of(evaluator(), Measured(REPLIES, None, WITH_OPPONENT)).keys() == {"exact_match_greedy"}
    assert full - scores_of(evaluator(None), Measured(REPLIES, GREEDY, WITH_OPPONENT)).keys() == {"exact_match", "exact_match_greedy"}


def test_another_pattern_scores_the_same_replies_anew() -> None:
    measured = Measured(REPLIES, GREEDY, WITH_OPPONENT)
    one, other = scores_of(evaluator(), measured), scores_of(evaluator("^[a-z]+"), measured)
    assert {name for name in one if one[name] != other[name]} == {"exact_match"}
    assert other["exact_match"]["value"] == 0 and other["exact_match_greedy"]["value"] == pytest.approx(2 / 3), "is, six"


def test_the_files_hold_the_scores_and_every_sample(tmp_path: Path) -> None:
    measured = Measured(REPLIES, GREEDY, WITH_OPPONENT)
    evaluator()(tmp_path, measured)
    texts = ["row_id", "prompt", "human", "reply", "greedy", "finish_reason", "human_logp", "reply_logp"]
    numbers = ["human_tokens", "reply_tokens", "identical", "duel_margin", "exact_match", "exact_match_greedy"]
    rows = read_rows(tmp_path / SAMPLES)
    assert all(list(row) == texts + numbers for row in rows)
    items = read_rows(tmp_path / ITEMS)
    assert [row["row_id"] for row in items] == ["a", "b", "c"]
    assert [[row[name] for row in items] for name in ("exact_match", "nll_per_reply", "duel_margin", "truncated")] == [
        [1, 0, 0],
        [2, 4, 1],
        [1, 0, 3],
        [0, 0, 1],
    ]
    assert [list(row.values()) for row in rows] == [
        ["a", "2+2", "is 4", "it is 4", "4", "stop", -2.0, -3.0, 5, 8, False, 1.0, 1.0, 1.0],
        ["b", "2+3", "is 5", "", "is 5", "stop", -4.0, -0.5, 5, 1, False, 0.0, 0.0, 1.0],
        ["c", "2+4", "six", "9 or", "six", "length", -1.0, -7.0, 4, 4, False, 3.0, 0.0, 0.0],
    ]
    evaluator(None)(tmp_path, Measured(REPLIES, None, LOGPS))
    rows = read_rows(tmp_path / SAMPLES)
    assert [row["greedy"] for row in rows] == [None] * 3
    assert all(list(row) == texts + numbers[:3] for row in rows), "no duel without an opponent, no answers without a pattern"
    assert {path.name for path in tmp_path.iterdir()} == {SCORES, ITEMS, SAMPLES, GRADES}


class Failing(Checker):
    """A checker that cannot grade the replies to the first rows."""

    name, reads_answers = "rules.py:f", False

    def __init__(self, rows: int) -> None:
        self.rows, self.fingerprint = rows, {"rows": rows}

    def grade(self, asked: Sequence[GradingRequest]) -> list[list[Grade]]:
        fine, failed = Grade(1.0, None, "scored 1"), Grade(None, None, "raised ValueError", failed=True)
        return [[failed if int(one.row_id) < self.rows else fine for _ in one.replies] for one in asked]


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_failures_of_the_checker_are_a_fact_and_more_than_one_in_twenty_end_the_run(failures: int, tmp_path: Path) -> None:
    names = [str(n) for n in range(20)]
    replies = [Reply(name, 0, ids("4"), "stop") for name in names]
    measured = Measured(replies, None, [{"row_id": name, "real": -2.0, "own": -3.0} for name in names])
    rows = [example(name, "2+2", "is 4") for name in names]
    grading = Grading(None, Failing(failures), True, 1.0)
    evaluate = partial(write_scores, chat=FakeChat(), held_out=rows, grading=grading, confidence=0.95)
    if failures > 1:
        with pytest.raises(UserError, match="2 of 20 replies could not be graded, more than 5%"):
            evaluate(tmp_path, measured)
        return
    assert evaluate(tmp_path, measured) == {"failures": failures}
    assert json.loads((tmp_path / SCORES).read_text())["exact_match"]["value"] == 1 - failures / 20


def test_one_row_has_scores_too() -> None:
    one = made(recipe(), HELD_OUT[:1])
    scores = scores_of(one, Measured(REPLIES[:1], GREEDY[:1], WITH_OPPONENT[:1]))
    assert scores["nll_per_token"]["stderr"] is None and scores["exact_match"]["value"] == 1
    assert all(math.isfinite(score["value"]) for score in scores.values())


# --- the pattern against the human replies


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


@pytest.mark.parametrize("pattern", [None, ".+", "[a-z]+"])
def test_a_pattern_that_finds_every_answer_is_silent(pattern: str | None, warnings: pytest.LogCaptureFixture) -> None:
    check(recipe(pattern), HELD_OUT)
    assert not warnings.records


def test_a_pattern_that_misses_some_is_told_once(warnings: pytest.LogCaptureFixture) -> None:
    check(recipe("[0-9]"), HELD_OUT)
    (line,) = [record.message for record in warnings.records]
    assert line == "evaluate.answer_pattern finds no answer in 1 of 3 held-out human replies: they can never match"


@pytest.mark.parametrize("pattern", ["#### ([0-9]+)", "[0-9]*x?$", "^(.*)is"])
def test_a_pattern_that_never_finds_an_answer_is_refused(pattern: str, warnings: pytest.LogCaptureFixture) -> None:
    human = [example(name, "q", reply) for name, reply in (("a", "is a"), ("b", "is b"))]
    with pytest.raises(UserError) as caught:
        check(recipe(pattern), human)
    assert caught.value.where == "evaluate.answer_pattern" and f"{pattern!r} finds no answer in any of the 2" in caught.value.what
    assert "one of them is 'is a'" in caught.value.remedy and not warnings.records


def test_where_answers_have_a_column_that_is_what_is_told(warnings: pytest.LogCaptureFixture) -> None:
    base = {"run_dir": "run", "model": {"path": "builtin:tiny"}, "target": {"kind": "verified", "checker": "number"}}
    chosen = load_recipe({**base, "data": {"path": "builtin:tasks", "answer": "gold"}})

    def check_with(*answers: str | None) -> None:
        rows = [replace(one, conversation=replace(one.conversation, answer=a)) for one, a in zip(HELD_OUT, answers, strict=True)]
        check(chosen, rows)

    with pytest.raises(UserError) as caught:
        check_with("n/a", "n/a", "n/a")
    assert "finds no answer in any of the 3 held-out rows (data.answer 'gold')" in caught.value.what
    assert caught.value.remedy == "one of them is 'n/a'"
    check_with("4", None, "n/a")
    (line,) = [record.message for record in warnings.records]
    assert line == "target.checker number finds no answer in 1 of 3 held-out rows (data.answer 'gold'): they can never match"


@pytest.mark.parametrize(("pattern", "passes"), [("#### (.+)", False), ("is ([0-9])", True), (None, True)])
def test_a_checker_that_passes_no_human_reply_is_told(pattern: str | None, passes: bool, warnings: pytest.LogCaptureFixture) -> None:
    """Where answers have a column, the right ones are known although the pattern finds nothing in any reply."""
    base = {"run_dir": "run", "model": {"path": "builtin:tiny"}, "target": {"kind": "verified", "checker": "number"}}
    chosen = load_recipe({**base, "data": {"path": "builtin:tasks", "answer": "gold"}, "evaluate": {"answer_pattern": pattern}})
    rows = [replace(one, conversation=replace(one.conversation, answer=a)) for one, a in zip(HELD_OUT, ("4", "5", "6"), strict=True)]
    check(chosen, rows)
    assert not warnings.records
    with held_out_checker(chosen) as checker:
        check_human_replies(chosen, rows, checker)
    told = [record.message for record in warnings.records]
    assert len(told) == (not passes)
    if not passes:
        assert told[0].startswith("target.checker: none of the first 3 held-out human replies passes (the first one: no answer found)")
