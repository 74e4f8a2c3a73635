"""What a person can get wrong: a message that says what, where, the rule and the remedy; exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Game, rows, write_rows
from test_kill_and_resume import assert_same_outcome, outcome
from zygote import Result, Sabotage, Zygote, begun, committed, working

from sparring.data.records import Conversation, Example
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.stages.check import _check_tokens

SPARRING = str(Path(sys.executable).with_name("sparring"))


def refused(result: Result, *parts: str) -> None:
    """Exit code 2 and an error, not a traceback, that holds every one of `parts`."""
    assert result.code == 2, (result.code, result.out, result.err)
    assert "Traceback" not in result.err and "Traceback" not in result.out
    message = result.err[result.err.index("error: ") :]
    assert not [part for part in parts if part not in message], message


def replayed(game: Game) -> None:
    """The same command goes through, and every stage was there already."""
    before = game.state()
    result = game.run()
    assert result.code == 0 and game.state() == before, result.err


# ---------------------------------------------------------------------------------------------- recipe


def test_missing_recipe_in_the_real_command(tmp_path: Path) -> None:
    done = subprocess.run([SPARRING, "run", "recipes/tyni.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    remedy = "check the path; builtin:tiny is a working example, and `sparring init` writes one"
    assert done.stderr == f"error: recipes/tyni.yaml: no such recipe file\n  -> {remedy}\n"
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine.yaml").write_text("run_dir: runs/x")
    done = subprocess.run([SPARRING, "run", "mine.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "error: mine.yml: no such recipe file\n  -> did you mean mine.yaml?\n"


@pytest.mark.parametrize(
    "write, parts",
    [
        (
            lambda path: path.mkdir(),
            ["recipe.yaml: cannot read the recipe: Is a directory", "such as recipe.yaml/recipe.yaml"],
        ),
        (lambda path: path.write_bytes(b"run_dir: \xff\xfe"), ["recipe.yaml", "not UTF-8"]),
        (lambda path: path.write_text("run_dir: x\nmodel: {path: [\n"), ["recipe.yaml, line", "not valid YAML"]),
        (lambda path: path.write_text(""), ["recipe.yaml", "mapping of keys to values, this is nothing", "`sparring docs recipe`"]),
    ],
    ids=["folder", "not text", "not YAML", "empty"],
)
def test_unreadable_recipe(game: Game, write: Callable[[Path], Any], parts: list[str]) -> None:
    (game.folder / "recipe.yaml").unlink()
    write(game.folder / "recipe.yaml")
    refused(game.run(), *parts)
    refused(game.command("recipe", "recipe.yaml"), *parts)
    assert not game.root.exists()


def test_typical_mistakes_in_a_recipe(game: Game) -> None:
    game.write(train__lr="5e-7 ", sampling__temperature=-1, iteratons=3, objective__beta=[0.1, 0.1, 5.0])
    refused(
        game.run(),
        "recipe.yaml: 4 problems in the recipe",
        "train.lr: '5e-7 ' is refused; wanted: number above 0",
        "but this is text",
        "sampling.temperature: -1 is refused; wanted: number at least 0",
        "iteratons: unknown key; did you mean iterations?",
        "objective.beta: [0.1, 0.1, 5.0]: 3 values, but iterations is 2",
        "`sparring docs recipe`",
    )
    game.write(objective__betta=0.1)
    refused(game.run(), "recipe.yaml: 1 problem in the recipe", "objective.betta: unknown key; did you mean objective.beta?")
    game.write()
    refused(game.run("train.lr=1e-6x"), "train.lr", "1e-6x", "from the override 'train.lr=1e-6x'")
    refused(game.run("lr=1e-6"), "lr: unknown key; did you mean sft.lr or train.lr or controls.lr or controls.search.lr?")
    refused(game.run("train.lr"), "'train.lr' is not of the form section.key=value", "write KEY=VALUE, for example train.lr=1e-6")
    assert not game.root.exists()


# ---------------------------------------------------------------------------------------------- data

BROKEN = '{"prompt": "p", "completion": "c"}\n{"prompt": "p2", completion: "c"}\n'


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("rows.jsonl", None, ["rows.jsonl: no such data file", "check data.path"]),
        ("rows.jsonl", "", ["rows.jsonl: the data is empty"]),
        ("rows.jsonl", "\n\n", ["rows.jsonl: the data is empty"]),
        ("rows.jsonl", BROKEN, ["rows.jsonl, line 2: broken JSON", "column 18", "one JSON object per line"]),
        (
            "rows.jsonl",
            '{"prompt": "p", "completion": "c"}\n{"prompt": "q"}\n',
            ["rows.jsonl, line 2: row without a reply", "fix the row"],
        ),
        (
            "rows.jsonl",
            '{"messages": [{"role": "user", "content": "q"}]}\n',
            ["rows.jsonl, line 1: row without a reply", "roles of its turns: user"],
        ),
        (
            "rows.jsonl",
            '{"question": "q", "answer": "a", "n": 1}\n',
            ["no known shape fits the columns: question, answer, n", "known shapes: messages", "data.columns: {prompt: question"],
        ),
        ("rows.jsonl", '{"prompt": "p", "completion": "c"}\n' * 9, ["held_out is 8, but 1 rows remain", "change data.held_out"]),
        ("rows.jsonl", '{"prompt": " ", "completion": "c"}\n', ["no row is left of 1: dropped 1 for an empty prompt or reply"]),
        ("rows.jsonl", b'{"prompt": "\xff"}\n', ["rows.jsonl, line 1: not UTF-8: byte 0xff", "save the file in UTF-8"]),
        ("rows.json", '[{"prompt": "p"},]', ["rows.json, line 1: broken JSON", "list of rows"]),
        ("rows.csv", "prompt,completion\na,b,c\n", ["rows.csv, line 2: broken CSV: 3 cells, but the header names 2 columns"]),
        ("rows.parquet", "not parquet", ["rows.parquet: cannot read the parquet file"]),
        ("rows.xlsx", "x", ["unknown kind of file '.xlsx'", "known: .jsonl"]),
    ],
)
def test_bad_data(game: Game, name: str, content: str | bytes | None, parts: list[str]) -> None:
    game.write(data__path=name)
    (game.folder / "rows.jsonl").unlink()
    if content is not None:
        (game.folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(game.run(), *parts)
    assert game.json("manifest.json")["attempts"][-1]["outcome"] == "UserError"
    assert "start" not in {path.name for path in game.root.iterdir()}


def test_a_data_file_that_may_not_be_read(game: Game) -> None:
    file = game.folder / "rows.jsonl"
    file.unlink()
    file.mkdir()
    refused(game.run(), "rows.jsonl: the folder has no data file")
    file.rmdir()
    write_rows(file, rows())
    file.chmod(0)
    if os.access(file, os.R_OK):
        return  # root reads everything; the same refusal was tested with the folder
    refused(game.run(), "cannot read the file: Permission denied")


def test_mended_data_and_the_same_command(game: Game, played: Game) -> None:
    file = game.folder / "rows.jsonl"
    good = file.read_text()
    file.write_text(good + '{"prompt": \n')
    refused(game.run(), "rows.jsonl, line 33: broken JSON")
    file.write_text(good)
    assert game.run().code == 0
    assert_same_outcome(game.root, played.root)


def test_wrong_columns_are_told_with_those_that_exist(game: Game) -> None:
    game.write(data__columns={"prompt": "promt", "completion": "completion"})
    refused(game.run(), "there is no column 'promt' (data.columns.prompt); the columns are: prompt, completion", "did you mean prompt?")


def test_unknown_hub_data_without_network(game: Game) -> None:
    game.write(data__path="nobody/no-such-data")
    refused(game.run(), "nobody/no-such-data", "cannot load the data set", "tried: the local path", "then the Hugging Face Hub", "network")


# ---------------------------------------------------------------------------------------------- model


@pytest.fixture
def model(game: Game, played: Game) -> Path:
    """A model folder of one's own, named by the recipe."""
    folder = Path(shutil.copytree(played.root / "base" / "model", game.folder / "model"))
    game.write(model__path="model")
    return folder


def test_a_model_without_a_chat_template(game: Game, model: Path) -> None:
    for file in model.glob("*.jinja"):
        file.unlink()
    config = json.loads((model / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    refused(game.run(), "model.chat_template: the model has no chat template", "set model.chat_template to a Jinja file")
    (game.folder / "own.jinja").write_text((Path(__file__).parent / "data" / "zephyr.jinja").read_text())
    refused(game.run("model.chat_template=none.jinja"), "model.chat_template: none.jinja: no such file")


def test_a_model_folder_without_weights(game: Game, model: Path) -> None:
    (model / "model.safetensors").unlink()
    refused(game.run(), "model: a model folder without weights: no *.safetensors in it", "check model.path")
    (model / "pytorch_model.bin").write_bytes(b"x")
    refused(game.run(), "only pickled weights here (pytorch_model.bin)", "convert them to safetensors first")


@pytest.mark.parametrize(
    "name, content, part",
    [
        ("model.safetensors", b"garbage", "model.safetensors: cannot read the weights"),
        ("config.json", b"{", "config.json"),
        ("config.json", b'{"model_type": "no-such-model"}', "no-such-model"),
        ("tokenizer.json", b"{", "tokenizer.json: not a valid JSON file"),
    ],
)
def test_a_broken_model_folder(game: Game, model: Path, name: str, content: bytes, part: str) -> None:
    (model / name).write_bytes(content)
    refused(game.run(), part, str(model.name))


def test_a_row_with_a_token_that_the_model_has_no_embedding_of(game: Game, model: Path) -> None:
    from sparring.policy.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model)
    write_rows(game.folder / "rows.jsonl", [*rows(), {"prompt": "see <image>", "completion": "a cat"}])
    refused(game.run(), "<image>")
    write_rows(game.folder / "rows.jsonl", rows())
    shutil.rmtree(game.root)
    assert game.run("iterations=1", "controls=null").code == 0


@pytest.mark.parametrize(
    "path, parts",
    [
        ("./no-such-folder", ["no such model folder", "config.json and safetensors, or a Hub id"]),
        ("nobody/nothing", ["nobody/nothing", "not in the local cache", "tried the folder nobody/nothing, then the Hub", "network"]),
        ("not a / hub id", ["neither a folder nor a valid Hub id"]),
        ("builtin:huge", ["no built-in model named 'builtin:huge'", "the only one is builtin:tiny"]),
        ("none.gguf", ["no such GGUF file"]),
        ("package:no_such_package/x.gguf", ["the Python package 'no_such_package' is not installed", "pip install"]),
    ],
)
def test_an_unknown_model(game: Game, path: str, parts: list[str]) -> None:
    game.write(model__path=path)
    refused(game.run(), *parts)


def test_a_missing_file_is_told_before_a_model_is_fetched(game: Game) -> None:
    """A download of gigabytes for nothing: the model's own refusal must come second."""
    game.write(model={"path": "nobody/nothing", "chat_template": "none.jinja"}, data__path="none.jsonl")
    for override, part in (
        ("seed=0", "none.jsonl: no such data file"),
        ("data.path=rows.jsonl", "model.chat_template: none.jinja: no such file"),
    ):
        result = game.run(override)
        refused(result, part)
        assert "nobody/nothing" not in result.err and not [path for path in game.root.rglob("*") if path.is_dir()]
    (game.folder / "none.jinja").write_text("{{ messages }}")
    refused(game.run("data.path=rows.jsonl"), "nobody/nothing", "not in the local cache")


@pytest.mark.parametrize(
    ("changes", "stage", "difference"),
    [({}, "sft", "start: "), ({"sft": None}, "start/measure", "model: ")],
    ids=["with sft", "without"],
)
def test_a_config_edited_under_a_run(game: Game, model: Path, changes: dict[str, Any], stage: str, difference: str) -> None:
    """The same weights under another config are another model."""
    game.write(model__path="model", iterations=1, controls=None, **changes)
    assert game.run().code == 0
    before, file = game.state(), model / "config.json"
    good = file.read_text()
    file.write_text(json.dumps({**json.loads(good), "rms_norm_eps": 1e-3}))
    refused(game.run(), f"stage {stage} was made from other inputs", difference, f"--restart-from {stage}")
    file.write_text(good)
    assert game.run().code == 0 and game.state() == before


def test_an_unknown_model_with_the_hub_out_of_reach_in_the_real_command(game: Game) -> None:
    game.write(model__path="nobody/nothing")
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([SPARRING, "run", "recipe.yaml"], cwd=game.folder, capture_output=True, text=True, env=environment, timeout=120)
    refused(Result(done.returncode, done.stdout, done.stderr), "cannot", "tried the folder nobody/nothing, then the Hub (revision main)")


# ---------------------------------------------------------------------------------------------- context


def test_a_prompt_longer_than_the_context(game: Game) -> None:
    long = {"prompt": "a" * 520, "completion": "b"}
    write_rows(game.folder / "rows.jsonl", [*rows(), long])
    game.write(data__max_prompt_tokens=2000)
    refused(game.run(), "prompt tokens and", "exceed the model's context of 512", "row ", "lower data.max_prompt_tokens")
    assert not (game.root / "sft.partial").exists()
    game.write(showcase=["x" * 600])
    shutil.rmtree(game.root)
    refused(game.run(), "a showcase prompt: ", "exceed the model's context of 512")


def test_more_new_tokens_than_the_context(game: Game) -> None:
    refused(game.run("sampling.max_new_tokens=512"), "sampling.max_new_tokens: 512 does not fit the model's context of 512 tokens", "below")
    refused(game.run("sampling.max_new_tokens=500"), "exceed the model's context of 512", "or sampling.max_new_tokens")


# ---------------------------------------------------------------------------------------------- a recipe changed under a run


@pytest.mark.parametrize(
    "override, stage, difference",
    [
        ("seed=1", "base", "builtin:tiny, seed 0"),
        ("data.max_examples=30", "data", "data.max_examples: null -> 30"),
        ("sft.lr=1e-3", "sft", "sft.lr: 0.003 -> 0.001"),
        ("sampling.temperature=0.9", "start/measure", "sampling.temperature: 1.0 -> 0.9"),
        ("sampling.max_new_tokens=7", "start/measure", "sampling.max_new_tokens: 6 -> 7"),
        ("sampling.replies_per_prompt=3", "iterations/000/generate", "replies_per_prompt: 2 -> 3"),
        ("model.dtype=bfloat16", "start/measure", 'dtype: "float32" -> "bfloat16"'),
        ("train.precision=bf16", "start/measure", 'precision: "fp32" -> "bf16"'),
        ("evaluate.greedy=true", "start/measure", "greedy: false -> true"),
        ("train.lr=[1e-3,1e-4]", "iterations/001/train", "train.lr: 0.001 -> 0.0001"),
        ("objective.loss=hinge", "iterations/000/train", 'objective.loss: "logistic" -> "hinge"'),
        ("train.batch_size=6", "iterations/000/score", "batches.batch_size: 4 -> 6"),
        ("train.weight_decay=0.1", "iterations/000/train", "train.weight_decay: 0.0 -> 0.1"),
    ],
)
def test_a_recipe_changed_under_a_finished_run(copy: Game, override: str, stage: str, difference: str) -> None:
    before = outcome(copy.root)
    state = copy.state()
    refused(
        copy.run(override),
        f"stage {stage} was made from other inputs",
        difference,
        "either undo the change and run again",
        f"--restart-from {stage}",
    )
    assert outcome(copy.root) == before and copy.state() == state, "recipe, summary, metrics and the link to the best are as they were"
    replayed(copy)


def test_data_changed_under_a_finished_run(copy: Game) -> None:
    file = copy.folder / "rows.jsonl"
    good = file.read_text()
    file.write_text(good + '{"prompt": "new", "completion": "row"}\n')
    refused(copy.run(), "stage data was made from other inputs", "data.content: ", "--restart-from data")
    file.unlink()
    refused(copy.run(), "rows.jsonl: no such data file")
    (copy.folder / "moved.jsonl").write_text(good)
    assert copy.run("data.path=moved.jsonl").code == 0, "the content counts, not the name"


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpoint_every=7",
        "sft.checkpoint_every=1",
        "train.micro_batch_tokens=400",
        "sft.micro_batch_tokens=50",
        "train.gradient_checkpointing=true",
        "sft.gradient_checkpointing=true",
        "sampling.batch_tokens=100",
        "sampling.shard_rows=3",
        "model.dtype=null",  # as train.precision, which is fp32
        "stop.patience=5",
        "evaluate.metric=nll_per_reply",
    ],
)
def test_what_changes_no_stage_may_be_changed(copy: Game, override: str) -> None:
    before = copy.state()
    result = copy.run(override)
    assert result.code == 0 and copy.state() == before, result.err


def test_a_run_may_be_moved(copy: Game) -> None:
    copy.root.rename(copy.folder / "elsewhere")
    result = copy.run("run_dir=elsewhere")
    assert result.code == 0 and "training" not in result.err


def test_a_recipe_changed_under_a_half_finished_run(game: Game, played: Game) -> None:
    killed = game.run(sabotage=[working("iterations/000/train", 3)])
    assert killed.code == -signal.SIGKILL and (game.root / "iterations/000/train.partial").exists()
    before = game.state()
    refused(
        game.run("objective.beta=0.5"),
        "stage iterations/000/train was made from other inputs",
        "objective.beta: 1.0 -> 0.5",
        "undo the change and run again",
        "--restart-from iterations/000/train",
    )
    refused(game.run("sft.lr=1e-3"), "stage sft was made from other inputs")
    assert game.state() == before
    result = game.run()
    assert result.code == 0 and "resuming at step 2 of 6" in result.err
    assert_same_outcome(game.root, played.root)


def test_the_other_way_on_is_to_redo(copy: Game) -> None:
    result = copy.run("objective.beta=0.5", "--restart-from", "iterations/000/train")
    assert result.code == 0 and copy.json("iterations/000/train/done.json")["inputs"]["objective"]["beta"] == 0.5
    assert "beta: 0.5" in (copy.root / "recipe.yaml").read_text()


@pytest.mark.parametrize(("reply", "where"), [((5,), "data.path"), ((), "data.prompts")])
def test_a_token_that_the_model_has_no_embedding_of(reply: tuple[int, ...], where: str, played: Game) -> None:
    row = Example("a row", Conversation(({"role": "user", "content": "q"},), ""), (1, 10**6), reply)
    chat = SimpleNamespace(tokenizer=SimpleNamespace(convert_ids_to_tokens=lambda token: "<far>"))
    folder = played.root / "base/model"
    context: Any = SimpleNamespace(base=SimpleNamespace(folder=folder), prompt_rows=[row], held_out=[], chat=chat)
    with pytest.raises(UserError, match=r"row a row contains the token '<far>' \(1000000\), but the model's vocabulary has") as caught:
        _check_tokens(context)
    assert caught.value.where == where


# ---------------------------------------------------------------------------------------------- an answer pattern that finds nothing


NO_ANSWER = ("evaluate.answer_pattern: '#### [0-9]+' finds no answer in any of the 8 held-out human replies", "one of them is '")


def test_an_answer_pattern_that_no_human_reply_matches(game: Game) -> None:
    refused(game.run("evaluate.answer_pattern='#### [0-9]+'"), *NO_ANSWER)
    assert {path.name for path in game.root.iterdir() if path.is_dir()} == {"base", "data"}, "before any work"
    assert game.run("iterations=1", "controls=null").code == 0


def test_an_answer_pattern_that_finds_nothing_under_a_finished_run(copy: Game) -> None:
    before = outcome(copy.root)
    refused(copy.run("evaluate.answer_pattern='#### [0-9]+'"), *NO_ANSWER)
    assert outcome(copy.root) == before
    replayed(copy)


def test_an_answer_pattern_that_some_human_replies_do_not_match(copy: Game) -> None:
    missed = [row["reply"] for row in read_rows(copy.root / "data/held_out.parquet") if not re.search("[0-5]$", row["reply"])]
    assert 0 < len(missed) < 8
    result = copy.run("evaluate.answer_pattern='[0-5]$'")
    assert result.code == 0
    assert result.err.count(f"finds no answer in {len(missed)} of 8 held-out human replies: they can never match") == 1
    assert "finds no answer" not in copy.run().err


# ---------------------------------------------------------------------------------------------- a run directory edited by hand


@pytest.mark.parametrize("name", ["iterations/000/train/model/model.safetensors", "sft/model/config.json", "data/train.parquet"])
def test_a_file_edited_by_hand(copy: Game, name: str) -> None:
    file = copy.root / name
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    stage = re.sub(r"/(model/.*|train\.parquet)$", "", name)
    inside = name.removeprefix(stage + "/")
    refused(copy.run(), f"{inside} was changed after the stage had finished (its hash differs)", stage, f"--restart-from {stage}")
    file.unlink()
    refused(copy.run(), f"{inside} is missing", "put the file back")
    file.write_bytes(good)
    replayed(copy)


def test_a_file_more_or_a_stage_less(copy: Game, played: Game) -> None:
    shard = copy.root / "iterations/000/generate/shard-00000048-00000064.parquet"
    shutil.copy(shard.with_name("shard-00000000-00000016.parquet"), shard)
    refused(copy.run(), "shard-00000048-00000064.parquet was added after the stage had finished", "delete it")
    shard.unlink()
    shutil.rmtree(copy.root / "iterations/001/measure")
    assert copy.run().code == 0
    assert_same_outcome(copy.root, played.root)
    shutil.rmtree(copy.root / "iterations/001/evaluate")
    assert copy.run().code == 0
    assert_same_outcome(copy.root, played.root)


def test_a_hand_edited_stage_can_be_redone(copy: Game, played: Game) -> None:
    (copy.root / "iterations/001/train/model/model.safetensors").write_bytes(b"x")
    refused(copy.run(), "--restart-from iterations/001/train")
    assert copy.run("--restart-from", "iterations/001/train").code == 0
    assert_same_outcome(copy.root, played.root)


# ---------------------------------------------------------------------------------------------- disk full

NO_SPACE = ("no space left to write", "free some space; nothing finished is lost", "Resume with:\n  sparring run recipe.yaml")


@pytest.mark.parametrize(
    "stage, function, args",
    [
        ("base", "sparring.rundir:write_text", "manifest"),
        ("iterations/000/generate", "sparring.data.tables:write_table", "000/generate"),
        ("iterations/000/train", "sparring.training.checkpoint:save_file", "000/train"),
        ("sft", "sparring.stages.train:copy_extras", "sft"),
        ("base", "os:fsync", ""),
        ("iterations/000/evaluate", "os:replace", r"run/metrics\.jsonl$"),
    ],
)
def test_a_full_disk_then_space_again(game: Game, played: Game, stage: str, function: str, args: str) -> None:
    game.copy_stages(played, before=stage)
    full = game.run(sabotage=[Sabotage(function, args=args, do="full disk", forever=True)])
    refused(full, *NO_SPACE)
    game.copy_later_stages(played, after=stage)
    assert game.run().code == 0
    assert_same_outcome(game.root, played.root)


def test_a_real_limit_on_the_size_of_files(game: Game, played: Game) -> None:
    """Every writer of the game meets it: Python's own, pyarrow's, and that of safetensors, which is not Python's."""
    for limit in (1_000, 10_000, 100_000):
        refused(game.run(file_limit_bytes=limit), "no space left to write: ")
    killed = game.run(sabotage=[working("iterations/000/train", 1)])
    assert killed.code == -signal.SIGKILL
    refused(game.run(file_limit_bytes=100_000), *NO_SPACE)
    assert game.run().code == 0
    assert_same_outcome(game.root, played.root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of its own; call it with a size in KiB to mount it or to make it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kib: int) -> Path:
        remount = "remount," if place.is_mount() else ""
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"{remount}size={kib}k", "tmpfs", str(place)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
        return place

    yield resize
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk_at_many_points(small_disk: Callable[[int], Path], zygote: Zygote, played: Game) -> None:
    game, size, refusals = Game(small_disk(64), zygote, {}), 64, 0
    while (result := game.run()).code != 0:
        refused(result, "o space left")
        assert len(re.findall("^error: ", result.err, re.MULTILINE)) == 1, result.err
        refusals += 1
        size += 450
        assert size < 20_000
        small_disk(size)
    assert refusals >= 5
    assert_same_outcome(game.root, played.root)


# ---------------------------------------------------------------------------------------------- two processes, wrong folders


def test_two_processes_on_one_run(game: Game, played: Game) -> None:
    first = game.start()
    first.wait_for(lambda: (game.root / "sft.partial").exists())
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot end before the others have come and gone
    try:
        refused(game.run(), f"another process works in this run directory: process {first.pid} on ", "since 20", "wait for it, stop it")
        refused(game.run("--restart-from", "data"), "another process works in this run directory")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait().code == 0
    assert_same_outcome(game.root, played.root)
    assert [attempt["outcome"] for attempt in game.json("manifest.json")["attempts"]] == ["done"]


def test_a_restart_from_nowhere(copy: Game) -> None:
    before = outcome(copy.root)
    refused(
        copy.run("--restart-from", "iteration/001"), "no stage named 'iteration/001'; did you mean iterations/001", "iterations/000/train"
    )
    refused(copy.run("--restart-from", ""), "no stage named ''")
    refused(copy.run("--restart-from", "iterations/007"), "no stage named 'iterations/007'")
    assert outcome(copy.root) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [("sft.lr=1e-3", "stage sft was made from other inputs"), ("sampling.max_new_tokens=100000", "does not fit the model's context")],
)
def test_a_restart_that_is_refused_before_its_stage_deletes_nothing(copy: Game, override: str, words: str) -> None:
    before, state = outcome(copy.root), copy.state()
    refused(copy.run(override, "objective.beta=0.5", "--restart-from", "iterations/000/train"), words)
    assert outcome(copy.root) == before and copy.state() == state
    replayed(copy)


def test_run_dir_is_a_file(game: Game) -> None:
    (game.folder / "run").write_text("x")
    refused(game.run(), "run_dir (run)", "cannot create the run directory")


def test_sample_and_export_where_there_is_no_run(game: Game) -> None:
    (game.folder / "empty").mkdir()
    for folder in ("none", "empty", "rows.jsonl"):
        refused(game.command("sample", folder, "hello"), folder, "give the run_dir of a recipe that has been run")
        refused(game.command("export", folder, "out"), folder, "run")
        assert not (game.folder / "out").exists()


def test_sample_and_export_before_there_is_a_player(game: Game) -> None:
    (game.folder / "rows.jsonl").write_text("")
    refused(game.run(), "the data is empty")
    shutil.rmtree(game.root / "base")
    refused(game.command("sample", "run", "hello"), "no player yet", "run its recipe first")
    refused(game.command("export", "run", "out"), "no best iteration yet", "let it play at least one iteration")
    refused(game.command("export", "run", "out", "--iteration", "start"), "no player 'start'")


def test_export_in_the_middle_of_a_game(game: Game) -> None:
    game.run(sabotage=[committed("iterations/000/train")])
    refused(game.command("export", "run", "out"), "no best iteration yet")
    refused(game.command("export", "run", "out", "--iteration", "0"), "no scores for the model card yet")
    assert game.command("sample", "run", "say ab").code == 0
    game.run(sabotage=[begun("continued-sft/train")])
    assert game.command("export", "run", "out").code == 0
    assert "The game is not over yet" in (game.folder / "out" / "README.md").read_text()


def test_export_of_what_does_not_exist(copy: Game) -> None:
    refused(copy.command("export", "run", "out", "--iteration", "7"), "no player '7'", "it has start, 0, 1, continued-sft")
    refused(copy.command("export", "run", "out", "--iteration", "last"), "no player 'last'")
    result = copy.command("export", "run", "out", "--dtype", "int8")
    assert result.code == 2 and "'int8' is not one of 'float32', 'bfloat16', 'float16'" in result.err
    assert not (copy.folder / "out").exists()


def test_a_run_of_the_former_layout(copy: Game, played: Game) -> None:
    """The start's folder was called `baseline`, the link to the base model of adapters `start`, and micro_batch.json chosen.json."""
    (copy.root / "start").rename(copy.root / "baseline")
    (copy.root / "micro_batch.json").rename(copy.root / "chosen.json")
    (copy.root / "recipe.yaml").write_text((copy.root / "recipe.yaml").read_text().replace("controls:", "baseline:"))
    for command in (["status", "run"], ["compare", "run"], ["report", "run"], ["export", "run", "out"]):
        refused(copy.command(*command), "written by an earlier version", "`sparring run` its recipe once")
    (copy.root / "start").symlink_to(copy.folder)
    refused(copy.run(), "written by an earlier version", "in another run_dir")
    (copy.root / "start").unlink()
    result = copy.run()
    assert result.code == 0 and "`baseline` is now called `start`" in result.err
    assert_same_outcome(copy.root, played.root)
    assert copy.command("status", "run").code == 0
    assert copy.command("export", "run", "out", "--iteration", "baseline").code == 0, "the former name of the player"


@pytest.mark.parametrize("name", ["start", "baseline"])
def test_a_run_directory_with_a_link_where_the_start_belongs(name: str, copy: Game, tmp_path: Path) -> None:
    """Nothing is written through it, wherever the run directory came from."""
    elsewhere = tmp_path / "elsewhere"
    shutil.move(copy.root / "start", elsewhere)
    before = sorted(elsewhere.rglob("*"))
    (copy.root / name).symlink_to(elsewhere)
    for command in (["run", "recipe.yaml"], ["status", "run"], ["export", "run", "out"]):
        refused(copy.command(*command), "written by an earlier version", "in another run_dir")
    assert sorted(elsewhere.rglob("*")) == before


def test_export_onto_something(copy: Game) -> None:
    folder = copy.folder / "mine"
    folder.mkdir()
    (folder / "notes").write_text("keep")
    refused(copy.command("export", "run", "mine"), "this folder exists and is not empty", "give a new folder")
    refused(copy.command("export", "run", "mine/notes"), "not empty")
    refused(copy.command("export", "run", "."), "not empty")
    assert (folder / "notes").read_text() == "keep" and list(folder.iterdir()) == [folder / "notes"]


def test_sample_with_a_prompt_longer_than_the_context(copy: Game) -> None:
    refused(copy.command("sample", "run", "x" * 600), "exceed the model's context of 512", "shorter prompt")


@pytest.mark.parametrize("args", [["run"], ["run", "recipe.yaml", "--no-such-option"], ["play", "recipe.yaml"], ["sample", "run"]])
def test_a_command_line_that_cannot_be_parsed(game: Game, args: list[str]) -> None:
    result = game.command(*args)
    assert result.code == 2 and "Traceback" not in result.err and "Usage: " in result.err and "--help" in result.err


NUMBER = "9" * 5000


@pytest.mark.parametrize(
    "args",
    [
        ["export", "run", "out", "--iteration", NUMBER],
        ["compare", "run", "--against", NUMBER],
        ["evaluate", "run", "--player", NUMBER],
        ["plan", "recipe.yaml", "--params", NUMBER],
        ["plan", "recipe.yaml", "--params", "9" * 300 + "B"],
        ["stage", "recipe.yaml", f"iterations/{NUMBER}/train"],
        ["sample", "run", "x", "--seed", NUMBER],
        ["run", "recipe.yaml", f"seed={NUMBER}"],
        ["run", "recipe.yaml", "--restart-from", f"iterations/{NUMBER}/train"],
    ],
    ids=lambda args: " ".join(args)[:40],
)
def test_numbers_of_thousands_of_digits(copy: Game, args: list[str]) -> None:
    result = copy.command(*args)
    assert result.code == 2 and "rror" in result.err and "Traceback" not in result.err, result.err[:2000]


@pytest.mark.parametrize(
    ("text", "name"), [("007", "7"), ("0", "0"), ("best", "best"), ("-1", "-1"), ("\u0663", "3"), (NUMBER, NUMBER[:100])]
)
def test_a_player_by_any_number(text: str, name: str) -> None:
    from sparring.stage_names import player_name

    assert player_name(text) == name
