"""`sparring grade`: kept replies, their grades and new ones."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Game
from rich.console import Console
from zygote import Result, Zygote

from sparring.checkers.grades import Grade
from sparring.data.records import Conversation, Example
from sparring.grading.grade import EXAMPLES, GradingOutcome, ReplyBatch, StoredReply, agreement, examples_of, failures_of, print_grades
from sparring.targets.select import HUMAN

GRADED = {
    "iterations": 1,
    "evaluate": {"answer_pattern": "[0-9]+$", "samples": 2, "greedy": True},
    "target": {"kind": "verified", "checker": "number"},
    "sft__epochs": 8,
}


@pytest.fixture(scope="module")
def graded_game(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A finished game whose replies were graded, for tests that only read it."""
    game = Game(tmp_path_factory.mktemp("graded") / "game", zygote, GRADED)
    return game.play()


def graded(game: Game, *args: str) -> tuple[Result, dict[str, Any]]:
    """What the command prints and writes; and that it changes nothing in the run."""
    before = contents(game.root)
    result = game.command("grade", "run", "--json", "graded.json", *args)
    assert result.code == 0, result.err
    assert contents(game.root) == before
    return result, json.loads((game.folder / "graded.json").read_text(encoding="utf-8"))


def contents(root: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def by_stage(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {batch["stage"]: batch for batch in found["replies_of"]}


STAGES = ["start/measure", "iterations/000/generate", "iterations/000/measure", "continued-sft/measure"]


def test_the_kept_grades_give_the_scores_of_the_run(graded_game: Game) -> None:
    result, found = graded(graded_game)
    batches = by_stage(found)
    assert list(batches) == STAGES and found["checker"] is None and found["agreement"] is None
    for stage in STAGES:
        if stage.endswith("/measure"):
            scores = graded_game.json(stage.replace("measure", "evaluate/scores.json"))
            assert all(scores[name] == score for name, score in batches[stage]["scores"].items())
            assert {"exact_match", "exact_match_greedy", "pass_at_2", "maj_at_2"} <= set(batches[stage]["scores"])
    assert (
        batches["iterations/000/generate"]["scores"]["exact_match"]
        == graded_game.json("iterations/000/grade/done.json")["facts"]["rates"]["pass_rate"]
    )
    assert "iteration 0, training prompts" in result.out and "as the run graded them" in result.out
    assert found["examples"]["passed"] and found["examples"]["failed"], "both are there to be read"


def test_the_same_checker_anew_says_the_same(graded_game: Game) -> None:
    result, found = graded(graded_game, "--checker", "number")
    assert found["checker"] == {"kind": "number", "answer_pattern": "[0-9]+$", "tolerance": 0.0}
    assert [batch["scores"] for batch in found["replies_of"]] == [batch["kept_scores"] for batch in found["replies_of"]]
    counts = {(row["kept_passes"], row["passes"]): row["replies"] for row in found["agreement"]}
    assert counts[True, False] == counts[False, True] == 0
    assert counts[True, True] + counts[False, False] == sum(batch["replies"] for batch in found["replies_of"])
    assert "they differ on 0" in " ".join(result.out.split())


def test_a_pattern_alone_is_for_the_checker_of_the_run(graded_game: Game) -> None:
    _, found = graded(graded_game, "--pattern", "never in any reply")
    assert found["checker"] == {"kind": "number", "answer_pattern": "never in any reply", "tolerance": 0.0}
    assert all(batch["without_answer"] == batch["replies"] for batch in found["replies_of"])
    assert graded(graded_game, "--pattern", "")[1]["checker"]["answer_pattern"] is None


def test_replies_of_a_game_that_graded_none_of_them(played: Game) -> None:
    """Its training replies are token ids alone. A function that passes everything passes what was not cut, as training replies must end."""
    (played.folder / "all.py").write_text("def right(completions): return [bool(c[0]['content'] or True) for c in completions]")
    result, found = graded(played, "--checker", "all.py:right", "--iteration", "1")
    training, held_out = found["replies_of"]
    replies = [row for file in (played.root / "iterations/001/generate").glob("shard-*") for row in pq.read_table(file).to_pylist()]
    ended = sum(row["finish_reason"] == "stop" for row in replies) / len(replies)
    assert (training["stage"], training["replies"], training["prompts"]) == ("iterations/001/generate", 48, 24)
    assert training["scores"]["exact_match"]["value"] == pytest.approx(ended) and training["kept_scores"] == {}
    assert held_out["scores"]["exact_match"]["value"] == 1.0
    assert "all.py:right (sha256 " in result.out


def test_kept_grades_of_a_game_of_human_winners_are_those_of_its_pattern(played: Game) -> None:
    _, found = graded(played)
    assert list(by_stage(found)) == ["start/measure", "iterations/000/measure", "iterations/001/measure", "continued-sft/measure"]
    of_run = played.json("iterations/001/evaluate/scores.json")["exact_match"]
    assert by_stage(found)["iterations/001/measure"]["scores"]["exact_match"] == of_run


def test_a_limit_takes_the_same_prompts_of_every_iteration(played: Game) -> None:
    _, found = graded(played, "--checker", "number", "--limit", "5")
    assert {batch["prompts"] for batch in found["replies_of"]} == {5}
    assert {batch["replies"] for batch in found["replies_of"] if not batch["held_out"]} == {10}


def test_a_function_that_fails_is_counted_and_shown(graded_game: Game) -> None:
    """On every text of an even length, the empty one included."""
    (graded_game.folder / "bad.py").write_text("def f(completions): return [1 / (len(c[0]['content']) % 2) for c in completions]")
    result, found = graded(graded_game, "--checker", "bad.py:f", "--iteration", "0")
    files = [*(graded_game.root / "iterations/000/grade").glob("shard-*"), graded_game.root / "iterations/000/evaluate/grades.parquet"]
    texts = [row["text"] for file in files for row in pq.read_table(file).to_pylist() if row["replica"] != HUMAN]
    even = sum(len(text) % 2 == 0 for text in texts)
    assert [(row["replies"], row["reason"]) for row in found["failures"]] == [(even, "raised ZeroDivisionError: division by zero")]
    assert sum(batch["failures"] for batch in found["replies_of"]) == sum(batch["without_score"] for batch in found["replies_of"]) == even
    assert f"{even} of {len(texts)} replies could not be graded. A run stops if more than 5% cannot be graded." in result.out


def test_a_function_that_fails_on_everything_is_given_up(graded_game: Game) -> None:
    (graded_game.folder / "none.py").write_text("def f(completions): return [1 / 0 for _ in completions]")
    result = graded_game.command("grade", "run", "--checker", "none.py:f")
    assert result.code == 2 and "--checker (none.py:f)" in result.err and "ZeroDivisionError" in result.err


def test_a_game_under_way_is_graded_as_far_as_it_is(copy: Game) -> None:
    for part in ("score", "train", "measure", "evaluate"):
        shutil.rmtree(copy.root / "iterations/001" / part)
    shutil.rmtree(copy.root / "continued-sft")
    (copy.root / "summary.json").unlink()
    _, found = graded(copy, "--checker", "number")
    assert list(by_stage(found))[-1] == "iterations/001/generate"


def test_nothing_was_graded_and_nothing_sampled(copy: Game) -> None:
    for evaluated in copy.root.rglob("evaluate"):
        shutil.rmtree(evaluated)
    result = copy.command("grade", "run")
    assert result.code == 2 and "were not graded" in result.err and "--checker number" in result.err
    for measured in [*copy.root.rglob("measure"), *copy.root.rglob("generate")]:
        shutil.rmtree(measured)
    assert "has sampled nothing yet" in copy.command("grade", "run", "--checker", "number").err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--checker", "nubmer"], "--checker: there is no checker 'nubmer'\n  -> did you mean number?"),
        (["--checker", "random"], "--checker: random shuffles"),
        (["--checker", "missing.py:f"], "--checker: the file missing.py does not exist"),
        (["--checker", "exact", "--pattern", ""], "--checker: exact needs --pattern"),
        (["--pattern", "("], "--pattern '(' is not a regular expression"),
        (["--iteration", "7"], "--iteration: this run has no replies of iteration 7\n  -> it has 0, 1"),
        (["--json", "nowhere/x.json"], "--json (nowhere/x.json): the folder does not exist"),
    ],
)
def test_bad_options(played: Game, args: list[str], said: str) -> None:
    result = played.command("grade", "run", *args)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err and result.out == ""


def test_no_run_and_a_changed_one(copy: Game) -> None:
    assert "not a run directory" in copy.command("grade", "nowhere").err
    shard = next((copy.root / "iterations/000/generate").glob("shard-*"))
    shard.write_bytes(b"x")
    result = copy.command("grade", "run", "--checker", "number")
    assert result.code == 2 and "was changed after the stage had finished" in result.err


# ---------------------------------------------------------------------------------------------- what grades say


def batch(*replies: tuple[str, str], is_held_out: bool = False, must_end: bool = True, kept: Grade | None = None) -> ReplyBatch:
    """One prompt with (text, finish reason) of its replies."""
    example = Example("r", Conversation(({"role": "user", "content": "Why?"},), "so"), (1,), (2,))
    said = tuple(StoredReply("r", n, text, reason, kept, None) for n, (text, reason) in enumerate(replies))
    stage = "iterations/000/measure" if is_held_out else "iterations/000/generate"
    return ReplyBatch(stage, is_held_out, (example,), {"r": said}, must_end, 0.5, kept_answers=False, reads_answers=False)


def with_grades(one: ReplyBatch, *grades: Grade) -> ReplyBatch:
    said = tuple(replace(stored, grade=grade) for stored, grade in zip(one.replies, grades, strict=True))
    return replace(one, by_row_id={"r": said})


def with_scores(one: ReplyBatch, *scores: float | None) -> ReplyBatch:
    return with_grades(one, *(Grade(score, None, "by hand", failed=score is None) for score in scores))


def test_what_passes() -> None:
    whole, cut = ("a", "stop"), ("b", "length")
    one = with_scores(batch(whole, cut, whole, whole), 0.5, 1.0, 0.4, None)
    assert [one.passed(said, said.grade) for said in one.replies] == [True, False, False, None]
    assert one.scores()["exact_match"]["value"] == 0.25
    lenient = with_scores(batch(whole, cut, must_end=False), 0.0, 1.0)
    assert lenient.scores()["exact_match"]["value"] == 0.5
    assert with_scores(batch(whole), None).scores() == {}, "no score is no pass rate of 0"


def test_disagreements_count_what_both_score() -> None:
    texts = [(str(n), "stop") for n in range(8)]
    one = with_scores(batch(*texts, kept=Grade(1.0, None, "")), 1, 1, 0, 0, 0, 0, 0, None)
    unknown = with_scores(batch(*texts), *[1.0] * 8)
    found = agreement([one, unknown])
    assert dict(found.counts) == {(True, True): 2, (True, False): 5} and found.differ == 5 and found.replies == 7
    shown = [example.stored.text for example in found.examples[True, False]]
    assert len(set(shown)) == EXAMPLES and set(shown) <= set("23456") and found.examples[False, True] == []


def test_equal_replies_are_shown_once() -> None:
    one = with_scores(batch(*[("same", "stop")] * 6), *[1.0] * 6)
    assert [example.stored.text for example in examples_of([one], True)] == ["same"] and examples_of([one], False) == []


def test_failures_by_reason_the_frequent_first() -> None:
    one = batch(*[(str(n), "stop") for n in range(5)])
    reasons = ["rare", "often", "often", None, "often"]
    found = failures_of([with_grades(one, *(Grade(None, None, why or "", failed=why is not None) for why in reasons))])
    assert [(count, example.stored.text, example.grade.reason) for count, example in found] == [(3, "1", "often"), (1, "0", "rare")]


def test_words_of_models_cannot_draw_on_the_terminal() -> None:
    one = with_scores(batch(("\x1b[31m[bold]red[/bold]\x07" + "x" * 2000 + " #### 5", "stop")), 1.0)
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    print_grades(GradingOutcome([one], None), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in printed and "\x07" not in printed and "[31m[bold]red[/bold]" in printed
    assert "#### 5" in printed and len(printed) < 4000, "the beginning and the end, where answers stand"
