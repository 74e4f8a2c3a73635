"""Contradictions around `target` are refused before anything is loaded, by name and with the reason; what goes together is taken."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from sparring.config import load_recipe
from sparring.errors import UserError

BASE: dict[str, Any] = {
    "run_dir": "run",
    "model": {"path": "builtin:tiny"},
    "data": {"path": "builtin:tasks"},
    "sampling": {"replies_per_prompt": 4},
    "target": {"kind": "verified", "checker": "number"},
}
OWN = "rules.py:score"
MAJORITY = {"target.kind": "majority"}
PROMPTS = {"data.prompts": {"path": "more.jsonl"}}
ANSWERED = {"data.prompts": {"path": "more.jsonl", "answer": "gold"}}
HUMAN = {"target": {"kind": "human"}}
RANDOM = {"target.checker": "random", "target.random_like": "number"}


def loaded(changes: dict[str, Any]) -> Any:
    recipe = deepcopy(BASE)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        if key:
            recipe.setdefault(section, {})[key] = value
        else:
            recipe[section] = value
    return load_recipe(recipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": {"kind": "verified"}}, "target.checker: null: target.kind verified needs one"),
        ({"target": {"kind": "majority"}}, "target.checker: null: target.kind majority needs one"),
        ({"target.checker": "nmber"}, "did you mean number?"),
        ({"target.kind": "majorty"}, "did you mean majority?"),
        ({**MAJORITY, "sampling.replies_per_prompt": 1}, "target.kind: 'majority': one reply has no majority"),
        ({**MAJORITY, "sampling.temperature": 0.0}, "at temperature 0 all replies to a prompt are the same"),
        (
            {"sampling": {"temperature": 0.0}, "evaluate.samples": 8},
            "evaluate.samples: 8: at temperature 0 all replies to a prompt are the same",
        ),
        (PROMPTS, "target.kind: 'verified': nothing says which replies to data.prompts are right"),
        ({**PROMPTS, **RANDOM}, "nothing says which replies to data.prompts are right"),
        ({**ANSWERED, **HUMAN}, "target.kind: 'human': data.prompts have no human reply, which always wins here"),
        ({**ANSWERED, "target.human": "only"}, "target.human: 'only': data.prompts have no human reply, which alone wins here"),
        ({"data.too_long": "cut"}, "target.kind: 'verified': data.too_long cut leaves human replies without an end, which could win here"),
        ({**MAJORITY, "data.too_long": "cut"}, "set drop, or raise data.max_reply_tokens"),
        ({"target.checker": "exact"}, "evaluate.answer_pattern: null: target.checker exact needs it"),
        ({"target.checker": "random", "target.random_like": "exact"}, "evaluate.answer_pattern: null: target.checker exact needs it"),
        ({**MAJORITY, "target.checker": OWN}, "evaluate.answer_pattern: null: majority counts votes for answers"),
        ({"target.losers": "answered", "target.checker": OWN}, "evaluate.answer_pattern: null: with target.losers answered a reply loses"),
        ({**HUMAN, "objective.loss": "sft"}, "objective.loss sft on human replies is only continued SFT"),
        ({"objective.loss": "sft", "objective.nll_weight": 1.0}, "objective.nll_weight: 1.0: has no effect while objective.loss is sft"),
        ({"objective.loss": "sft", "objective.beta": 0.5}, "objective.beta: 0.5: has no effect while objective.loss is sft"),
        ({"objective.loss": "t-spin"}, "T-SPIN compares the human reply"),
        ({"target.checker": "random"}, "target.random_like: null: checker random needs it"),
        ({"target.checker": "random", "target.random_like": "random"}, "target.random_like: 'random': not a checker"),
        ({"target.random_like": "number"}, "target.random_like: 'number': has an effect only with checker random"),
        ({**RANDOM, "target.kind": "majority"}, "target.checker: 'random': has no effect with target.kind majority"),
        ({"target": {"kind": "human", **{"checker": "random", "random_like": "number"}}}, "has no effect with target.kind human"),
        ({"target.tolerance": 0.1, "target.checker": "choice"}, "target.tolerance: 0.1: has an effect only with checker number"),
        ({"objective.loss": "sft", "target.human": "only"}, "target.human: 'only': with objective.loss sft the human reply alone"),
        ({**HUMAN, "evaluate.headroom_epochs": 1.0}, "evaluate.headroom_epochs: 1.0: has no effect where no headroom is measured"),
        ({"evaluate.headroom": False, "evaluate.headroom_epochs": 1.0}, "set evaluate.headroom: true"),
        ({"target.pass_score": 0.0}, "target.pass_score: 0.0: built-in checkers give 1 or 0, so it must be above 0 and at most 1"),
        ({**RANDOM, "target.pass_score": 2.0}, "target.pass_score: 2.0: built-in checkers give 1 or 0"),
        ({"target.min_votes": 0.7}, "target.min_votes: 0.7: has an effect only with target.kind majority"),
        ({"target.weigh_votes": False}, "target.weigh_votes: false: has an effect only with target.kind majority"),
        ({**MAJORITY, "target.min_votes": 1.5}, "target.min_votes: 1.5 is refused"),
        ({"target": {"kind": "human", "max_winners": 2}}, "target.max_winners: 2: has no effect with target.kind human"),
        ({"target": {"kind": "human", "human": "mix"}}, "target.human: 'mix': has no effect with target.kind human"),
        ({"target.checker": OWN, "data.checker_columns": ["level", "answer"]}, "set data.answer, and data.prompts.answer, to it instead"),
        ({"target.checker": OWN, "data.checker_columns": ["human_reply"]}, "human_reply is an argument that a checker has already"),
        ({"target.checker": OWN, "data.checker_columns": ["row_id"]}, "row_id is an argument that a checker has already"),
        ({"target.checker": OWN, "data.checker_columns": ["prompts"]}, "give the column another name"),
        ({"target.checker": OWN, "data.checker_columns": ["completions"]}, "give the column another name"),
        ({"data.checker_columns": ["level"]}, "data.checker_columns are for a function of your own"),
        ({**HUMAN, "evaluate.samples": 4}, "evaluate.samples: 4: several replies to a prompt are scored by their answers"),
        ({**HUMAN, "evaluate.metric": "exact_match"}, "evaluate.metric: 'exact_match': needs evaluate.answer_pattern, or a target.checker"),
        ({"evaluate.metric": "exact_match_greedy"}, "needs evaluate.greedy: true"),
        ({"stop.min_distinct": 0.5}, "stop.min_distinct: 0.5: needs several replies to a held-out prompt: set evaluate.samples"),
        ({"stop.min_pass_at_k": 0.8}, "stop.min_pass_at_k: 0.8: needs several replies"),
        ({**HUMAN, "stop.min_pass_at_k": 0.8}, "stop.min_pass_at_k: 0.8: has an effect only with target.kind verified or majority"),
        ({**HUMAN, "stop.min_distinct": 0.5}, "stop.min_distinct: 0.5: has an effect only with target.kind verified or majority"),
        ({"target.checker": OWN, "evaluate.samples": 4, "stop.min_distinct": 0.5}, "a function of your own extracts none"),
        ({"target.winners": 3}, "target.winners: unknown key; did you mean target.max_winners?"),
    ],
)
def test_contradictions(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        loaded(changes)
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        ANSWERED,
        {**PROMPTS, **MAJORITY},
        {**PROMPTS, "target.checker": OWN},
        {**PROMPTS, "target.checker": "random", "target.random_like": OWN},
        {"target.checker": OWN, "data.checker_columns": ["level"]},
        {"target.checker": OWN, "data.checker_columns": ["level"], "data.answer": "answer"},
        {**RANDOM, "target.tolerance": 0.1},
        {"target.checker": OWN, "target.pass_score": -2.5},
        {"evaluate.headroom_epochs": 1.0},
        {**HUMAN, "target.checker": "number", "evaluate.headroom": True, "evaluate.headroom_epochs": 0.5},
        {"target.checker": OWN, "target.losers": "answered", "evaluate.answer_pattern": "#### (.+)"},
        {"sampling.replies_per_prompt": 1},
        {"objective.loss": "sft", "evaluate.samples": 8},
        {"objective.loss": "space", "target.human": "never"},
        {"objective.loss": "alpha-spin", "target.human": "mix"},
        {**HUMAN, "target.checker": "number", "evaluate.samples": 4},
        {**HUMAN, "data.too_long": "cut"},
        {"stop.min_pass_at_k": None, "stop.min_distinct": None},
        {"stop.min_pass_at_k": 0.9},  # the default, as a run stores it
        {"evaluate.samples": 4, "stop.min_pass_at_k": 0.8, "stop.min_distinct": 0.5},
        {"target.checker": OWN, "evaluate.samples": 4, "evaluate.answer_pattern": "#### (.+)", "stop.min_distinct": 0.5},
    ],
)
def test_what_goes_together(changes: dict[str, Any]) -> None:
    assert loaded(changes).run_dir == "run"


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({}, set()),
        ({"target.workers": 2, "target.timeout_seconds": 5.0, "target.memory_mb": 100}, {"workers", "timeout_seconds", "memory_mb"}),
        ({"target.workers": 2, "target.checker": OWN}, set()),
        ({"target.workers": 2, "target.checker": "math"}, set()),
        ({"target.workers": 2, "target.checker": "random", "target.random_like": OWN}, set()),
        ({"target": {"kind": "human", "workers": 2}}, {"workers"}),
        ({"objective.loss": "sft", "target.max_losers": 2, "target.losers": "answered"}, {"max_losers", "losers"}),
        ({"objective.loss": "sft", "target.max_winners": 2}, set()),
        ({"target.max_losers": 2, "target.losers": "answered"}, set()),
    ],
)
def test_options_without_an_effect_on_the_game_are_announced(changes: dict[str, Any], unused: set[str]) -> None:
    """And not refused: `sparring grade` reads those of processes, and the pairs of `sparring push` depend on those of losers."""
    recipe = loaded(changes)
    assert recipe.target.unused(recipe.objective).keys() == unused


def test_a_fault_of_the_target_is_told_alone() -> None:
    """Without a checker, because its name is wrong: several samples are not refused for that as well."""
    with pytest.raises(UserError) as caught:
        loaded({"target.checker": "nmber", "evaluate.samples": 4, "evaluate.greedy": True})
    assert "1 problem" in str(caught.value) and "evaluate" not in str(caught.value)


def test_a_human_target_may_be_written_out() -> None:
    recipe = {key: value for key, value in BASE.items() if key != "target"}
    written = load_recipe({**recipe, "target": {"kind": "human", "checker": None, "human": "fallback", "max_winners": 4, "min_votes": 0.5}})
    assert load_recipe(recipe) == written and not written.target.uses_grades


@pytest.mark.parametrize(
    ("changes", "beta", "nll_weight"),
    [
        ({}, 0.5, 1.0),
        (MAJORITY, 0.5, 1.0),
        ({"objective.loss": "hinge"}, 0.5, 1.0),
        ({"objective.beta": 2.0}, 2.0, 1.0),
        ({"objective.nll_weight": 0.0}, 0.5, 0.0),
        ({"objective.loss": "space"}, 1.0, 1.0),
        ({"objective.loss": "sft"}, 1.0, 0.0),
        (HUMAN, 1.0, 0.0),
    ],
)
def test_the_defaults_of_duels_where_the_target_moves(changes: dict[str, Any], beta: float, nll_weight: float) -> None:
    """What the recipe names stays; what has no effect stays at its own default."""
    objective = loaded(changes).objective
    assert (objective.beta, objective.nll_weight) == (beta, nll_weight)
