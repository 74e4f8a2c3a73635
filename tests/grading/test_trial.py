"""`sparring check-checker`: the rows it tries a checker on, and what it says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Game, write_rows
from zygote import Result, Zygote

from sparring.checkers.probe import KINDS, ProbeReport, Tried
from sparring.errors import UserError
from sparring.grading.trial import Trial, faults, trial_rows, try_checker, verdict

PATTERN = r"#### (\d+)"
WORKED = [{"prompt": f"What is {n} + 5?", "completion": f"{n} and 5 more. #### {n + 5}", "gold": n + 5} for n in range(300)]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_rows(tmp_path / "rows.jsonl", WORKED))


def own(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(f"def f(completions, answer): return [{body} for c, a in zip(completions, answer)]")
    return f"{folder / 'mine.py'}:f"


def tried(checker: str, source: str, pattern: str | None = None, answer: str | None = "gold", limit: int = 300) -> Trial:
    return try_checker(checker, source, pattern, answer, limit)


def test_a_checker_that_behaves(data: str) -> None:
    trial = tried("number", data, PATTERN)
    assert trial.faults == [] and trial.report["human reply"].tried and verdict(trial).startswith("Verdict: no fault found")
    measured, upper = trial.false_positives or (1, 1)
    assert measured == 0 and upper == pytest.approx(1.96**2 / (300 + 1.96**2), abs=1e-4)  # Wilson's bound for 0 of n


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1.0", "'empty'"),
        ("0.0", "it fails 100 of 100 human replies"),
        ("float(a in c[0]['content'])", "it suffices to mention it"),
        ("float(c[0]['content'] != '')", "'prompt'"),
        ("1 / ('#' in c[0]['content'])", "replies; a run stops if more than 5% fail"),
        ("0.9", "it fails 100 of 100 human replies"),
    ],
)
def test_checkers_that_do_not(tmp_path: Path, data: str, body: str, said: str) -> None:
    trial = tried(own(tmp_path, body), data, limit=100)
    assert said in verdict(trial) and verdict(trial).startswith("Verdict: do not use it as it is: ")


@pytest.mark.parametrize(
    ("name", "tolerated", "too_many"),
    [("human reply", 95, 94), ("prompt", 1, 2), ("I do not know", 1, 2), ("human reply of another row", 1, 2)],
)
def test_how_much_is_tolerated(name: str, tolerated: int, too_many: int) -> None:
    assert list(faults(report(**{name: tolerated}))) == []
    (fault,) = faults(report(**{name: too_many}))
    assert "of 100" in fault and name.removesuffix("reply") in fault


def test_a_mention_is_enough_where_most_pass_in_both_orders() -> None:
    assert list(faults(report(**{"sprayed": 100, "sprayed, reversed": 50}))) == []
    (fault,) = faults(report(**{"sprayed": 51, "sprayed, reversed": 51}))
    assert "102 of 200" in fault


def report(**passed: int) -> ProbeReport:
    """100 replies of each kind; those that pass as named, else as they should."""
    kinds = (Tried(name, should, 100, passed.get(name, 100 * bool(should)), 0, ()) for name, should in KINDS.items())
    return ProbeReport(100, tuple(kinds))


def test_rows_of_a_recipe_a_run_and_a_file(played: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, run, file = (str(played.folder / name) for name in ("recipe.yaml", "run", "rows.jsonl"))
    monkeypatch.chdir(played.folder)
    found = [trial_rows(source, None, 500) for source in (recipe, run, file)]
    assert found[0].asked == found[1].asked == found[2].asked and found[0].there == 32
    assert [rows.recipe is not None for rows in found] == [True, True, False]
    assert tried("exact", recipe, answer=None).checker == {"kind": "exact", "answer_pattern": "[0-9]+$"}, "the recipe's pattern"
    assert tried("exact", recipe, "[a-z]", answer=None).checker["answer_pattern"] == "[a-z]"


def test_a_folder_of_data_is_no_run(tmp_path: Path, data: str) -> None:
    assert trial_rows(str(tmp_path), "gold", 500).there == 300


def test_prompts_with_answers_and_no_replies(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "gold": row["gold"]} for row in WORKED]
    trial = tried("number", str(write_rows(tmp_path / "prompts.jsonl", rows)), PATTERN)
    assert trial.report.rows == 300 and trial.false_positives is None and not trial.faults
    assert "whether right replies pass was not tried" in verdict(trial)


def test_lists_of_answers_that_could_not_be_made_are_told(tmp_path: Path, data: str) -> None:
    """A mention of the right answer suffices, but that is only in the human reply, and the function alone knows where."""
    one = "float('####' in c[0]['content'] and h.split()[-1] in c[0]['content'].split())"
    (tmp_path / "loose.py").write_text(f"def f(completions, human_reply): return [{one} for c, h in zip(completions, human_reply)]")
    trial = tried(f"{tmp_path / 'loose.py'}:f", data, answer=None)
    assert trial.report["sprayed"].tried == 0 and not trial.faults
    assert "no lists with the right answer were tried" in verdict(trial) and "no fault found" not in verdict(trial)


def test_a_limit_draws_rows_whatever_their_order(tmp_path: Path, data: str) -> None:
    turned = str(write_rows(tmp_path / "turned.jsonl", WORKED[::-1]))
    first, second = trial_rows(data, "gold", 10), trial_rows(turned, "gold", 10)
    assert first.asked == second.asked and len(first.asked) == 10 and first.there == 300


def test_the_answer_column_is_what_is_right(tmp_path: Path) -> None:
    """The human replies are all wrong by it."""
    rows = [{**row, "gold": row["gold"] + 1} for row in WORKED]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert "it fails 300 of 300 human replies" in verdict(tried("number", path, PATTERN))
    assert tried("number", path, PATTERN, answer=None).faults == []


@pytest.mark.parametrize(
    ("name", "rows", "answer", "said"),
    [
        ("none.jsonl", None, None, "no such data file"),
        ("rows.jsonl", WORKED[:3], "glod", "there is no column 'glod' (--answer)"),
        ("rows.jsonl", WORKED[:3], "", "--answer"),
        ("rows.jsonl", [{"prompt": "a", "gold": ""}], "gold", "it is not known how a checker should grade"),
        ("rows.jsonl", [{"prompt": "a", "gold": 3}], None, "name the column with the answer: --answer"),
        ("rows.jsonl", [{"prompt": "a", "gold": [3]}], "gold", "read as prompts without replies: {path}, line 1: gold is a list"),
        ("rows.jsonl", [{"q": "a", "r": "b"}], None, "data.columns of a recipe: {prompt: question"),
        ("recipe.yaml", [], "gold", "a recipe names the column itself"),
    ],
)
def test_rows_that_cannot_be_tried(tmp_path: Path, name: str, rows: list[dict[str, object]] | None, answer: str | None, said: str) -> None:
    if rows is not None:
        write_rows(tmp_path / name, rows)
    with pytest.raises(UserError) as caught:
        trial_rows(str(tmp_path / name), answer, 10)
    assert said.replace("{path}", str(tmp_path / name)) in str(caught.value)


# ---------------------------------------------------------------------------------------------- the command


def run(zygote: Zygote, folder: Path, *args: str) -> Result:
    return zygote.run(["check-checker", *args], folder)


def test_what_is_printed(zygote: Zygote, tmp_path: Path, data: str) -> None:
    own(tmp_path, "float(a in c[0]['content'])")
    result = run(zygote, tmp_path, "mine.py:f", "rows.jsonl", "--answer", "gold", "--limit", "50")
    assert result.code == 0 and "50 of 300 rows of rows.jsonl, chosen by a hash" in result.out
    assert "Verdict: do not use it as it is" in result.out and "it suffices to mention it" in result.out
    strict = run(zygote, tmp_path, "number", "rows.jsonl", "--pattern", PATTERN)
    assert strict.code == 0 and "Verdict: no fault found" in strict.out
    cells = [line.split("│")[1:-1] for line in strict.out.splitlines() if line.startswith("│") and "%" in line]
    shares = {row[0].strip(): row[1].strip() for row in cells}
    assert shares == {"50%": "1.0%", "10%": "8.3%", "2%": "32.9%"}  # .01 (1 - a) / (.01 (1 - a) + a)


REFUSED = [("random", "CHECKER: random shuffles"), ("exact", "CHECKER: exact needs --pattern"), ("x.py:f", "x.py does not exist")]


@pytest.mark.parametrize(("checker", "said"), REFUSED)
def test_checkers_that_cannot_be_had(zygote: Zygote, tmp_path: Path, data: str, checker: str, said: str) -> None:
    result = run(zygote, tmp_path, checker, "rows.jsonl")
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_no_model_library_is_loaded(tmp_path: Path, data: str) -> None:
    code = (
        "import sys, json\nfrom sparring.grading.trial import try_checker, verdict\n"
        f"verdict(try_checker('number', {data!r}, None, None, 20))\n"
        "print(json.dumps([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
