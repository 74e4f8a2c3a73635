"""The tables of the terminal for games with a verified or majority target."""

from __future__ import annotations

import io
import re

import pytest
from conftest import Game
from rich.console import Console

from sparring.report.run_files import print_summary
from sparring.report.tables import score_tables, target_tables

OUTCOMES = ("decided", "human_wins", "all_pass", "none_pass", "ties", "few_votes", "unjudged")


def printed(game: Game, width: int = 240) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_summary(game.json("summary.json"), game.root, console)
    return console.file.getvalue()


def row_of(text: str, title: str, model: str) -> dict[str, str]:
    """header -> cell of the row in the table of that title."""
    lines = text[text.index(title) :].splitlines()
    headers = [cell.strip() for cell in re.split("[┃│]", next(line for line in lines if line.startswith("┃")))[1:-1]]
    cells = [cell.strip() for cell in re.split("[┃│]", next(line for line in lines if line.startswith(f"│ {model}")))[1:-1]]
    return dict(zip(headers, cells, strict=True))


def test_several_replies_to_a_prompt_have_columns_of_their_own(majority_game: Game) -> None:
    scores = majority_game.json("summary.json")["iterations"][1]["scores"]
    row = row_of(printed(majority_game), "Quality on 8 held-out prompts", "iteration 1")
    for header, name in (
        ("pass@1 (k=4)", "exact_match"),
        ("pass@4", "pass_at_4"),
        ("maj@4", "maj_at_4"),
        ("exact, greedy", "exact_match_greedy"),
    ):
        assert row[header] == f"{scores[name]['value']:.3f} ± {scores[name]['stderr']:.3f}", header
    assert "exact match" not in row


def test_one_reply_to_a_prompt_is_an_exact_match(played: Game) -> None:
    headers = score_tables(played.json("summary.json"))[0].headers
    assert headers == ["model", "exact match", "NLL / token", "log p human", "log p own reply"]
    assert "Winners:" not in printed(played)


@pytest.mark.long
@pytest.mark.parametrize("name", ["majority_game", "verified_game"])
def test_who_won(name: str, request: pytest.FixtureRequest) -> None:
    game: Game = request.getfixturevalue(name)
    entry = game.json("summary.json")["iterations"][0]
    row = row_of(printed(game), "Winners:", "iteration 0")
    assert {header: int(row[header.replace("_", " ")]) for header in OUTCOMES} == {header: entry["counts"][header] for header in OUTCOMES}
    assert sum(int(row[header.replace("_", " ")]) for header in OUTCOMES) == int(row["prompts"]) == 28 + 24
    assert row["winners"] == str(entry["counts"]["winners"]) and row["pairs"] == str(entry["counts"]["pairs"])
    rate = entry["rates"]["pass_rate"]
    assert row_of(printed(game), "Graded:", "iteration 0")["pass rate"] == f"{rate['value']:.3f} ± {rate['stderr']:.3f}"


def test_rates_that_were_not_measured_have_no_column(majority_game: Game) -> None:
    summary = majority_game.json("summary.json")
    for entry in summary["iterations"]:
        entry["rates"] = {}
    assert target_tables(summary)[1].headers == ["iteration"]


def test_a_narrow_terminal_gets_the_whole_table_in_parts(majority_game: Game) -> None:
    text = printed(majority_game, width=70)
    assert all(word in text for word in ("decided", "few votes", "distinct answers", "pass@1 (k=4)"))
