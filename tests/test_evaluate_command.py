"""`sparring evaluate`, `sparring judge` and the recipe's benchmarks, as a person types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Game
from judging import JudgeServer, write_questions
from zygote import ADVANCE, Sabotage, begun

CHOICE = {
    "task": "letters",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "choices.jsonl"}},  # from the folder where the command is started
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
EVALUATE = ["--task", "letters", "--task-folder", "tasks"]
BENCHMARKS = "evaluate.benchmarks={tasks: [letters], task_folders: [tasks], limit: 5}"


def needs_harness() -> None:
    pytest.importorskip("lm_eval", reason="make test-harness has lm-evaluation-harness")


@pytest.fixture
def copy(copy: Game) -> Game:
    """A finished game that may be changed, with a task beside it."""
    (copy.folder / "tasks").mkdir()
    (copy.folder / "tasks" / "letters.yaml").write_text(yaml.safe_dump(CHOICE))
    rows = [{"query": f"say {chr(97 + n)}", "choices": ["a", "b", "cd"], "gold": n % 3} for n in range(8)]
    (copy.folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return copy


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    started = JudgeServer()
    yield started
    started.close()


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def judge(game: Game, server: JudgeServer, *more: str, target: str = "run") -> Any:
    questions = str(write_questions(game.folder))
    given = ["--judge", server.url, "--judge-model", "judge", "--questions", questions, "--max-new-tokens", "3"]
    return game.command("judge", target, *given, *more)


def test_evaluates_the_start_and_the_best(copy: Game) -> None:
    """Finished results are kept; those of other settings lie beside them, and the run itself is never touched."""
    needs_harness()
    before = copy.state()
    result = copy.command("evaluate", "run", *EVALUATE)
    assert result.code == 0, result.err
    best = copy.json("summary.json")["best"]["iteration"]
    assert "Chat template not applied, all items, lm-evaluation-harness 0.4.13." in result.out
    assert "start" in result.out and f"iteration {best}" in result.out
    stage = copy.root / "evaluations" / "start" / "letters"
    scores = read(stage / "scores.json")
    assert scores["letters/acc"]["n"] == 8 and read(copy.root / "evaluations" / "letters.json")["start"] == scores
    again = copy.command("evaluate", "run", *EVALUATE)
    assert again.out == result.out and "benchmarks: letters" in result.err and "benchmarks: letters" not in again.err
    other = copy.command("evaluate", "run", *EVALUATE, "--chat-template", "--limit", "4", "--player", "start")
    assert "Chat template applied, the first 4 items" in other.out and "recomputing" not in other.err
    beside = copy.root / "evaluations" / "start" / "letters-limit-4-chat-template"
    assert read(beside / "scores.json")["letters/acc"]["n"] == 4 and read(stage / "scores.json") == scores
    with (copy.folder / "choices.jsonl").open("a") as rows:
        rows.write(json.dumps({"query": "say d", "choices": ["d", "e"], "gold": 0}) + "\n")
    changed = copy.command("evaluate", "run", *EVALUATE, "--player", "start")
    assert "recomputing " in changed.err and ": local.data: " in changed.err and read(stage / "scores.json")["letters/acc"]["n"] == 9
    assert {name: was for name, was in copy.state().items() if not name.startswith("evaluations/")} == before


def test_what_was_played_is_compared(copy: Game) -> None:
    """Start and best by `sparring evaluate`, then everybody by the recipe: the comparison's numbers are those of scores.json."""
    needs_harness()
    assert copy.command("evaluate", "run", *EVALUATE).code == 0
    best = str(copy.json("summary.json")["best"]["iteration"])
    result = copy.command("compare", "run", "--json", "c.json")
    assert result.code == 0 and "letters/acc (higher is better), 8 samples, difference from run: start (SFT)" in result.out, result.err
    assert "note: letters/acc: not run on" in result.out and "chat template not applied, lm-evaluation-harness 0.4.13" in result.out
    compared = {one["player"]: one["scores"]["letters/acc"] for one in read(copy.folder / "c.json")["players"]}
    for player, folder in (("start", "start"), (best, best)):
        score = read(copy.root / "evaluations" / folder / "letters" / "scores.json")["letters/acc"]
        assert compared[player]["value"] == pytest.approx(score["value"]) and compared[player]["stderr"] == pytest.approx(score["stderr"])
    values = [[json.loads(line)["acc"] for line in lines(copy.root / "evaluations" / folder / "letters")] for folder in (best, "start")]
    gaps = [mine - theirs for mine, theirs in zip(*values, strict=True)]
    assert compared[best]["difference"]["difference"] == pytest.approx(sum(gaps) / 8) and compared[best]["difference"]["test"] == "McNemar"
    assert copy.run(BENCHMARKS, "report=true").code == 0
    assert copy.command("compare", "run", "--metric", "letters/acc", "--json", "c.json").code == 0
    assert all(one["scores"]["letters/acc"]["n"] == 5 for one in read(copy.folder / "c.json")["players"])
    page = (copy.root / "report.html").read_text()
    assert "letters/acc" in page and "Chat template not applied, the first 5 items, lm-evaluation-harness 0.4.13." in page


def lines(stage: Path) -> list[str]:
    return (stage / "samples" / "letters.letters.jsonl").read_text().splitlines()


def test_evaluates_a_model_by_itself(copy: Game) -> None:
    needs_harness()
    result = copy.command("evaluate", "builtin:tiny", *EVALUATE, "--out", "results")
    assert result.code == 0, result.err
    folder = copy.command("evaluate", "results/base/model", *EVALUATE)
    assert folder.code == 0, folder.err
    assert read(copy.folder / "results/letters.json") == read(copy.folder / "evaluations/model/letters.json")


def test_a_model_without_a_chat_template(copy: Game, server: JudgeServer) -> None:
    """A base model: its benchmarks need none."""
    needs_harness()
    shutil.copytree(copy.root / "sft" / "model", copy.folder / "bare")
    (copy.folder / "bare" / "chat_template.jinja").unlink()
    result = copy.command("evaluate", "bare", *EVALUATE)
    assert result.code == 0 and "Chat template not applied" in result.out, result.err
    wrapped, judged = copy.command("evaluate", "bare", *EVALUATE, "--chat-template"), judge(copy, server, target="bare")
    assert wrapped.code == judged.code == 2
    assert all("bare: the model has no chat template" in one.err and "model.chat_template" not in one.err for one in (wrapped, judged))


def test_benchmarks_in_a_recipe(copy: Game) -> None:
    """Every player of the game is played through them without any training; they stand in the summary, and go with the option."""
    needs_harness()
    before = copy.state()
    killed = copy.run(BENCHMARKS, sabotage=[begun("iterations/001/benchmarks")])
    assert killed.code == -9, killed.err
    result = copy.run(BENCHMARKS)
    assert result.code == 0, result.err
    assert "Chat template not applied, the first 5 items" in result.out and "letters/acc" in result.out
    summary = copy.json("summary.json")
    everybody = [summary["start"], *summary["iterations"], *summary["controls"]]
    assert len(everybody) == 4 and all(entry["scores"]["letters/acc"]["n"] == 5 for entry in everybody)
    assert {name: was for name, was in copy.state().items() if "/benchmarks/" not in name} == before
    assert copy.run(BENCHMARKS).out == result.out
    without = copy.run()
    assert without.code == 0 and "letters" not in without.out and "letters/acc" not in copy.json("summary.json")["start"]["scores"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--suite, --task, --task-folder, --seed: no benchmark is named; name a suite or a task"),
        (["--suite", "papers-extra"], "no suite named 'papers-extra'; did you mean paper-extra?"),
        (["--suite", "mt-bench"], "sparring judge RUN|MODEL --questions question.jsonl --judge URL --judge-model NAME"),
        (["--task", "a b"], "'a b' names no task"),
        (["--task", "letters", "--task-folder", "nowhere"], "no folder with task files (*.yaml)"),
        (["--task", "letters", "--task-folder", "tasks", "--player", "7"], "this run has no player '7'"),
        (["--task", "letters:acc_norm", "--task-folder", "tasks"], "letters: the metric 'acc_norm' is not defined for this task"),
    ],
)
def test_bad_input(copy: Game, given: list[str], message: str) -> None:
    needs_harness()
    result = copy.command("evaluate", "run", *given)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err


def test_judges_players(copy: Game, server: JudgeServer) -> None:
    """Answers in two turns by the run's engine; a second call asks nobody; another judge keeps the answers."""
    result = judge(copy, server)
    assert result.code == 0, result.err
    best = copy.json("summary.json")["best"]["iteration"]
    assert "Grades from 1 to 10, by judge" in result.out and "7.000" in result.out
    assert "start: 6 judgments, 0 of them unreadable" in result.out and len(server.bodies) == 12
    [folder] = (copy.root / "evaluations" / "start").glob("questions-*")
    first = read(folder / "answers" / "answers.json")
    assert {id: len(turns) for id, turns in first.items()} == {"1": 2, "2": 2, "3": 2} and f"iteration {best}: 6 judgments" in result.out
    texts = [body["messages"][-1]["content"] for body in server.bodies]
    assert any(first["2"][0] in text and "second user turn" in text for text in texts)
    assert len((folder / "grades-judge" / "judgments.jsonl").read_text().splitlines()) == 6
    assert judge(copy, server).out == result.out and len(server.bodies) == 12
    server.models["other"] = None
    written = (folder / "answers" / "answers.json").stat().st_mtime_ns
    assert judge(copy, server, "--judge-model", "other", "--player", "start").code == 0
    assert len(server.bodies) == 18 and (folder / "answers" / "answers.json").stat().st_mtime_ns == written


def test_compares_players(copy: Game, server: JudgeServer) -> None:
    """The rival itself is not judged against itself."""
    server.says = lambda text: "Verdict: A"
    result = judge(copy, server, "--against", "start", "--player", "0", "--player", "start")
    assert result.code == 0, result.err
    assert "Win rate against start, a tie counts half" in result.out and "0.500" in result.out
    assert len(server.bodies) == 12
    against_model = judge(copy, server, "--against", "../game/run/sft/model", "--player", "1")
    assert against_model.code == 0 and len(server.bodies) == 24, against_model.err


def test_models_of_one_name_have_their_own_answers(copy: Game, server: JudgeServer) -> None:
    """Every player's folder is called model: neither may stand in for the other."""
    server.says = lambda text: "Verdict: tie"
    mine, theirs = "run/sft/model", "run/iterations/000/train/model"
    result = judge(copy, server, "--against", theirs, target=mine)
    assert result.code == 0, result.err
    folders = sorted(path.parent.parent for path in (copy.folder / "evaluations" / "model").glob("*/questions-*/answers"))
    assert len(folders) == 2 and folders[0].name == "model" and folders[1].name.startswith("model-")
    for folder, model in zip(folders, (mine, theirs), strict=True):
        assert judge(copy, server, "--out", str(copy.folder / "alone" / folder.name), target=model).code == 2  # a tie is no grade
        (answers,) = (copy.folder / "alone" / folder.name).glob("*/questions-*/answers")
        assert read(answers / "answers.json") == read(folder / answers.parent.name / "answers" / "answers.json")
    same = judge(copy, server, "--against", mine, target=mine)
    assert same.code == 2 and "has the same weights as the model that it would be compared with" in same.err


def test_no_judgment_is_paid_for_twice(copy: Game, server: JudgeServer) -> None:
    """More questions ask for the new ones alone, fewer for none, and neither takes the place of the other, nor does a file of that name."""
    first = judge(copy, server, "--player", "start", "--limit", "1")
    assert first.code == 0 and len(server.bodies) == 4, first.err  # of two categories the first question
    everything = judge(copy, server, "--player", "start")
    assert everything.code == 0 and len(server.bodies) == 6
    assert judge(copy, server, "--player", "start", "--limit", "1").out == first.out
    (copy.folder / "other").mkdir()
    other = write_questions(copy.folder / "other", [{"question_id": 1, "category": "math", "turns": ["Why?"]}])
    assert judge(copy, server, "--player", "start", "--questions", str(other)).code == 0 and len(server.bodies) == 7
    assert judge(copy, server, "--player", "start").out == everything.out and len(server.bodies) == 7
    kept = (copy.root / "evaluations" / "start").glob("questions-*/grades-judge/judgments.jsonl")
    assert sorted(len(file.read_text().splitlines()) for file in kept) == [1, 4, 6]


def test_grades_with_and_without_references(copy: Game, server: JudgeServer) -> None:
    """A reference changes what is asked about its own question alone; the grades without it stay."""
    plain = judge(copy, server, "--player", "start")
    answers = {"question_id": 2, "choices": [{"turns": ["This.", "That."]}]}
    (copy.folder / "references.jsonl").write_text(json.dumps(answers) + "\n")
    before = len(server.bodies)
    referred = judge(copy, server, "--player", "start", "--references", "references.jsonl")
    assert referred.code == 0 and len(server.bodies) == before + 2, referred.err
    assert judge(copy, server, "--player", "start").out == plain.out and len(server.bodies) == before + 2


def test_names_are_no_markup(copy: Game, server: JudgeServer) -> None:
    server.models["[/b]judge"] = None
    questions = [{"question_id": 1, "category": "[/b]", "turns": ["a?"]}]
    given = ["--judge", server.url, "--judge-model", "[/b]judge", "--questions", str(write_questions(copy.folder, questions))]
    result = copy.command("judge", "run", *given, "--max-new-tokens", "3", "--player", "start")
    assert result.code == 0 and "by [/b]judge" in result.out and "grade/[/b]" in result.out, result.err


def test_a_killed_judging_goes_on(copy: Game, server: JudgeServer) -> None:
    stored = Sabotage(ADVANCE, args=" 3/6 judgments$")  # the fourth is in the file, and not counted yet
    questions = str(write_questions(copy.folder))
    given = ["--judge", server.url, "--judge-model", "judge", "--questions", questions, "--player", "start", "--max-new-tokens", "3"]
    assert copy.command("judge", "run", *given, "--concurrency", "1", sabotage=[stored]).code == -9
    asked = len(server.bodies)
    assert copy.command("judge", "run", *given).code == 0
    assert len(server.bodies) - asked == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--key-env", "NO_SUCH_KEY"], "--key-env: the environment variable NO_SUCH_KEY is not set"),
        (["--judge", "localhost:1"], "--judge: 'localhost:1': not an http or https URL"),
        (["--concurrency", "0"], "--concurrency: 0: "),
        (["--max-new-tokens", "600"], "--max-new-tokens: question 1: "),
        (["--judge-model", "gone"], "the server refuses /chat/completions: 404"),
        (["--against", "7"], "this run has no player '7'"),
    ],
)
def test_bad_input_of_a_judge(copy: Game, server: JudgeServer, given: list[str], message: str) -> None:
    result = judge(copy, server, *given)
    assert result.code == 2 and message in result.err and "Traceback" not in result.err


def test_a_judge_that_is_not_there(copy: Game, server: JudgeServer) -> None:
    server.close()
    result = judge(copy, server, "--retries", "0")
    assert result.code == 2 and "no usable answer after 1 attempts" in result.err and "cannot connect" in result.err
