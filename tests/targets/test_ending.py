"""Whether an iteration with a verified or majority target has anything to learn, and whether the training prompts still get better."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from made import cut, reply, right, voting, wrong

from sparring.config import load_recipe
from sparring.errors import UserError
from sparring.evaluation.metrics import Score
from sparring.stages import generate
from sparring.stages.generate import nothing_to_learn, warn_of_collapse
from sparring.stages.grade import rate_scores, rates
from sparring.targets import TARGETS, Candidate, Candidates
from sparring.targets.select import OUTCOMES, rules_of
from sparring.targets.window import Window, select_window

Table = dict[str, tuple[Candidate, ...]]


def game(kind: str = "verified", objective: dict[str, Any] | None = None, stop: dict[str, Any] | None = None, **target: Any) -> Any:
    recipe = load_recipe(
        {
            "run_dir": "run",
            "model": {"path": "builtin:tiny"},
            "data": {"path": "builtin:tasks"},
            "sampling": {"replies_per_prompt": 4},
            "target": {"kind": kind, "checker": "number", **target},
            "objective": objective or {},
            "stop": stop or {},
        }
    )
    return SimpleNamespace(recipe=recipe, run=SimpleNamespace(root="run"))


def reason(monkeypatch: pytest.MonkeyPatch, before: Table, now: Table, kind: str = "verified", **stop: Any) -> str | None:
    tables = [{row_id: Candidates(replies) for row_id, replies in table.items()} for table in (before, now)]
    monkeypatch.setattr(generate, "candidates_at", lambda context, t: tables[t])
    return nothing_to_learn(game(kind, stop=stop), Window(["a contest"], {"unjudged": 0, "prompts": 4}), 1)


def passing(*counts: int) -> Table:
    """So many of 4 replies pass, prompt by prompt."""
    return {
        f"r{n}": tuple([right(f"{i}") for i in range(count)] + [wrong(f"{i}") for i in range(count, 4)]) for n, count in enumerate(counts)
    }


# --- nothing to learn


def counted(**counts: int) -> Window:
    return Window([], {**{name: counts.get(name, 0) for name in OUTCOMES}, "prompts": sum(counts.values())})


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"all_pass": 3}, ["3 all pass", "objective.loss: sft, or objective.nll_weight above 0", "harder prompts"]),
        ({"none_pass": 3}, ["3 none pass", "easier prompts", "sparring grade run"]),
        ({"none_pass": 1, "all_pass": 4}, ["1 none pass", "4 all pass"]),
        ({"ties": 3, "few_votes": 1}, ["3 ties", "more sampling.replies_per_prompt"]),
        ({"ties": 1, "few_votes": 3}, ["3 few votes", "target.min_votes"]),
        ({"unjudged": 3}, ["3 unjudged", "no reply has a score or a vote", "evaluate.answer_pattern"]),
    ],
)
def test_a_first_iteration_without_a_contest_is_refused(counts: dict[str, int], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        nothing_to_learn(game(), counted(**counts), 0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.where == "target.kind verified"


def test_a_later_one_ends_the_game() -> None:
    assert nothing_to_learn(game(), counted(all_pass=3), 1) == "nothing to learn: no prompt has a losing reply"
    assert nothing_to_learn(game(), counted(all_pass=3, ties=1), 1) == (
        "nothing to learn: no prompt has winners and losers: 3 all pass, 1 ties"
    )


TIED, FAILED = voting("5", "5", "6", "6"), (wrong("a"), wrong("b"), wrong("c"))


def selected(kind: str, replies: tuple[Candidate, ...], loss: str, **target: Any) -> tuple[Any, Window]:
    """A game by likelihood, or with an NLL weight, on one prompt with a human reply; and its window."""
    found = game(kind, {"loss": loss, **({} if loss == "sft" else {"nll_weight": 1.0})}, **target)
    human, objective = reply("by hand", passed=True, answer="7"), found.recipe.objective
    uses = {"uses_margins": objective.kind.uses_margins, "uses_likelihood": objective.uses_likelihood(0)}
    table = {0: {"r": Candidates(replies, human)}}
    return found, select_window({"r": (1,)}, table, TARGETS[kind], rules_of(found.recipe), **uses)


@pytest.mark.parametrize(
    ("kind", "replies", "loss", "target", "words"),
    [
        ("verified", FAILED, "sft", {}, ["no generated reply wins: 1 human wins", "easier prompts"]),
        ("verified", FAILED, "sft", {"human": "mix"}, ["no generated reply wins: 1 human wins"]),
        ("majority", TIED, "sft", {}, ["no generated reply wins: 1 human wins", "lower target.min_votes, try easier prompts"]),
        ("majority", voting("5", "6", "8"), "sft", {}, ["no generated reply wins: 1 human wins"]),
        ("verified", (reply("a"), reply("b")), "sft", {}, ["no generated reply wins: 1 unjudged", "evaluate.answer_pattern"]),
        ("verified", (reply("a"), reply("b")), "logistic", {}, ["no prompt has winners and losers: 1 unjudged"]),
        ("majority", voting("7", None, None), "logistic", {"losers": "answered"}, ["1 few votes", "target.min_votes"]),
        ("verified", (right("a"), right("b")), "sft", {"human": "mix", "max_winners": 1}, ["1 all pass", "target.max_winners"]),
    ],
)
def test_likelihood_of_human_replies_alone_is_no_game(
    kind: str, replies: tuple[Candidate, ...], loss: str, target: dict[str, Any], words: list[str]
) -> None:
    """Human replies win because no generated reply does: to raise their likelihood is continued SFT."""
    found, window = selected(kind, replies, loss, **target)
    with pytest.raises(UserError) as caught:
        nothing_to_learn(found, window, 0)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert (nothing_to_learn(found, window, 1) or "").startswith("nothing to learn: no ")


@pytest.mark.parametrize(
    ("kind", "replies", "loss"),
    [
        ("verified", FAILED, "logistic"),  # replies that fail lose to the human one
        ("majority", TIED, "logistic"),
        ("verified", (right("a"), *FAILED), "sft"),
        ("majority", voting("5", "5", "6"), "sft"),
    ],
)
def test_a_generated_winner_or_a_loser_makes_a_game(kind: str, replies: tuple[Candidate, ...], loss: str) -> None:
    assert nothing_to_learn(*selected(kind, replies, loss), 0) is None


# --- the plateau


@pytest.mark.parametrize(
    ("before", "now", "ends"),
    [
        ((1, 2, 1, 2), (2, 3, 2, 3), False),  # all by a quarter: no error at all
        ((1, 2, 1, 2), (1, 2, 1, 2), True),
        ((1, 2, 1, 2), (0, 1, 0, 1), True),
        ((1, 1, 1, 1), (4, 0, 1, 1), True),  # by 0.125 with a standard error of 0.24
        ((1, 1, 1, 1), (2, 2, 1, 1), False),  # by 0.125 with one of 0.072
        ((4, 4), (4, 4), True),
    ],
)
def test_it_ends_where_the_pass_rate_rises_by_no_more_than_its_error(
    before: tuple[int, ...], now: tuple[int, ...], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = reason(monkeypatch, passing(*before), passing(*now))
    assert (found is not None) == ends
    assert not ends or found.startswith("plateau: the pass rate of the training prompts changed by ")


def test_it_can_be_switched_off_and_needs_two_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, passing(1, 1), passing(1, 1), plateau=False) is None
    assert nothing_to_learn(game(), Window(["a contest"], {"unjudged": 1, "prompts": 2}), 0) is None
    assert reason(monkeypatch, passing(1), passing(1)) is None, "one prompt has no error"


def test_it_compares_each_prompt_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of one's own may give no score to all replies of one prompt, of another one in the next iteration."""
    before, now = passing(1, 1, 3), passing(2, 2, 3)
    unjudged = (reply("x"), reply("y"))
    assert reason(monkeypatch, {**before, "r2": unjudged}, {**now, "r0": unjudged}) is None, "one in common"
    before, now = passing(1, 1, 1, 3), passing(2, 2, 2, 3)
    assert reason(monkeypatch, {**before, "r3": unjudged}, {**now, "r0": unjudged}) is None, "those in common all rise"
    assert reason(monkeypatch, {"r0": unjudged}, passing(1)) is None


def test_of_majority_it_is_the_share_of_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    split, agreed = {"a": voting("5", "6"), "b": voting("5", "6")}, {"a": voting("5", "5"), "b": voting("7", "7")}
    assert reason(monkeypatch, split, agreed, kind="majority") is None
    assert "plateau: the share of votes for the leading answer" in (reason(monkeypatch, agreed, split, kind="majority") or "")


def test_rates_by_hand() -> None:
    found = {
        "a": Candidates((right("x", "5"), wrong("y", "6"), cut(right("z", "5")), wrong("v", None))),
        "b": Candidates((reply("x", answer="5"), reply("y", answer="5"))),
    }
    assert rates(found) == {
        "pass_rate": {"a": 0.25},
        "vote_share": {"a": 0.25, "b": 1.0},
        "distinct_answers": {"a": 2.0, "b": 1.0},
    }
    scores = rate_scores(rates(found))
    assert {name: (score["value"], score["n"]) for name, score in scores.items()} == {
        "pass_rate": (0.25, 1),
        "vote_share": (0.625, 2),
        "distinct_answers": (1.5, 2),
    }
    assert rates({"a": Candidates((reply("x"),))}) == {}


def test_a_collapse_is_warned_of_by_the_votes_of_training_replies(caplog: pytest.LogCaptureFixture) -> None:
    """evaluate.samples is 1, its default: held-out replies do not vote."""
    context = game("majority")
    graded = [SimpleNamespace(facts={"rates": {"vote_share": {"value": value}}}) for value in (0.4, 0.6)]
    context.run.finished = lambda name: graded[int(name.split("/")[1])] if name.endswith("grade") else None
    start, last = ({"exact_match": Score(value=value, n=100, stderr=0.01)} for value in (0.5, 0.3))
    warn_of_collapse(context, start, [last])
    assert not caplog.records, "only the start's replies were graded"
    warn_of_collapse(context, start, [last, last])
    assert "votes for the leading answer rose from 0.400 to 0.600 since the start, and exact_match fell from 0.500 to 0.300" in caplog.text
    caplog.clear()
    context.run.finished = lambda name: graded[int(name.split("/")[1]) % 2]
    warn_of_collapse(context, start, [last, last])
    assert not caplog.records, "a version without this rule has played on: its game keeps its iterations"
