"""What is said about a start before a game is paid for."""

from __future__ import annotations

import pytest

from sparring.evaluation.metrics import Score
from sparring.evaluation.stop import advice


def score(value: float, stderr: float = 0.01) -> Score:
    return Score(value=value, n=100, stderr=stderr, higher_is_better=True)


def scores(**values: float) -> dict[str, Score]:
    start = {"pass_at_1": 0.4, "greedy": 0.4, "cool": 0.4, "majority": 0.4, "any": 0.4, "nll": 0.5}
    return {name: score(value) for name, value in {**start, **values}.items()}


WEAK = {"pass_at_1": 0.02, "greedy": 0.02, "cool": 0.02, "majority": 0.02}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (scores(), "no target can gain much here"),
        (scores(majority=0.5, any=0.7), "majority and verified targets can both help"),
        (scores(any=0.7), "only a verified target can help"),
        (scores(**WEAK, any=0.09), "too few of its own replies are right to learn from them: fine-tune it further first"),
        (scores(majority=0.5, any=0.7, nll_after=0.3), "more SFT still lowers its NLL, from 0.500 to 0.300"),
        (scores(majority=0.5, any=0.7, nll_after=0.6), "majority and verified targets can both help"),
        (scores(**WEAK, any=0.09, nll_after=0.5), "easier prompts, since more SFT does not lower its NLL"),
        (
            scores(**{**WEAK, "greedy": 0.4}, any=0.5),
            "are right to learn from them: lower sampling.temperature first",
        ),
        (scores(cool=0.5, majority=0.5, any=0.7), "no better than a reply at a lower temperature, so only a verified target"),
        (scores(cool=0.5, majority=0.6, any=0.7), "majority and verified targets can both help"),
        (
            scores(greedy=0.8, majority=0.5, any=0.6),
            "no target can gain much over a reply at a lower temperature: lower sampling.temperature, or fine-tune it further.",
        ),
        (scores(greedy=0.8, any=0.8, nll_after=0.5), "over a reply at a lower temperature: lower sampling.temperature."),
        (scores(greedy=0.8, any=0.6, nll_after=0.3), "more SFT still lowers its NLL"),
    ],
)
def test_the_conclusion(found: dict[str, Score], words: str) -> None:
    assert words in advice(found, 8)


def test_a_difference_within_the_errors_is_none() -> None:
    found = scores(majority=0.5, any=0.5)
    wide = {name: score(one["value"], 0.08) for name, one in found.items()}
    assert "majority and verified" in advice(found, 8)
    said = advice(wide, 8)
    assert "no target is certain to help: the difference is within its error on 100 prompts; raise data.held_out" in said
    assert "no target can gain much here" in advice({**wide, "majority": score(0.4, 0.08), "any": score(0.44, 0.08)}, 8)


def test_a_majority_that_is_better_within_its_error_is_not_called_no_better() -> None:
    found = {**scores(any=0.8), "majority": score(0.5, 0.2)}
    said = advice(found, 8)
    assert "no better" not in said and "only a verified" not in said
    assert said.endswith(
        "; the majority is better than a single reply only by less than its error on 100 prompts, so a majority target may not help, but a "
        "verified target can help."
    )


def test_a_cooler_temperature_is_told_where_it_gains() -> None:
    assert "50.0% at a lower temperature (without training)" in advice(scores(cool=0.5), 8)
    assert "without training" not in advice(scores(), 8)


def test_pass_at_k_below_greedy_bounds_a_verified_target_at_its_own_temperature_alone() -> None:
    """A target that plays on greedy replies could reach more: 80% here."""
    said = advice(scores(greedy=0.8, any=0.6), 8)
    assert "80.0% at a lower temperature" in said and "60.0% if any of 8 replies counts" in said
    assert "upper bound for a verified target in one iteration at this temperature;" in said
    assert "at this temperature" not in advice(scores(greedy=0.5, any=0.6), 8) + advice(scores(any=0.4), 8)


def test_a_game_at_a_low_temperature_has_no_lower_one() -> None:
    found = {name: one for name, one in scores(any=0.7).items() if name != "cool"}
    assert "temperature" not in advice(found, 8) and "only a verified target can help" in advice(found, 8)
    assert "50.0% at a lower temperature" in advice({**found, "greedy": score(0.5)}, 8), "greedy is one"


def test_one_reply_a_prompt_has_neither_majority_nor_pass_at_k() -> None:
    found = {name: one for name, one in scores().items() if name not in ("majority", "any")}
    said = advice(found, 1)
    assert "majority" not in said and "upper bound" not in said and "no target" not in said
    assert "only with several replies to a prompt; set evaluate.samples" in said


def test_nothing_is_said_of_a_majority_that_was_not_counted() -> None:
    """A function of one's own without a pattern reads no answers, so that nobody votes."""
    found = {name: one for name, one in scores(any=0.7).items() if name != "majority"}
    said = advice(found, 8)
    assert "majority" not in said and "a verified target can help" in said
