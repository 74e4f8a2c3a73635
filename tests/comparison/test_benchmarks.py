"""Benchmarks in `sparring compare`: samples paired by what they are, and everything that must not be compared.

What the harness leaves is written by hand here, in its shape; tests/test_evaluate_command.py compares what it has really played.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Game

from sparring.comparison.command import as_json
from sparring.comparison.compare import RunComparison, compare
from sparring.comparison.page import html
from sparring.comparison.seeds import over_seeds_summary
from sparring.comparison.statistics import holm
from sparring.comparison.tables import legend, markdown
from sparring.errors import UserError
from sparring.rundir import RunDir

OWNERS = {"start": "start", "0": "iterations/000", "1": "iterations/001", "continued-sft": "continued-sft"}
START, BEST = [1, 0, 1, 0, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1, 0]


@pytest.fixture
def runs(tmp_path: Path, played: Game, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished game twice, as `run` and as `other`, in the current folder."""
    for name in ("run", "other"):
        shutil.copytree(played.root, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(task: str, number: int, value: float, **changes: Any) -> dict[str, Any]:
    found = {"doc_id": number, "doc_hash": f"{task} {number}", "target_hash": "a", "prompt_hash": f"? {number}", "filter": "none"}
    return {**found, "metrics": ["acc"], "acc": value, **changes}


def write(stage: Path, tasks: Mapping[str, Sequence[dict[str, Any]]], name: str = "letters", **changes: Any) -> dict[str, Any]:
    """What `sparring evaluate` leaves of one benchmark: `name` is a group where it is none of its tasks. Without `value` the mean."""
    flat = [row["acc"] for rows in tasks.values() for row in rows]
    found: dict[str, Any] = {
        "benchmark": {"task": name, "shots": None, "metric": None},
        "harness": "0.4.13",
        "seed": 1234,
        "chat_template": False,
        "results": {name: {"alias": name, "acc,none": changes.pop("value", sum(flat) / len(flat)), "acc_stderr,none": 0.1}},
        "group_subtasks": {} if name in tasks else {name: list(tasks)},
        "configs": {task: {"doc_to_text": "{{query}}", "dataset_kwargs": {"data_files": str(stage)}} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {task: {"original": len(rows), "effective": len(rows)} for task, rows in tasks.items()},
        "higher_is_better": {name: {"acc": True}},
        **changes,
    }
    (stage / "results").mkdir(exist_ok=True)
    (stage / "samples").mkdir(exist_ok=True)
    (stage / "results" / f"{name}.json").write_text(json.dumps(found))
    for task, rows in tasks.items():
        (stage / "samples" / f"{name}.{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {}


def evaluated(root: str, player: str, values: Sequence[float], model: str | None = None, folder: str = "letters", **changes: Any) -> None:
    """The benchmark as `sparring evaluate` has it, with these values for its samples."""
    rows = [sample("letters", number, value) for number, value in enumerate(values)]
    play(root, player, {"letters": rows}, model, folder, **changes)


def play(root: str, player: str, tasks: Any, model: str | None = None, folder: str = "letters", **changes: Any) -> None:
    own = RunDir(Path(root)).inputs_of(f"{OWNERS[player]}/measure") or {}
    inputs = {"model": model or own["model"]}
    RunDir(Path(root, "evaluations")).stage(f"{player}/{folder}", inputs, lambda stage: write(stage, tasks, **changes))


def by_recipe(root: str, player: str, values: Sequence[float]) -> None:
    """The same by `evaluate.benchmarks`."""
    run, owner = RunDir(Path(root)), OWNERS[player]
    tasks = {"letters": [sample("letters", number, value) for number, value in enumerate(values)]}
    inputs = {"model": (run.inputs_of(f"{owner}/measure") or {})["model"]}
    run.stage(f"{owner}/benchmarks", inputs, lambda stage: write(stage, tasks))


def cell(found: RunComparison, run: str, player: str, metric: str = "letters/acc") -> Any:
    return next(row.cells[metric] for row in found.rows if (row.run, row.player) == (run, player))


def names(found: RunComparison) -> list[str]:
    return [metric.name for metric in found.metrics]


def refused(*folders: str, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare([Path(folder) for folder in folders], **more)
    return str(caught.value)


# --- numbers


def test_samples_are_paired_by_hand(runs: Path) -> None:
    """Of 8 samples 3 are gained and none lost: gaps of mean 3/8, variance 15/56, McNemar's p 2/2^3. Their order in the file is nothing."""
    evaluated("run", "start", START)
    rows = [sample("letters", number, value) for number, value in enumerate(BEST)]
    play("other", "1", {"letters": rows[::-1]})
    found = compare([Path("run"), Path("other")])
    assert names(found) == ["exact_match", "nll_per_token", "letters/acc"]
    assert found.metrics[-1].unit == "samples" and found.metrics[-1].count == 8
    best = cell(found, "other", "1")
    assert best.score["value"] == 6 / 8 and best.paired.difference == pytest.approx(3 / 8)
    assert best.paired.stderr == pytest.approx(math.sqrt(15 / 56 / 8)) and best.paired.n == 8
    assert (best.paired.test, best.paired.p) == ("McNemar", pytest.approx(2 / 2**3))
    assert 0 <= best.paired.low < 3 / 8 < best.paired.high <= 1
    again = compare([Path("run"), Path("other")], "other:1", ["letters/acc"])
    assert cell(again, "run", "start").paired.difference == pytest.approx(-3 / 8) and names(again) == ["letters/acc"]


def test_one_family_of_tests(runs: Path) -> None:
    """Holm's correction over players, held-out metrics and benchmarks together, and the table says so."""
    for player, values in (("start", START), ("0", BEST), ("1", BEST[::-1])):
        evaluated("run", player, values)
    found = compare([Path("run")])
    cells = [cell for row in found.rows for cell in row.cells.values() if cell.paired]
    assert len(cells) == found.tests == 3 + 3 + 2
    assert [cell.p_holm for cell in cells] == pytest.approx(holm([cell.paired.p for cell in cells if cell.paired]))
    assert any("Holm over all 8 tests shown" in line for line in legend(found))
    assert any(line.startswith("Holm's correction covers ") and "benchmarks together" in line for line in legend(found))
    assert as_json(found)["holm_family"] == 8


def test_values_that_are_not_0_or_1_take_the_sign_flip_test(runs: Path) -> None:
    evaluated("run", "start", [0.5, 0.25])
    evaluated("run", "0", [0.75, 0.5])
    found = cell(compare([Path("run")]), "run", "0").paired
    assert found.test == "sign-flip" and found.difference == pytest.approx(0.25) and found.p == 0.5, "2 of 4 signs are as far from 0"


def test_a_group_is_the_samples_of_its_tasks(runs: Path) -> None:
    tasks = {name: [sample(name, n, float(n < right)) for n in range(4)] for name, right in (("a", 1), ("b", 3))}
    better = {**tasks, "b": [sample("b", n, 1.0) for n in range(4)]}
    play("run", "start", tasks, name="group")
    play("run", "0", better, name="group")
    found = compare([Path("run")])
    assert cell(found, "run", "0", "group/acc").paired.difference == pytest.approx(1 / 8) and found.metrics[-1].count == 8


def test_a_number_that_is_no_mean_over_samples_is_left_out(runs: Path) -> None:
    """A group that counts its tasks equally, or a metric of the whole: its samples' differences are not its difference."""
    for player in ("start", "0"):
        evaluated("run", player, START, value=0.9)
    found = compare([Path("run")])
    assert "letters/acc" not in names(found)
    assert "left out: letters/acc: is not a mean over samples (in run:start)" in found.notes
    assert "letters/acc is not a mean over samples" in refused("run", metrics=["letters/acc"])


def test_only_the_metric_that_was_asked_for(runs: Path) -> None:
    for player in ("start", "0"):
        evaluated("run", player, START, benchmark={"task": "letters", "shots": None, "metric": "acc_norm"})
    assert "letters/acc" not in names(compare([Path("run")]))
    assert names(compare([Path("run")], metrics=["letters/acc"])) == ["letters/acc"], "by its name"


def test_the_recipes_own_come_first_then_those_with_most_samples(runs: Path) -> None:
    for player in OWNERS:
        evaluated("run", player, [0.0])
        by_recipe("run", player, START)
    assert compare([Path("run")]).metrics[-1].count == 8
    for player in ("start", "0"):
        evaluated("other", player, [1.0])
        evaluated("other", player, START, folder="more")
    assert compare([Path("other")]).metrics[-1].count == 8


# --- what must not be compared


def test_other_versions_settings_and_shots_are_refused(runs: Path) -> None:
    evaluated("run", "start", START)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"versions": {"letters": 2.0}}, "version.letters: 1.0 -> 2.0"),
        ({"n-shot": {"letters": 5}}, "shots.letters: 0 -> 5"),
        ({"chat_template": True}, "chat_template: false -> true"),
        ({"configs": {"letters": {"doc_to_text": "Q: {{q}}"}}}, 'settings.letters.doc_to_text: "{{query}}" -> "Q: {{q}}"'),
    ]
    for change, line in changes:
        evaluated("other", "0", START, **change)
        text = refused("run", "other")
        assert text.startswith("letters/acc (run:start -> other:0): the task was run with different settings")
        assert line in text and "--metric" in text
        assert names(compare([Path("run"), Path("other")], metrics=["nll_per_token"])) == ["nll_per_token"], "nothing else is refused"
        shutil.rmtree(Path("other", "evaluations"))


def test_other_samples_are_refused_and_named(runs: Path) -> None:
    evaluated("run", "start", START)
    rows = [sample("letters", n, 1.0, doc_hash="changed" if n == 5 else f"letters {n}") for n in range(2, 8)]
    play("other", "0", {"letters": rows})
    text = refused("run", "other")
    assert "8 samples and 6, with 5 in both" in text and "(run:start -> other:0)" in text
    assert "only in run:start (3): letters 0 (" in text and "only in other:0 (1): letters 5 (" in text


def test_other_prompts_are_refused_unless_a_chat_template_makes_them(runs: Path) -> None:
    rows = [sample("letters", n, 1.0, prompt_hash="other") for n in range(8)]
    for template in (False, True):
        evaluated("run", "start", START, chat_template=template)
        play("other", "0", {"letters": rows}, chat_template=template)
        if template:
            assert any("different chat templates" in note for note in compare([Path("run"), Path("other")]).notes)
        else:
            assert "8 of 8 samples had different prompts" in refused("run", "other")
        for name in ("run", "other"):
            shutil.rmtree(Path(name, "evaluations"))


def test_who_has_not_played_is_told(runs: Path) -> None:
    for player in ("start", "1"):
        evaluated("run", player, START)
    found = compare([Path("run"), Path("other")])
    assert "letters/acc: not run on run:0, run:continued-sft, other" in found.notes
    assert cell(found, "other", "1").score is None and cell(found, "run", "1").paired is not None
    alone = compare([Path("other"), Path("run")])
    assert "letters/acc" not in names(alone), "the reference has not played it"
    assert any(note.startswith("left out: letters/acc: not run on other") for note in alone.notes)
    assert "letters/acc was not run on other:start" in refused("other", "run", metrics=["letters/acc"])
    assert "did you mean letters/acc?" in refused("run", metrics=["letters/ac"])


def test_benchmarks_of_an_earlier_player_are_left_out(runs: Path) -> None:
    evaluated("run", "start", START)
    evaluated("run", "0", BEST, model="trained otherwise")
    found = compare([Path("run")])
    assert "letters/acc" not in names(found) and any("run/evaluations/0/letters is of an earlier player" in note for note in found.notes)


def test_another_harness_is_told(runs: Path) -> None:
    evaluated("run", "start", START)
    evaluated("run", "0", START, harness="0.4.99")
    note = "letters/acc was run by lm-evaluation-harness 0.4.13 in run:start, 0.4.99 in run:0"
    assert note in compare([Path("run")]).notes


# --- where it is shown


def test_every_form_shows_it(runs: Path) -> None:
    for name, values in (("run", START), ("other", BEST)):
        evaluated(name, "start", values)
    found = compare([Path("run"), Path("other")])
    how = "letters/acc: task version 1.0, 0 shots, chat template not applied, lm-evaluation-harness 0.4.13."
    for text in (markdown(found), html(found)):
        assert "letters/acc (higher is better), 8 samples, difference from run: start (SFT)" in text and how in text and "+0.3750" in text
    told = as_json(found)["metrics"]["letters/acc"]
    asked = {"task_version": 1.0, "shots": 0, "chat_template": False, "harness": "0.4.13"}
    assert told == {"higher_is_better": True, "paired_over": "samples", "n": 8, "benchmark": asked}


def test_the_command(runs: Path, played: Game) -> None:
    game = Game(runs / "shell", played.zygote, {})
    evaluated("run", "start", START)
    evaluated("other", "start", BEST)
    result = game.command("compare", "../run", "../other", "--metric", "letters/acc")
    assert result.code == 0 and "letters/acc (higher is better), 8 samples" in result.out and "+0.3750" in result.out, result.err
    evaluated("other", "0", BEST[:5])
    result = game.command("compare", "../run", "../other")
    assert result.code == 2 and "8 samples and 5, with 5 in both" in result.err and "Traceback" not in result.err


def test_over_seeds(runs: Path) -> None:
    """The recipe's benchmarks are summed up over seeds; what was played of some players by hand cannot stop a run's end."""
    recipe = yaml.safe_load(Path("run", "recipe.yaml").read_text())
    recipe.pop("seed")
    Path("seeds").mkdir()
    Path("seeds", "recipe.yaml").write_text(yaml.safe_dump({**recipe, "run_dir": "seeds", "seeds": [0, 1]}))
    for seed, source in enumerate(("run", "other")):
        root = Path("seeds", f"seed-{seed}")
        shutil.move(source, root)
        same = 8 - 2 * seed
        for player in OWNERS:
            by_recipe(str(root), player, START if player == "start" else BEST[:same] + START[same:])
        for player, values in (("start", START), ("0", [1.0])):
            evaluated(str(root), player, values, name="by-hand")
    summary = over_seeds_summary(Path("seeds"))
    by_player = {one["player"]: one["scores"]["letters/acc"] for one in summary["players"]}
    assert by_player["start"]["values"] == [3 / 8, 3 / 8] and by_player["0"]["values"] == [6 / 8, 5 / 8]
    test = next(one for one in summary["tests"][0]["players"] if one["player"] == "0")["scores"]["letters/acc"]["difference"]
    assert test["test"] == "paired t" and test["difference"] == pytest.approx(5 / 16)
