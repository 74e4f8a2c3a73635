"""The report of games with a verified or majority target."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SUMS, TINY, Game
from made_run import make_run
from test_page import Tags

from sparring.config import Recipe, load_recipe
from sparring.data.tables import read_rows, write_table
from sparring.report.health import differences_from_paper, signs
from sparring.report.run_files import read_run
from sparring.report.run_page import LOST, WON, _notes, report_page, shown_prompts
from sparring.report.untrusted import visible
from sparring.rundir import read_json, write_json
from sparring.targets import majority, verified
from sparring.targets.builtin import checker_name, rule_of


@pytest.fixture(scope="module")
def pages(majority_game: Game, verified_game: Game) -> dict[str, str]:
    return {"majority_game": report_page(read_run(majority_game.root)), "verified_game": report_page(read_run(verified_game.root))}


def recipe_with(**target: Any) -> Recipe:
    data = {"path": "rows.jsonl"} if target.get("human") == "only" else SUMS["data"]
    return load_recipe({**TINY, **SUMS, "data": data, "target": target})


# ------------------------------------------------------------------------------------------------ the page


def test_the_page_says_who_won_and_draws_it(pages: dict[str, str], majority_game: Game) -> None:
    text = Tags(pages["majority_game"]).text
    assert "Who won: target majority" in text and "Answers are read and compared by the checker number" in text
    assert "24 of the prompts have no human reply" in text and "Prompts without replies" in text
    counts = majority_game.json("summary.json")["iterations"][1]["counts"]
    winners = pages["majority_game"].partition("Winners: outcome")[2]
    cells = re.search(r"iteration 1</th>(.*?)</tr>", winners, re.DOTALL)[1]
    shown = [int(cell) for cell in re.findall(r"<td>(\d+)</td>", cells)]
    assert shown[:3] == [counts["prompts"], counts["decided"], counts["human_wins"]] and counts["prompts"] == 2 * 52
    for title in ("Pass rate", "Vote share", "Distinct answers", "Several replies to a prompt"):
        assert f'aria-label="{title}. ' in pages["majority_game"], title
    assert "pass@1 (k=4)" in text and "winners from" in text and "prompts trained on" in text
    assert "human replies lost log-prob" not in text and "a fall is a warning sign" not in text


def test_likelihood_of_winners_has_no_pairs_and_no_margins(pages: dict[str, str]) -> None:
    text = Tags(pages["verified_game"]).text
    assert "The player is trained on the winners only" in text and "target.kind" in text
    assert not re.search(r'aria-label="(Margin|Change of log-prob)\.', pages["verified_game"]), "nothing is compared with anything"


def test_a_game_of_the_human_target_has_none_of_it(played: Game) -> None:
    text = Tags(report_page(read_run(played.root))).text
    assert not any(words in text for words in ("Who won", "Winners", "Graded", "without replies", "pass@"))


# ------------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize(("name", "t", "target"), [("majority_game", 1, majority), ("verified_game", 0, verified)])
def test_examples_are_winners_and_losers_of_the_target(name: str, t: int, target: Any, request: pytest.FixtureRequest) -> None:
    game: Game = request.getfixturevalue(name)
    shown = shown_prompts(read_run(game.root), t)
    graded = read_rows(game.root / f"iterations/{t:03d}/grade")
    assert 0 < len(shown) <= 8
    decided = [prompt for prompt in shown if prompt.heading == "decided"]
    assert decided == shown[: len(decided)], "decided ones come first"
    for prompt in decided:
        roles = [reply.role for reply in prompt.replies]
        assert WON in roles and LOST in roles and roles[-1] != WON
    for reply in (reply for prompt in shown for reply in prompt.replies if reply.by != "human"):
        own = [row for row in graded if visible(row["text"]) == reply.text and str(row["replica"]) == reply.by]
        assert any(("no answer" if row["answer"] is None else f"answer {row['answer']} ") in reply.facts + " " for row in own)
        if reply.role == WON:
            assert "cut at the limit" not in reply.facts
            assert target is majority or "score 1" in reply.facts


def test_prompts_without_a_human_reply_show_none(majority_game: Game) -> None:
    shown = shown_prompts(read_run(majority_game.root), 1)
    unanswered = {f"add {a} {b}" for a in range(6, 10) for b in range(6)}
    for prompt in shown:
        assert ("human" in [reply.by for reply in prompt.replies]) == (prompt.prompt not in unanswered)


def test_hostile_texts_stay_texts(majority_game: Game, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(majority_game.root, root, symlinks=True)
    (shard,) = (root / "iterations/001/grade").glob("shard-*.parquet")
    rows = read_rows(shard)
    for row in rows:
        row.update(text=f"<script>alert('{row['replica']}')</script>\u202e", reason="<img src=x onerror=alert(2)>")
        row["answer"] = row["answer"] and f"<b>{row['answer']}</b>"
    write_table(shard, {name: [row[name] for row in rows] for name in rows[0]})
    page = report_page(read_run(root))
    assert "&lt;script&gt;alert(" in page and "[U+202E]" in page and "&lt;img src=x" in page
    assert "<script>alert(" not in page and "<img src=x" not in page and "<b>" not in page


def test_a_run_that_lost_its_grades_or_replies_has_no_examples(majority_game: Game, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(majority_game.root, root, symlinks=True)
    shutil.rmtree(root / "iterations/001/generate")
    assert "Winners and losers of some prompts" not in report_page(read_run(root))


# ------------------------------------------------------------------------------------------------ words


def test_the_rule_in_words() -> None:
    told = " ".join(rule_of(recipe_with(kind="verified", checker="number", pass_score=0.5, human="only", max_winners=2)))
    assert "the checker number passes it with a score of 0.5 or more" in told and "Only the human reply wins" in told
    assert "A prompt has at most 2 winners and 4 losers" in told and "pairs of nearest length (objective.loss: logistic)" in told
    told = " ".join(rule_of(recipe_with(kind="majority", checker="number", human="mix", min_votes=0.7, weigh_votes=True)))
    assert (
        "70% of them or more" in told
        and "its answer" in told.lower()
        and "a prompt that is won by votes is weighed by their margin" in told
    )


def test_a_control_of_random_passes_is_called_one() -> None:
    recipe = recipe_with(kind="verified", checker="random", random_like="number")
    assert rule_of(recipe)[0].startswith("A control: the winners are chosen at random, as many as the checker number passes")


def test_a_checker_of_ones_own_is_named_without_its_folders(tmp_path: Path) -> None:
    recipe = recipe_with(kind="verified", checker=f"{tmp_path}/rules.py:check")
    assert checker_name(recipe.target) == "rules.py:check" and str(tmp_path) not in " ".join(rule_of(recipe))


def test_the_target_is_a_difference_from_the_paper() -> None:
    found = differences_from_paper(recipe_with(kind="majority", checker="number"))
    assert found["target.kind"] == ("majority", "human")
    assert "target.kind" not in differences_from_paper(load_recipe(TINY))


def test_human_replies_that_get_less_likely_are_a_fault_only_where_they_win(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    for entry, value in zip([run.summary["start"], *run.summary["iterations"]], (-10.0, -12.0, -14.0), strict=True):
        entry["scores"]["real_logp"]["value"] = value
    told = "The held-out human replies lost log-prob"
    assert sum(sign.what == told for sign in signs(run.summary, run.recipe)) == 2
    majority_recipe = recipe_with(kind="majority", checker="number")
    assert not any(sign.what == told for sign in signs(run.summary, majority_recipe))
    only = recipe_with(kind="verified", checker="number", human="only")
    assert sum(sign.what == told for sign in signs(run.summary, only)) == 2
    told_of = [" ".join(_notes(replace(run, recipe=recipe))) for recipe in (majority_recipe, only)]
    assert ["this alone is not a problem" in text for text in told_of] == [True, False]


@pytest.mark.parametrize(("target", "preferred"), [(None, "human replies"), ({"kind": "majority", "checker": "number"}, "winners")])
def test_what_should_have_become_likelier_is_named(tmp_path: Path, target: dict[str, Any] | None, preferred: str) -> None:
    run = read_run(make_run(tmp_path / "run"))
    done = run.root / "iterations/001/train/done.json"
    write_json(done, {**read_json(done), "facts": {"human_logp_warning_at_step": 3}})
    for entry in run.summary["iterations"]:
        entry["counts"]["duels"] = 7
    if target is not None:
        object.__setattr__(run, "recipe", recipe_with(**target))
    text = Tags(report_page(run)).text
    assert f"During training the margin grew while the {preferred} lost log-prob: iteration 1 by step 3. Lower train.lr" in text
    few = [sign.what for sign in signs(run.summary, run.recipe) if sign.what.startswith("Fewer")]
    assert few == [f"Fewer {'duels' if target is None else 'prompts to learn from'} than a batch of {run.recipe.train.batch_size}"] * 2
