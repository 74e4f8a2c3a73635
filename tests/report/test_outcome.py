"""The verdict over all arms: their order, the intervals, what to use; warnings with their remedies; what comes next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

from sparring.config import Recipe, load_recipe
from sparring.report.health import log_new_symptoms, signs, warnings
from sparring.report.outcome import higher_ranked, next_steps, ranking, verdict, verdict_lines
from sparring.report.run_files import read_run
from sparring.report.tables import rows_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("outcome") / "run")


def summary_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "summary.json").read_text())


def arm(player: str, value: float, behind: tuple[float, float, float] | None = None, gained: tuple[float, float, float] | None = None):
    names = {"start": "start", "continued-sft": "continued SFT"}
    as_json = [None if three is None else dict(zip(("value", "low", "high"), three, strict=True)) for three in (behind, gained)]
    name = names.get(player, f"iteration {player}")
    return {"player": player, "name": name, "value": value, "n": 200, "behind": as_json[0], "over_start": as_json[1]}


def judged(*arms: dict[str, Any], best: int = 1, rates: dict[str, Any] | None = None) -> str:
    found = {"iteration": best, "metric": "nll_per_token", "value": 2.5, "start_value": 2.6, "beats_start": True}
    whole = {"scores": {"truncated": {"value": 0.0, "n": 200}}}
    players = {
        "start": whole,
        "iterations": [{"iteration": 1, **whole, **(rates or {})}],
        "controls": [{"stage": "continued-sft", **whole}],
    }
    return verdict({**players, "best": found, "stop_reason": "iterations: all 2 are played", "ranking": list(arms)}, "runs/x")


# ---------------------------------------------------------------------------------------------- the order


def test_a_winner_whose_replies_are_cut_is_not_praised(made: Path) -> None:
    summary = summary_of(made)
    told = "But its replies to 5 of 12 prompts are cut: fix that before you use or compare it."
    assert told not in verdict(summary)
    summary["controls"][0]["scores"]["truncated"]["value"] = 5 / 12
    assert told in verdict_lines(summary)[1]


def test_all_arms_are_ranked_with_paired_intervals(made: Path) -> None:
    ranked = summary_of(made)["ranking"]
    # right where row % 4 < player, player 3 being the control: 0, 3, 6 and 9 of 12 rows
    assert [(one["player"], one["value"]) for one in ranked] == [("continued-sft", 0.75), ("1", 0.5), ("0", 0.25), ("start", 0.0)]
    reach = 1.959964 * (9 / 44 / 12) ** 0.5  # differences are 1 on 3 of 12 rows, else 0: variance 9/44
    assert ranked[0]["behind"] is None and ranked[3]["over_start"] is None
    assert ranked[1]["behind"] == pytest.approx({"value": 0.25, "low": 0.25 - reach, "high": 0.25 + reach}, abs=1e-6)
    assert ranked[2]["over_start"] == pytest.approx(ranked[1]["behind"])


def test_of_a_loss_the_smallest_stands_first_and_of_equals_the_simplest(made: Path) -> None:
    summary = summary_of(made)
    by_nll = ranking(made, list(rows_of(summary)), "nll_per_token", 0.95)
    values = [one["value"] for one in by_nll]
    assert values == sorted(values)
    assert all(one["behind"] is None or one["behind"]["value"] >= 0 for one in by_nll)
    for entry in (*summary["iterations"], *summary["controls"]):
        entry["scores"] = summary["start"]["scores"]
    equal = ranking(made, list(rows_of(summary)), "nll_per_token", 0.95)
    assert summary["best"]["iteration"] == 1 and [one["player"] for one in equal] == ["start", "1", "0", "continued-sft"]


def test_greedy_replies_of_the_start_are_an_arm(made: Path) -> None:
    summary = summary_of(made)
    summary["start"]["scores"]["exact_match_greedy"] = {"value": 0.9, "n": 12, "stderr": 0.1, "higher_is_better": True}
    first = ranking(made, list(rows_of(summary)), "exact_match", 0.95)[0]
    assert (first["player"], first["name"], first["value"]) == ("start", "start (SFT), greedy", 0.9)


@pytest.mark.parametrize("measured", [True, False])
def test_the_start_at_a_lower_temperature_is_an_arm_where_it_was_measured(measured: bool, made: Path) -> None:
    scores = {"greedy": {"value": 0.8, "n": 12, "stderr": 0.1}}
    if measured:
        scores["cool"] = {"value": 0.9, "n": 12, "stderr": 0.1}
    names = [one["name"] for one in ranking(made, list(rows_of(summary_of(made))), "exact_match", 0.95, scores)]
    assert ("start (SFT) at a lower temperature" in names) == measured


def test_a_summary_of_an_earlier_version_is_ranked_when_it_is_read(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    summary = summary_of(root)
    ranked = summary.pop("ranking")
    (root / "summary.json").write_text(json.dumps(summary))
    assert read_run(root).summary["ranking"] == ranked
    assert verdict(summary).startswith("Best iteration: 1 (exact match 0.500, start 0.000).")


# ---------------------------------------------------------------------------------------------- what to use


def test_a_control_that_wins_is_named_and_so_is_what_pays_instead() -> None:
    said = judged(arm("continued-sft", 0.8, gained=(1.8, 1.7, 1.9)), arm("1", 2.5, (1.7, 1.6, 1.8)), arm("start", 2.6, (1.8, 1.7, 1.9)))
    assert said.startswith("By NLL per token on 200 held-out prompts continued SFT is first with 0.800; iteration 1 2.500 (1.700 behind, ")
    assert "interval 1.600 to 1.800)" in said and "not significant" not in said
    assert "A control beats the game significantly: continued SFT is the better use of compute here." in said
    assert "`sparring export runs/x DIR --iteration continued-sft`" in said and "sparring docs which-game" in said
    assert said.endswith("Best iteration: 1 (NLL per token 2.500, start 2.600). The game ended - iterations: all 2 are played.")


def test_a_control_that_may_win_by_chance_is_called_that() -> None:
    said = judged(arm("continued-sft", 2.4), arm("1", 2.5, (0.1, -0.1, 0.3)), arm("start", 2.6, (0.2, 0.1, 0.3)))
    assert "A control is ahead of the game, but not significantly" in said and "0.300, not significant)" in said


@pytest.mark.parametrize(
    ("gained", "told"),
    [
        ((0.5, 0.3, 0.7), "Its gain over the start is significant. It cannot be distinguished from continued SFT. Use it: "),
        ((0.1, -0.1, 0.3), "Its gain over the start is not significant: more held-out rows would show whether it is real."),
        (None, "Its gain over the start is not significant"),
    ],
)
def test_an_iteration_that_stands_first(gained: Any, told: str) -> None:
    said = judged(arm("1", 2.1, gained=gained), arm("continued-sft", 2.2, (0.1, -0.1, 0.3)), arm("start", 2.6, (0.5, 0.3, 0.7)))
    assert told in said and "--iteration 1`" in said


def test_a_start_that_nothing_beats_is_kept() -> None:
    said = judged(arm("start", 2.0), arm("1", 2.5, (0.5, 0.4, 0.6)))
    assert "No trained model is above the start. Use the start: `sparring export runs/x DIR --iteration start`" in said


def test_a_start_that_is_first_by_its_greedy_replies_alone(made: Path) -> None:
    """Its greedy replies are an arm: against them count the greedy replies of the others too."""
    summary = summary_of(made)
    summary["ranking"] = [arm("start", 0.55), arm("1", 0.5, (0.05, -0.1, 0.2))]
    scores = {"start": summary["start"], "1": summary["iterations"][1]}
    for player, value in (("start", 0.55), ("1", 0.6)):
        scores[player]["scores"]["exact_match_greedy"] = {"value": value, "n": 12}
    greedy = "with greedy decoding iteration 1 has 0.600 and the start 0.550: compare them at the temperature that you will use."
    assert f"No trained model is above the start. But {greedy}" in verdict(summary)
    scores["1"]["scores"]["exact_match_greedy"]["value"] = 0.55
    assert greedy not in verdict(summary) and "Use the start: " in verdict(summary)


@pytest.mark.parametrize("first", ["start", "continued-sft"])
def test_another_target_is_proposed_only_after_a_game_of_human_winners(first: str) -> None:
    arms = arm(first, 2.0), arm("1", 2.5, (0.5, 0.4, 0.6))
    assert "a verified or majority target can" in judged(*arms)
    assert "a verified or majority target can" not in judged(*arms, rates={"rates": {}})


def test_no_iteration_has_no_order() -> None:
    assert verdict_lines({"best": None, "stop_reason": "indistinguishable: x", "ranking": []}) == [
        "No iteration was played. The game ended - indistinguishable: x."
    ]


def test_who_takes_an_iteration_below_a_control_is_told(made: Path) -> None:
    summary = summary_of(made)
    told = higher_ranked(summary, "1")
    assert told == "continued SFT is better (0.750 against 0.500): `--iteration continued-sft` selects it"
    for one in summary["ranking"]:
        one["value"] = 0.5
    assert higher_ranked(summary, "1") is None, "an equal one is not better"
    assert higher_ranked(summary, "continued-sft") is None and higher_ranked({"best": None}, "1") is None


# ---------------------------------------------------------------------------------------------- what is wrong


def well() -> tuple[dict[str, Any], Recipe]:
    """A summary with nothing wrong in it."""
    recipe = load_recipe({"run_dir": "x", "model": {"path": "m"}, "data": {"path": "d"}, "train": {"batch_size": 8}})
    score = {"truncated": 0.1, "length_auc": 0.6, "identical": 0.1, "real_logp": -40.0}
    scores = {name: {"value": value, "n": 100} for name, value in score.items()}
    iteration = {"scores": scores, "counts": {"duels": 50, "duels_all_identical": 2, "replies": 50}}
    iterations = [{"iteration": t, **json.loads(json.dumps(iteration))} for t in range(2)]
    summary = {"start": {"name": "start", "scores": scores}, "iterations": iterations, "controls": [], "best": None}
    return summary, recipe


def test_a_run_that_is_well_has_no_warning() -> None:
    assert signs(*well()) == []


@pytest.mark.parametrize(
    ("score", "value", "line", "remedy"),
    [
        ("truncated", 0.21, "Replies are cut: iteration 1 21 of 100.", "sampling.max_new_tokens (256)"),
        ("length_auc", 0.81, "Length alone distinguishes the replies from human ones (AUC): iteration 1 0.81.", "objective.nll_weight"),
        ("identical", 0.95, "Nearly all replies equal the human ones: iteration 1 95%.", "sampling.temperature"),
        ("real_logp", -41.0, "The held-out human replies lost log-prob: iteration 1 from -40.00 to -41.00 nats.", "train.lr"),
        ("duels", 7, "Fewer duels than a batch of 8: iteration 1 7.", "train.batch_size"),
        ("duels_all_identical", 46, "Nearly all duels are of equal replies: iteration 1 46 of 50.", "sampling.temperature"),
    ],
)
def test_every_sign_has_its_threshold_and_its_remedy(score: str, value: float, line: str, remedy: str) -> None:
    summary, recipe = well()
    entry = summary["iterations"][1]
    if score in entry["counts"]:
        entry["counts"] |= {"duels_all_identical": 0, score: value}
    else:
        entry["scores"][score]["value"] = value
    (told,) = warnings(signs(summary, recipe))
    assert told.startswith(line) and remedy in told


def test_duels_of_equal_replies_that_are_left_out_are_part_of_the_whole() -> None:
    """Under a loss of gaps they are no duels: 40 of 50 are too few for the warning, though ten are left; 46 are enough."""
    summary, recipe = well()
    for equal, told in ((40, []), (46, ["46 of 50"])):
        summary["iterations"][1]["counts"] = {"duels": 50 - equal, "duels_all_identical": equal, "replies": 50}
        assert [sign.amount for sign in signs(summary, recipe) if sign.what.startswith("Nearly all")] == told


def test_held_out_replies_that_the_checker_could_not_grade_are_told() -> None:
    summary, recipe = well()
    summary["start"]["held_out_failures"] = 2
    summary["iterations"][1]["held_out_failures"] = 1
    (told,) = warnings(signs(summary, recipe))
    assert told.startswith("Held-out replies could not be graded and count as wrong: start 2, iteration 1 1. `sparring grade`")


def test_the_log_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    summary, recipe = well()
    before = json.loads(json.dumps(summary))
    summary["iterations"][1]["scores"]["truncated"]["value"] = 0.5
    with caplog.at_level("WARNING", "sparring"):
        log_new_symptoms(before, summary, recipe)
        log_new_symptoms(summary, summary, recipe)
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("warning: Replies are cut: iteration 1 50 of 100.")


# ---------------------------------------------------------------------------------------------- what next


def test_what_comes_next_takes_the_arm_that_stands_first(made: Path) -> None:
    steps = dict(next_steps(made, summary_of(made)))
    assert steps["export"] == f"sparring export {made} NEW_FOLDER --iteration continued-sft"
    assert steps["look"] == f"sparring report {made}"
    (made / "report.html").touch()
    assert dict(next_steps(made, {}))["look"] == str(made / "report.html")
    (made / "report.html").unlink()
