"""The report of a run: what it says, what it costs, what it refuses, and that a game never fails by it."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Game
from made_run import make_run, recipe, some_words
from test_page import Tags
from zygote import Sabotage, working

from sparring.config import load_recipe
from sparring.data.tables import read_rows, write_table
from sparring.errors import UserError
from sparring.report.health import PAPER, differences_from_paper, signs, warnings
from sparring.report.outcome import REPORT, gain
from sparring.report.run_files import read_run, showcase_of
from sparring.report.run_page import report_page, write_report
from sparring.rundir import write_json
from sparring.selfplay import update_report

pytestmark = pytest.mark.long

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for tests that only read."""
    return make_run(tmp_path_factory.mktemp("made") / "run")


def packed(page: str) -> Any:
    found = re.search(r'id="sample-data">([^<]*)<', page)[1]
    return json.loads(zlib.decompress(base64.b64decode(found)))


# ------------------------------------------------------------------------------------------------ of a game that was played


def test_the_report_of_a_game(played: Game, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    result = played.command("report", "run", "--output", str(target))
    assert result.code == 0 and result.out == f"wrote {target}\n" and result.err == "", result.err
    page = target.read_text()
    text = Tags(page).text
    summary = played.json("summary.json")
    best = summary["best"]
    assert f"Best iteration: {best['iteration']} (NLL per token {best['value']:.3f}" in text and summary["stop_reason"] in text
    assert re.search(r"\d\.\d{3} behind, interval", text), "the samples of a run of today hold all that an interval needs"
    for part in ("start (SFT)", "iteration 1", "continued SFT", "say ab", "builtin:tiny", "Every start of this run", "Two-sample test"):
        assert part in text, part
    assert page.count("<svg") == 15
    samples = packed(page)
    assert [len(sample["replies"]) for sample in samples["samples"]] == [4] * 8
    rows = {row["row_id"]: row for row in read_rows(played.root / "iterations/001/evaluate/samples.parquet")}
    for sample in samples["samples"]:
        row, reply = rows[sample["id"]], sample["replies"][2]
        assert reply["own_logp"] == pytest.approx(row["reply_logp"], abs=1e-3) and reply["tokens"] == row["reply_tokens"]
        assert reply["margin"] == pytest.approx(row["duel_margin"], abs=1e-3) and sample["human"] == row["human"]


def test_a_game_draws_its_report_and_redoing_a_stage_takes_it_away(game: Game) -> None:
    game.write(report=True, iterations=1, controls=None)
    result = game.run()
    assert result.code == 0 and "was not rendered" not in result.err
    text = Tags((game.root / REPORT).read_text()).text
    assert "The game ended - iterations: the only one is played." in text and "State of the run at" in text
    broken = [working("iterations/000/train", 0, "crash")]
    assert game.run("--restart-from", "iterations/000/train", sabotage=broken).code == 1
    assert not (game.root / REPORT).exists(), "what it told of is gone"


def test_a_report_that_cannot_be_drawn_costs_the_game_nothing(game: Game) -> None:
    game.write(report=True, iterations=1, controls=None)
    result = game.run(sabotage=[Sabotage("sparring.report.run_page:report_page", do="crash", forever=True)])
    assert result.code == 0 and "Best iteration: 0" in result.out
    assert result.err.count("report.html was not rendered (RuntimeError; the traceback is in run.log)") == 2, (
        "after the iteration, and at the end"
    )
    assert "Traceback" not in result.err and "a crash made by a test" in (game.root / "run.log").read_text()


# ------------------------------------------------------------------------------------------------ what it says


def test_a_gain_and_its_interval_by_hand(made: Path) -> None:
    run = read_run(made)
    # 12 rows; right where row % 4 < player: 0 of the start's, 6 of iteration 1's. Differences 0 or 1, half each: sd sqrt(3/11)
    found = gain(run.players[2].samples, run.players[0].samples, "exact_match", 0.95)
    reach = 1.959964 * (3 / 11 / 12) ** 0.5
    assert found == pytest.approx({"value": 0.5, "low": 0.5 - reach, "high": 0.5 + reach}, abs=1e-6)


def test_a_gain_per_token_is_the_difference_of_the_scores(made: Path) -> None:
    run = read_run(made)
    scores = [player.row.scores["nll_per_token"]["value"] for player in run.players]
    found = gain(run.players[1].samples, run.players[0].samples, "nll_per_token", 0.9)
    assert found["value"] == pytest.approx(scores[0] - scores[1]) and found["low"] < found["value"] < found["high"], "less is better"
    wide = gain(run.players[1].samples, run.players[0].samples, "nll_per_token", 0.99)
    assert wide["low"] < found["low"]


def test_samples_of_an_earlier_version_have_no_interval_and_no_lengths(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    for path in root.rglob("samples.parquet"):
        rows = read_rows(path)
        old = ("row_id", "prompt", "human", "reply", "greedy", "finish_reason", "human_logp", "reply_logp")
        write_table(path, {key: [row[key] for row in rows] for key in old})
    summary = json.loads((root / "summary.json").read_text())
    del summary["ranking"]
    write_json(root / "summary.json", summary)
    page = write_report(root).read_text()
    assert "continued SFT is first with 0.750; iteration 1 0.500; iteration 0 0.250; start (SFT) 0.000." in Tags(page).text
    assert "Reply lengths" not in page
    assert packed(page)["samples"][0]["replies"][1]["margin"] is None


def test_the_recipes_benchmarks_and_how_they_were_asked(made: Path, tmp_path: Path) -> None:
    assert "Benchmarks" not in Tags(report_page(read_run(made))).text
    root = make_run(tmp_path / "run")
    summary = json.loads((root / "summary.json").read_text())
    for n, player in enumerate([summary["start"], *summary["iterations"], *summary["controls"]]):
        player["scores"]["letters@2/acc"] = {"value": 0.5 + n / 10, "n": 5, "stderr": 0.2, "higher_is_better": True}
    (root / "summary.json").write_text(json.dumps(summary))
    facts = {"harness": "0.4.13", "limit": 5, "chat_template": True}
    (root / "start" / "benchmarks").mkdir()
    write_json(root / "start" / "benchmarks" / "done.json", {"facts": facts})
    text = Tags(report_page(read_run(root))).text
    assert "letters@2/acc" in text and "0.600 ± 0.200" in text
    assert "Chat template applied, the first 5 items, lm-evaluation-harness 0.4.13." in text


def test_falling_human_replies_are_a_warning(made: Path, tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    summary = json.loads((root / "summary.json").read_text())
    summary["iterations"][1]["scores"]["real_logp"]["value"] = -99.5
    (root / "summary.json").write_text(json.dumps(summary))
    done = root / "iterations/000/train/done.json"
    done.write_text(json.dumps({"facts": {"human_logp_warning_at_step": 7}}))
    page = write_report(root).read_text()
    assert "lost log-prob: iteration 0 by step 7" in page and "to -99.50 nats" in page
    assert all(line.partition(":")[0] in page for line in warnings(signs(summary, read_run(root).recipe)))


def test_columns_that_nothing_reads_are_named_as_text(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    assert "nothing reads" not in Tags(report_page(read_run(root))).text
    done = json.loads((root / "data" / "done.json").read_text())
    done["facts"]["unused_columns"] = ["id", "<script>x</script>"]
    (root / "data" / "done.json").write_text(json.dumps(done))
    page = Tags(report_page(read_run(root)))
    assert "Columns of the rows that nothing reads: id, <script>x</script>." in page.text


def test_a_game_under_way_says_so(tmp_path: Path) -> None:
    text = Tags(report_page(read_run(make_run(tmp_path / "run", stop_reason=None)))).text
    assert "The game is not over." in text and "continued SFT" not in text and "reload the page" in text


def test_a_game_that_ended_without_an_iteration(made: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made, tmp_path / "run")
    summary = json.loads((root / "summary.json").read_text())
    (root / "summary.json").write_text(json.dumps({**summary, "iterations": [], "controls": [], "best": None}))
    text = Tags(write_report(root).read_text()).text
    assert "No iteration was played." in text and "Two-sample test" not in text


def test_the_papers_settings_are_those_of_its_recipe() -> None:
    assert differences_from_paper(load_recipe(RECIPES / "zephyr-7b-paper/recipe.yaml")) == {}


def test_differences_from_the_paper() -> None:
    found = {key: ours for key, (ours, _) in differences_from_paper(load_recipe(recipe(iterations=3))).items()}
    assert found["iterations"] == 3 and found["objective.beta"] == 1.0 and found["data.path"] == "builtin:tasks"
    assert not {"objective.loss", "train.batch_size", "sampling.temperature", "sft"} & set(found) and set(found) <= set(PAPER)
    beta = {"objective": {"beta": [0.1, 0.1, 0.1, 5.0]}, "iterations": 4, "train": {"epochs": [2.0, 2.0, 2.0, 2.0]}}
    assert not {"objective.beta", "train.epochs"} & set(differences_from_paper(load_recipe(recipe(**beta))))


def test_the_command_plays_the_shown_recipe(made: Path) -> None:
    page = write_report(made).read_text()
    assert f"sparring run {made / 'recipe.yaml'} run_dir=runs/made-again" in page
    shown = re.search(r'aria-label="The whole recipe"><code>(.*?)</code>', page, re.DOTALL)[1]
    assert yaml.safe_load(shown.replace("&#39;", "'").replace("&#34;", '"')) == yaml.safe_load((made / "recipe.yaml").read_text())


# ------------------------------------------------------------------------------------------------ size and hostile texts


def test_a_thousand_long_samples_stay_under_five_megabytes(tmp_path: Path) -> None:
    def text(row: int, player: int) -> str:
        return " ".join(some_words(row * 10 + part, player) for part in range(25))

    page = write_report(make_run(tmp_path / "run", rows=1000, text=text))
    assert page.stat().st_size < 5_000_000
    samples = packed(page.read_text())["samples"]
    assert len(samples) == 1000 and samples[999]["replies"][2]["text"] == text(999, 2), "nothing had to be cut"


def test_texts_without_end_are_cut_until_the_page_keeps_its_size(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", rows=150, text=lambda row, player: os.urandom(6000).hex()))
    assert page.stat().st_size < 5_000_000
    read = page.read_text()
    limit = int(re.search(r"Texts of over (\d+) characters are cut", read)[1])
    shown = packed(read)["samples"][7]["replies"][0]["text"]
    assert shown[limit:] == f"\n[cut by the report: {limit:,} of 12,000 characters]"


def test_hostile_texts_and_a_megabyte_reply(tmp_path: Path) -> None:
    hostile = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>\u202etfel\x00\ud800"
    root = make_run(tmp_path / "<b>run", rows=3, text=lambda row, player: hostile.replace("\ud800", "") + "x" * (10**6 if row == 1 else 0))
    showcase = root / "iterations/001/evaluate/showcase.json"
    showcase.write_text(json.dumps([{"prompt": hostile, "reply": hostile}]))
    page = write_report(root).read_text()
    tags = Tags(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 2 and not [one for one in tags if one[0] == "img"]
    assert "[U+202E]tfel[U+0000][U+D800]" in page and not re.search("[\u202e\x00]", page)
    reply = packed(page)["samples"][1]["replies"][0]["text"]
    assert len(reply) < 21_000 and "of 1,000,0" in reply


def answers(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "reply": prompt.upper()} for prompt in prompts]


def test_replies_are_shown_under_their_own_prompts(tmp_path: Path) -> None:
    """While a game resumes with another showcase, its start answers the new prompts and its iterations still the old ones."""
    root = make_run(tmp_path / "run")
    start, first = (replace(player, showcase=answers(*said)) for player, said in zip(read_run(root).players, ("ab", "cb"), strict=False))
    assert showcase_of([start, first]) == [("a", {start.name: "A"}), ("b", {start.name: "B", first.name: "B"}), ("c", {first.name: "C"})]


def test_numbers_that_are_none_are_no_json(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run")
    path = root / "iterations/000/evaluate/samples.parquet"
    rows = read_rows(path)
    rows[0]["human_logp"], rows[1]["duel_margin"] = float("nan"), float("inf")
    write_table(path, {key: [row[key] for row in rows] for key in rows[0]})
    found = packed(write_report(root).read_text())["samples"]
    assert found[0]["replies"][1]["human_logp"] is None and found[1]["replies"][1]["margin"] is None


# ------------------------------------------------------------------------------------------------ bad input


SAMPLES = "start/evaluate/samples.parquet"


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "not a run": (lambda root: (root / "recipe.yaml").unlink(), ("not a run directory: no recipe.yaml", "run_dir")),
    "no iteration": (lambda root: (root / "summary.json").unlink(), ("no iteration of this run is finished yet", "recipe.yaml` resumes")),
    "broken summary": (lambda root: (root / "summary.json").write_text("{"), ("summary.json", "not valid JSON")),
    "other summary": (lambda root: (root / "summary.json").write_text("{}"), ("summary.json", "changed by hand")),
    "no samples": (
        lambda root: (root / SAMPLES).unlink(),
        ("samples.parquet", "there is none", "--restart-from"),
    ),
    "broken samples": (lambda root: (root / SAMPLES).write_text("no"), ("samples.parquet", "cannot read")),
    "broken metrics": (lambda root: (root / "metrics.jsonl").write_text('{"a"\n'), ("metrics.jsonl", "cannot read")),
    "not UTF-8": (lambda root: (root / "metrics.jsonl").write_bytes(b"\xff\xfe"), ("metrics.jsonl", "cannot read")),
    "broken recipe": (lambda root: (root / "recipe.yaml").write_text("model: 3\n"), ("recipe.yaml", "model")),
    "a folder as a file": (lambda root: replace_by_folder(root / "metrics.jsonl"), ("metrics.jsonl", "directory")),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_named(case: str, made: Path, tmp_path: Path) -> None:
    break_it, parts = BROKEN[case]
    root = shutil.copytree(made, tmp_path / "run")
    break_it(root)
    with pytest.raises(UserError) as refused:
        write_report(root)
    assert not [part for part in parts if part not in str(refused.value)], refused.value


def test_the_command_refuses_without_a_traceback(game: Game) -> None:
    for run, part in (("nowhere", "error: nowhere: no such run directory"), (".", "no iteration of this run is finished yet")):
        result = game.command("report", run)
        assert result.code == 2 and part in result.err and "Traceback" not in result.err, result.err


def test_where_it_cannot_be_written(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the report"):
        write_report(made, tmp_path / "no" / "such" / "folder.html")


# ------------------------------------------------------------------------------------------------ while the game goes on


def test_a_page_younger_than_a_minute_is_kept_until_the_end(made: Path, tmp_path: Path) -> None:
    root = shutil.copytree(made, tmp_path / "run")
    page = root / REPORT
    page.write_text("an earlier one")
    update_report(root, is_over=False)
    assert page.read_text() == "an earlier one"
    os.utime(page, (0, 0))
    update_report(root, is_over=False)
    assert "<!doctype html>" in page.read_text()
    page.write_text("an earlier one")
    update_report(root, is_over=True)
    assert "<!doctype html>" in page.read_text()


def test_a_broken_run_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    update_report(tmp_path, is_over=True)
    warning, trace = caplog.records
    assert warning.levelno == logging.WARNING and "UserError" in warning.message and trace.levelno == logging.DEBUG and trace.exc_info
