"""When the game ends, and which iteration is the best: cases by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sparring.config import Recipe, load_recipe
from sparring.evaluation.metrics import Score, accuracy_score, wilson_interval
from sparring.evaluation.stop import agrees_on_errors, best_iteration, is_better, stop_reason


def recipe(iterations: int = 4, metric: str = "exact_match", **stop: Any) -> Recipe:
    return load_recipe(
        {
            "run_dir": "run",
            "model": {"path": "builtin:tiny"},
            "data": {"path": "builtin:tasks"},
            "iterations": iterations,
            "evaluate": {"answer_pattern": ".+", "metric": metric},
            "stop": stop,
        }
    )


def scores(exact_match: float = 0.5, nll: float = 1.0, wins: int = 80, duels: int = 100, margin: float = 1.0) -> dict[str, Score]:
    low, high = wilson_interval(wins / duels, duels, 0.95)
    return {
        "exact_match": Score(value=exact_match, n=duels, stderr=0.01, higher_is_better=True),
        "nll_per_token": Score(value=nll, n=duels, stderr=0.01, higher_is_better=False),
        "duel_margin": Score(value=margin, n=duels, stderr=0.1, higher_is_better=True),
        "duel_accuracy": Score(value=wins / duels, n=duels, stderr=0.05, higher_is_better=True, low=low, high=high),
    }


def start(exact_match: float = 0.4, nll: float = 1.5) -> dict[str, Score]:
    found = scores(exact_match, nll)
    del found["duel_accuracy"], found["duel_margin"]
    return found


# --- the best


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_has_it() -> None:
    played = [scores(0.5, 1.2), scores(0.7, 1.1), scores(0.6, 0.9)]
    assert best_iteration(played, "exact_match") == 1
    assert best_iteration(played, "nll_per_token") == 2


def test_the_earliest_of_equals() -> None:
    assert best_iteration([scores(0.5), scores(0.7), scores(0.7)], "exact_match") == 1


def test_of_equals_the_one_that_knows_the_human_replies_best() -> None:
    """An exact match of 0 everywhere is no reason to take the first."""
    assert best_iteration([scores(0.0, 1.2), scores(0.0, 0.9), scores(0.0, 1.0)], "exact_match") == 1
    assert best_iteration([scores(0.7, 1.2), scores(0.7, 0.9), scores(0.6, 0.1)], "exact_match") == 1
    assert best_iteration([scores(0.7, 0.9), scores(0.7, math.nan)], "exact_match") == 0
    assert best_iteration([scores(0.7, 0.9), scores(0.7, 0.9)], "exact_match") == 0


def test_a_number_that_is_none_is_never_the_best() -> None:
    assert best_iteration([scores(nll=math.nan), scores(nll=3.0)], "nll_per_token") == 1
    assert best_iteration([scores(exact_match=math.nan), scores(exact_match=0.0)], "exact_match") == 1
    assert best_iteration([scores(nll=math.nan), scores(nll=math.nan)], "nll_per_token") == 0
    assert best_iteration([scores(nll=math.inf), scores(nll=2.0)], "nll_per_token") == 1


def test_better_is_strict() -> None:
    higher, lower = scores(0.6, 1.0), scores(0.5, 0.8)
    assert is_better(higher["exact_match"], lower["exact_match"]) and not is_better(lower["exact_match"], higher["exact_match"])
    assert is_better(lower["nll_per_token"], higher["nll_per_token"])
    assert not is_better(higher["exact_match"], higher["exact_match"])


# --- the end


def test_the_game_begins_and_goes_on() -> None:
    assert stop_reason(recipe(), start(), []) is None
    assert stop_reason(recipe(), start(), [scores()] * 3) is None


def test_it_ends_at_the_number_of_iterations() -> None:
    assert stop_reason(recipe(iterations=2), start(), [scores(), scores()]) == "iterations: all 2 are played"


@pytest.mark.parametrize(("wins", "ends"), [(50, True), (59, True), (60, False), (40, True), (0, True), (100, False)])
def test_it_ends_when_the_interval_contains_one_half(wins: int, ends: bool) -> None:
    """95% Wilson of 100 duels: 59 wins reach down to 0.492, 60 only to 0.502. Below one half the player tells even less."""
    reason = stop_reason(recipe(), start(), [scores(wins=80), scores(wins=wins)])
    assert (reason is not None) == ends
    if reason:
        assert reason.startswith(f"indistinguishable: duel accuracy {wins / 100:.3f}, 95% interval ")
        assert f"{wilson_interval(wins / 100, 100, 0.95)[0]:.3f} to" in reason


@pytest.mark.parametrize(
    ("wins", "margin", "end"),
    [
        (59, 1.0, "95% interval 0.492 to 0.681, contains one half"),
        (41, -1.0, "95% interval 0.319 to 0.508, contains one half"),
        (40, 1.0, "95% interval 0.309 to 0.498, is below one half - the player prefers the opponent's replies to the human ones"),
        (0, -9.0, "95% interval 0.000 to 0.037, is below one half - the player prefers the opponent's replies to the human ones"),
        (50, 0.02, "contains one half"),
        (50, 0.0199, "contains one half; with a mean margin of 0.020 nats the player hardly moved, so try a larger train.lr"),
        (50, -0.001, "contains one half; with a mean margin of -0.001 nats the player hardly moved, so try a larger train.lr"),
    ],
)
def test_it_says_where_the_interval_lies_and_what_may_be_wrong(wins: int, margin: float, end: str) -> None:
    assert stop_reason(recipe(), start(), [scores(wins=wins, margin=margin)]).endswith(end)


def test_the_level_in_the_reason_is_the_recipes() -> None:
    assert ", 90% interval " in stop_reason(recipe(confidence=0.9), start(), [scores(wins=50)])


def test_the_interval_is_the_last_iterations() -> None:
    assert stop_reason(recipe(), start(), [scores(wins=50), scores(wins=90)]) is None


def test_more_duels_tell_a_smaller_difference() -> None:
    assert stop_reason(recipe(), start(), [scores(wins=55, duels=100)]) is not None
    assert stop_reason(recipe(), start(), [scores(wins=550, duels=1000)]) is None


def test_ties_are_indistinguishable() -> None:
    tied = {**scores(margin=0.0), "duel_accuracy": accuracy_score([0.0] * 200, 0.95)}
    reason = stop_reason(recipe(), start(), [tied])
    assert reason.startswith("indistinguishable") and "the player hardly moved" in reason


def test_the_rule_can_be_switched_off() -> None:
    assert stop_reason(recipe(indistinguishable=False), start(), [scores(wins=50)]) is None


def test_patience_counts_iterations_without_a_new_best() -> None:
    patient = recipe(iterations=9, patience=2)
    assert stop_reason(patient, start(0.4), [scores(0.6), scores(0.5)]) is None
    assert stop_reason(patient, start(0.4), [scores(0.6), scores(0.5), scores(0.6)]) == (
        "patience: exact_match has not improved for 2 iterations"
    ), "an equal value is no improvement"
    assert stop_reason(patient, start(0.4), [scores(0.6), scores(0.5), scores(0.7)]) is None
    assert stop_reason(patient, start(0.4), [scores(0.6), scores(0.5), scores(0.7), scores(0.6)]) is None


def test_an_equal_value_with_a_better_tie_break_is_no_new_best() -> None:
    """stop.patience: without a new best value of the metric; the tie-break only chooses among equals."""
    patient = recipe(iterations=9, patience=2)
    played = [scores(0.6, 1.0), scores(0.6, 0.9), scores(0.6, 0.8)]
    assert best_iteration(played, "exact_match") == 2
    assert stop_reason(patient, start(0.4), played[:2]) is None
    assert stop_reason(patient, start(0.4), played) == "patience: exact_match has not improved for 2 iterations"
    assert stop_reason(patient, start(0.4), [scores(0.6), scores(math.nan), scores(math.nan)]) is not None


def test_patience_measures_against_the_start_too() -> None:
    impatient = recipe(patience=1)
    assert stop_reason(impatient, start(0.9), [scores(0.6)]) == "patience: exact_match has not improved for 1 iterations"
    assert stop_reason(recipe(patience=2), start(0.9), [scores(0.6)]) is None
    assert stop_reason(recipe(patience=2), start(0.9), [scores(0.6), scores(0.8)]) is not None, "better than before, not than the start"
    assert stop_reason(impatient, start(0.5), [scores(0.6)]) is None


def test_patience_follows_the_chosen_metric() -> None:
    played = [scores(0.6, 1.0), scores(0.5, 0.9)]
    assert stop_reason(recipe(patience=1), start(), played) is not None
    assert stop_reason(recipe(patience=1, metric="nll_per_token"), start(), played) is None


def test_without_patience_it_waits() -> None:
    assert stop_reason(recipe(iterations=9), start(0.9), [scores(0.5)] * 8) is None


# --- verified and majority targets


def target_recipe(kind: str = "verified", iterations: int = 9, samples: int = 8, **stop: Any) -> Recipe:
    return load_recipe(
        {
            "run_dir": "run",
            "model": {"path": "builtin:tiny"},
            "data": {"path": "builtin:tasks"},
            "iterations": iterations,
            "sampling": {"replies_per_prompt": 8},
            "target": {"kind": kind, "checker": "number"},
            "evaluate": {"samples": samples},
            "stop": stop,
        }
    )


def sampled(exact_match: float, pass_at_8: float = 0.8, vote_share: float = 0.5, distinct: float = 3.0) -> dict[str, Score]:
    values = {"pass_at_8": pass_at_8, "vote_share": vote_share, "distinct_answers": distinct}
    return {**scores(exact_match, wins=50), **{name: Score(value=value, n=100, stderr=0.01) for name, value in values.items()}}


def test_a_player_need_not_come_near_to_human_replies_where_others_win() -> None:
    assert stop_reason(target_recipe(), sampled(0.4), [sampled(0.5)]) is None
    assert stop_reason(recipe(), start(), [sampled(0.5)]) is not None


@pytest.mark.parametrize(("pass_at_8", "ends"), [(0.8, False), (0.72, False), (0.71, False), (0.70, True), (0.2, True)])
def test_it_ends_where_pass_at_k_falls_below_a_share_of_the_starts_by_more_than_its_error(pass_at_8: float, ends: bool) -> None:
    """0.9 of 0.8 is 0.72, and the error of the difference 0.0135."""
    reason = stop_reason(target_recipe(), sampled(0.4), [sampled(0.5), sampled(0.6, pass_at_8)])
    assert (reason is not None) == ends
    assert not ends or reason == f"diversity: pass_at_8 {pass_at_8:.3f} is less than 0.9 of the start's 0.800, by more than its error"
    assert stop_reason(target_recipe(min_pass_at_k=None), sampled(0.4), [sampled(0.6, pass_at_8)]) is None


def test_distinct_answers_end_it_only_when_asked() -> None:
    fewer = [sampled(0.5, distinct=1.0)]
    assert stop_reason(target_recipe(), sampled(0.4), fewer) is None
    assert (stop_reason(target_recipe(min_distinct=0.5), sampled(0.4), fewer) or "").startswith("diversity: distinct_answers 1.000")
    assert stop_reason(target_recipe(min_distinct=0.3), sampled(0.4), fewer) is None


def test_a_majority_that_agrees_on_errors_has_two_iterations_to_turn() -> None:
    """Votes rise, accuracy falls: the recipe names no patience, and it is 2."""
    start, bad = sampled(0.5), sampled(0.4, vote_share=0.7)
    assert agrees_on_errors(target_recipe("majority"), start, [bad])
    assert stop_reason(target_recipe("majority"), start, [bad]) is None
    assert stop_reason(target_recipe("majority"), start, [bad, bad]) == "patience: exact_match has not improved for 2 iterations"
    assert stop_reason(target_recipe("majority", patience=3), start, [bad, bad]) is None, "the recipe's own comes first"
    assert stop_reason(target_recipe("majority"), start, [bad, sampled(0.6, vote_share=0.7)]) is None, "it has turned"


@pytest.mark.parametrize(
    ("kind", "exact_match", "vote_share", "agrees"),
    [("majority", 0.4, 0.7, True), ("majority", 0.49, 0.7, False), ("majority", 0.4, 0.5, False), ("verified", 0.4, 0.7, False)],
)
def test_what_agreeing_on_errors_is(kind: str, exact_match: float, vote_share: float, agrees: bool) -> None:
    """0.49 is within the error of 0.014 of the start's 0.5."""
    assert agrees_on_errors(target_recipe(kind), sampled(0.5), [sampled(exact_match, vote_share=vote_share)]) == agrees


def test_with_one_held_out_reply_the_votes_are_those_of_the_training_replies() -> None:
    """One number for each opponent: the start, then the players of all iterations but the last."""
    one, start, bad = target_recipe("majority", samples=1), scores(0.5, wins=50), scores(0.4, wins=50)
    assert not agrees_on_errors(one, start, [bad]) and not agrees_on_errors(one, start, [bad], [0.5])
    assert agrees_on_errors(one, start, [bad, bad], [0.5, 0.6])
    assert not agrees_on_errors(one, start, [bad, bad], [0.5, 0.5])
    assert not agrees_on_errors(one, start, [bad, scores(0.49, wins=50)], [0.5, 0.6]), "within its error"
    assert not agrees_on_errors(target_recipe(samples=1), start, [bad, bad], [0.5, 0.6]), "verified"
    assert stop_reason(one, start, [bad, bad], [0.5, 0.6]) == "patience: exact_match has not improved for 2 iterations"
    assert stop_reason(one, start, [bad, bad], [0.5, 0.5]) is None
    several = [sampled(0.4, vote_share=0.7)] * 2
    assert not agrees_on_errors(target_recipe("majority"), sampled(0.5, vote_share=0.7), several, [0.5, 0.6]), "held-out votes come first"
