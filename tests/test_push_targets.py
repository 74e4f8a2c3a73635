"""`sparring push` of games with verified or majority targets: preference rows are pairs of winner and loser, and cards say who won."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Game
from huggingface_hub import DatasetCard, ModelCard

from sparring.config import load_recipe
from sparring.data.tables import read_rows
from sparring.publish.cards import About, how_learned, model_card, pairs_body
from sparring.publish.names import public
from sparring.publish.pairs import splits

UNANSWERED = {f"add {a} {b}" for a in range(6, 10) for b in range(6)}


@pytest.fixture(scope="module")
def folder(majority_game: Game) -> Path:
    return pushed(majority_game)


def pushed(game: Game) -> Path:
    """Once: a worker may come back to this module after others."""
    if not (game.folder / "pushed").exists():
        result = game.command("push", "run", "--repo", "me/model", "--dataset-repo", "me/replies", "--dry-run", "pushed")
        assert result.code == 0, result.err
    return game.folder / "pushed"


def rows_of(folder: Path, shape: str, t: int) -> list[dict[str, Any]]:
    return read_rows(folder / f"data/{shape}/iteration_{t}.parquet")


def asked(row: dict[str, Any]) -> str:
    return row["prompt"][0]["content"]


def said(row: dict[str, Any], side: str) -> str:
    (turn,) = row[side]
    assert turn["role"] == "assistant"
    return turn["content"]


# --- the data


def test_the_rows_are_the_pairs_that_the_game_counted(folder: Path, majority_game: Game) -> None:
    """The window of iteration 0 holds its own replies alone."""
    assert len(rows_of(folder, "preference", 0)) == majority_game.json("summary.json")["iterations"][0]["counts"]["pairs"]


def test_winners_have_the_leading_answer_and_losers_another_or_none(folder: Path, majority_game: Game) -> None:
    for t in (0, 1):
        grades = read_rows(majority_game.root / f"iterations/{t:03d}/grade")
        replies = read_rows(majority_game.root / f"iterations/{t:03d}/generate")
        cut = {(row["row_id"], row["replica"]) for row in replies if row["finish_reason"] != "stop"}
        for row in rows_of(folder, "preference", t):
            own = [grade for grade in grades if grade["row_id"] == row["row_id"] and grade["replica"] >= 0]
            votes = Counter(grade["answer"] for grade in own if grade["answer"] and (grade["row_id"], grade["replica"]) not in cut)
            most, next_most = (*sorted(votes.values(), reverse=True), 0, 0)[:2]
            margin = 1.0 if row["chosen_by"] == "human" else (most - next_most) / len(own)
            assert row["iteration"] == t and row["weight"] == pytest.approx(margin) and said(row, "chosen") != said(row, "rejected")
            assert said(row, "rejected") in [grade["text"] for grade in own]
            if row["chosen_by"] == "human":
                assert asked(row) not in UNANSWERED, "nobody has answered it"
                continue
            assert said(row, "chosen") in [grade["text"] for grade in own]
            assert votes[row["chosen_answer"]] == row["chosen_votes"] == max(votes.values()) > row["rejected_votes"]


def test_human_winners_are_the_data_and_prompts_without_a_reply_have_none(folder: Path) -> None:
    rows = [row for t in (0, 1) for row in rows_of(folder, "preference", t)]
    by = Counter((row["chosen_by"], asked(row) in UNANSWERED) for row in rows)
    assert by["human", False] and by["model", True] and not by["human", True]
    for row in rows:
        if row["chosen_by"] == "human":
            _, a, b = asked(row).split()
            assert said(row, "chosen") == f"{a} + {b} = {int(a) + int(b)}" and row["chosen_score"] == 1.0


def test_the_spin_shape_holds_rows_with_a_human_reply_alone(folder: Path) -> None:
    rows = rows_of(folder, "spin", 0)
    assert len(rows) == 28 * 4
    assert not {row["real"][0]["content"] for row in rows} & UNANSWERED and all(row["real"][-1]["content"] for row in rows)


def test_both_shapes_load_by_their_card(folder: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    for t in (0, 1):
        rows = load_dataset(str(folder / "data"), "preference", split=f"iteration_{t}", cache_dir=str(tmp_path))
        assert {name: rows.features[name].dtype for name in ("chosen_score", "chosen_answer", "chosen_votes")} == {
            "chosen_score": "float64",
            "chosen_answer": "string",
            "chosen_votes": "int64",
        }
    spin = load_dataset(str(folder / "data"), "spin", split="iteration_1", cache_dir=str(tmp_path))
    assert spin.column_names == ["real", "generated"] and len(spin) == 28 * 4


def test_likelihood_of_winners_has_pairs_that_would_have_met(verified_game: Game) -> None:
    folder = pushed(verified_game)
    grades = {(row["row_id"], row["text"]): row for row in read_rows(verified_game.root / "iterations/000/grade")}
    for row in rows_of(folder, "preference", 0):
        assert row["chosen_by"] == "human" or grades[row["row_id"], said(row, "chosen")]["score"] == 1.0
        assert row["rejected_score"] == 0.0 or row["finish_reason"] == "length"
    text = (folder / "data/README.md").read_text()
    assert "these are the pairs that it would have formed" in text and "the checker number passes it" in text


def test_an_iteration_without_rows_has_no_split() -> None:
    counts = {0: {"rows": 0, "spin_rows": 5}, 1: {"rows": 3, "spin_rows": 5}}
    assert splits(counts) == {"preference": [1], "spin": [0, 1]}
    assert splits({0: {"rows": 4}}) == {"preference": [0], "spin": [0]}


# --- the cards


def test_the_data_card_says_who_won_and_counts(folder: Path) -> None:
    text = " ".join((folder / "data/README.md").read_text().split())
    for t in (0, 1):
        rows = rows_of(folder, "preference", t)
        prompts = {asked(row) for row in rows}
        humans = sum(row["chosen_by"] == "human" for row in rows)
        cut = sum(row["finish_reason"] == "length" for row in rows)
        assert f"| {t} | {len(prompts)} | {len(prompts & UNANSWERED)} | {len(rows)} | {humans} | {cut} |" in text
    for words in (
        "Winning and losing replies",
        "The answer that most replies of the model to a prompt give wins",
        "compared by the checker number",
        "No person has written or read the model's replies",
        "24 of the prompts had no human reply",
        "prompts of `prompts.jsonl`, which have no replies",
        "| prompts without replies | `prompts.jsonl` | unknown",
    ):
        assert words in text, words
    assert "The replies were not graded" not in text


def test_the_model_card_says_what_won(folder: Path) -> None:
    text = " ".join((folder / "model/README.md").read_text().split())
    assert "with a majority target (`target.kind: majority`, checker `number`)" in text
    assert "replied 4 times to every training prompt" in text
    assert "Winners are human replies and the model's own replies" in text and "24 of the prompts had no human reply" in text
    assert "learned to distinguish human replies" not in text and "| pass_at_4 | 8 |" in text


def test_a_game_without_further_prompts_says_that_all_have_a_reply(majority_game: Game) -> None:
    recipe = load_recipe(majority_game.root / "recipe.yaml", ["target.human=never"])
    assert "Every prompt had a human reply" in how_learned(recipe, 0)
    counts = {0: dict.fromkeys(("prompts", "unanswered", "rows", "chosen_human", "truncated"), 7)}
    body = pairs_body(recipe, counts, 0)
    assert "| 0 | 7 | 7 | 7 | 7 | 7 |" in body
    assert "won by the human reply or one equal to it" in body, "with human: never a reply of the model may equal it"
    assert "Winners are human replies" in how_learned(
        load_recipe(majority_game.root / "recipe.yaml", ["target.human=only", "data.prompts=null"]), 0
    )


@pytest.mark.parametrize(
    ("player", "change", "learned"),
    [("0", "seed=0", True), ("rft", "seed=0", True), ("continued-sft", "seed=0", False), ("rft", "data.prompts.answer=null", False)],
)
def test_the_card_names_the_prompts_that_the_player_learned_from(player: str, change: str, learned: bool, majority_game: Game) -> None:
    """RFT learns from its replies to them as well, where the checker knows their answers."""
    sources = ["data.path=me/rows", "data.prompts.path=me/prompts", "controls=[continued-sft, rft]"]
    recipe = load_recipe(majority_game.root / "recipe.yaml", [*sources, change])
    text = model_card(recipe, majority_game.json("summary.json"), player, About.of(recipe))
    assert ("`me/rows` and prompts of `me/prompts`, which have no replies" in text) == learned
    assert ModelCard(text).data.datasets == (["me/rows", "me/prompts"] if learned else ["me/rows"])


@pytest.mark.parametrize(
    ("player", "begins", "made"),
    [
        ("1", "Fine-tuned by sparring in a self-play game with a majority target", "started from `builtin:tiny`, trained on `me/rows` and"),
        (
            "start",
            "The model that a self-play game of sparring with a majority target",
            "started from `builtin:tiny`, trained on `me/rows`.",
        ),
        ("continued-sft", "A control of a self-play game", "trained on `me/rows`."),
        ("rft", "A control of a self-play game", "trained on `me/rows` and prompts of `me/prompts`, which have no replies."),
        ("dpo", "A control of a self-play game", "trained on `me/rows` and the labelled pairs `me/pairs`."),
        ("spin-dpo", "Fine-tuned by", "`me/rows` and prompts of `me/prompts`, which have no replies, and the labelled pairs `me/pairs`."),
    ],
)
def test_a_card_says_what_the_player_was_trained_by(player: str, begins: str, made: str, majority_game: Game) -> None:
    """The rule of the game only for iterations, and for what was trained from the best one."""
    controls = "controls=[continued-sft, rft, {kind: dpo, pairs: me/pairs}, {kind: dpo, pairs: me/pairs, start: best}]"
    sources = ["data.path=me/rows", "data.prompts.path=me/prompts", controls]
    recipe, summary = load_recipe(majority_game.root / "recipe.yaml", sources), majority_game.json("summary.json")
    entry = {"from_iteration": None, "scores": summary["start"]["scores"]}
    summary["controls"] = [{**entry, "stage": one.folder, "name": one.title} for one in recipe.controls]
    text = model_card(recipe, summary, player, About.of(recipe))
    first = text.partition(" of a self-play game\n\n")[2]
    assert first.startswith(begins) and made in text
    assert ("The answer that most replies of the model to a prompt give wins" in text) == (player in ("1", "spin-dpo"))
    assert ("After that its best iteration was trained by DPO" in text) == (player == "spin-dpo")
    assert ("that the checker passed" in first) == (player == "rft")
    assert ("| prompts without replies | `me/prompts` |" in text) == (player in ("1", "rft", "spin-dpo"))


def test_the_card_of_a_start_without_sft_names_no_data(majority_game: Game) -> None:
    recipe = load_recipe(majority_game.root / "recipe.yaml", ["sft=null"])
    text = model_card(recipe, majority_game.json("summary.json"), "start", About.of(recipe))
    assert "This is the start (SFT), `builtin:tiny` as it is." in text


@pytest.mark.parametrize(("prompts", "named"), [("mit", "mit"), ("cc-by-4.0", None), (None, None)])
def test_a_data_set_of_two_licences_names_none(prompts: str | None, named: str | None, majority_game: Game, tmp_path: Path) -> None:
    options = ["--data-licence", "mit", *(["--prompts-licence", prompts] if prompts else [])]
    result = majority_game.command("push", "run", "--dataset-repo", "me/replies", "--dry-run", tmp_path / "out", *options)
    assert result.code == 0, result.err
    card = DatasetCard.load(tmp_path / "out/data/README.md")
    assert card.data.license == named
    assert ("No licence is named for the whole data set" in card.text) == ("names no licence" in result.err) == (named is None)


def test_folders_of_prompts_and_checkers_are_hidden(majority_game: Game) -> None:
    changes = [
        "data.prompts.path=/home/anna/prompts.jsonl",
        "target={kind: verified, checker: random, random_like: '/home/anna/rules.py:check'}",
        "evaluate.answer_pattern='[0-9]+'",
    ]
    text = yaml.safe_dump(public(load_recipe(majority_game.root / "recipe.yaml", changes)))
    assert "anna" not in text and "path: prompts.jsonl" in text and "random_like: rules.py:check" in text
