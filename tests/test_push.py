"""`sparring push`: the folders of a dry run, and uploads to a stand-in of the Hub on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from conftest import Game
from hub_loopback import HubLoopback
from huggingface_hub import constants
from zygote import Sabotage

from sparring.config import DataSection, load_recipe
from sparring.data.conversations import load_conversations
from sparring.errors import UserError
from sparring.locks import hold
from sparring.publish.cards import About, model_card
from sparring.publish.names import licence_of, public
from sparring.push import LOCK, PushOptions, push
from sparring.samples import answers

TOKEN = "hf_thisIsNoRealTokenButAFakeOne"
BOTH = ["--repo", "me/model", "--dataset-repo", "me/replies"]


@pytest.fixture(scope="module")
def folder(played: Game) -> Path:
    """What a dry run writes of everything."""
    result = played.command("push", "run", *BOTH, "--all-iterations", "--data-licence", "cc-by-4.0", "--dry-run", "pushed")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        f"wrote {what} to {played.folder / 'pushed' / name}"
        for what, name in [
            ("iteration 1", "model"),
            ("iteration 0", "iteration-0"),
            ("iteration 1", "iteration-1"),
            ("the generated replies", "data"),
        ]
    ]
    return played.folder / "pushed"


# --- the model


def test_the_model_answers_in_a_pipeline_as_sparring_sample_does(folder: Path, played: Game) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    own = answers(played.root, "say ab", temperature=0.0, seed=None)
    for name, title in (("model", "iteration 1"), ("iteration-0", "iteration 0")):
        AutoModelForCausalLM.from_pretrained(folder / name)
        assert AutoTokenizer.from_pretrained(folder / name).chat_template
        chat = pipeline("text-generation", str(folder / name))
        (said,) = chat([{"role": "user", "content": "say ab"}], max_new_tokens=6, do_sample=False)
        assert said["generated_text"][-1] == {"role": "assistant", "content": own[title]}
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("model", "iteration-1", "iteration-0")]
    assert weights[0] == weights[1] != weights[2]


def test_the_cards_metadata_is_what_the_hub_reads(folder: Path, played: Game) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "model" / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets == ["me/replies"] and card.data.library_name == "transformers"
    scores = played.json("summary.json")["iterations"][1]["scores"]
    found = {result.metric_type: result for result in card.data.eval_results}
    assert set(found) == {name for name, score in scores.items() if score["higher_is_better"] is not None}
    nll = scores["nll_per_token"]
    assert found["nll_per_token"].metric_value == pytest.approx(nll["value"], abs=1e-6)
    assert f"± {nll['stderr']:.4f}, n {nll['n']}, lower is better" in found["nll_per_token"].metric_name


def test_benchmarks_are_no_scores_on_held_out_prompts(played: Game) -> None:
    from huggingface_hub import ModelCard

    asked = load_recipe(played.root / "recipe.yaml", ["evaluate.benchmarks={tasks: [letters], limit: 5}"])
    summary = played.json("summary.json")
    summary["iterations"][1]["scores"]["letters/acc"] = {"value": 0.5, "n": 5, "stderr": 0.1, "higher_is_better": True}
    text = model_card(asked, summary, "1", About.of(asked))
    (found,) = [result for result in ModelCard(text).data.eval_results if result.metric_type == "letters/acc"]
    assert (found.dataset_type, found.dataset_name) == ("letters", "letters, by lm-evaluation-harness")
    assert "are benchmarks of lm-evaluation-harness (chat template not applied, the first 5 items). The best" in text
    assert "| letters/acc | 5 | - | - | 0.5000 ± 0.1000 | - |" in text


def test_the_card_says_where_everything_comes_from_and_how_to_use_it(folder: Path) -> None:
    best, first = ((folder / name / "README.md").read_text() for name in ("model", "iteration-0"))
    assert "| base model | `builtin:tiny` | apache-2.0 (part of sparring) |" in best
    assert "| data | `rows.jsonl` | cc-by-4.0 (as the publisher says, by --data-licence) |" in best
    assert "Best iteration: 1 (NLL per token" in best and "@inproceedings{chen2024selfplay," in best
    assert 'pipeline("text-generation", "me/model")' in best and "vllm serve me/model\n" in best
    assert 'pipeline("text-generation", "me/model", revision="iteration-0")' in first and "--revision iteration-0" in first
    assert "one of `iteration-0`, `iteration-1`" in best and "(https://huggingface.co/datasets/me/replies)" in best


def test_the_card_shows_the_scores_of_every_player(folder: Path) -> None:
    """As files of their own, with their colours in them: a card has no style."""
    files = re.findall(r"!\[\w+ of every player\]\((plots/\w+\.svg)\)", (folder / "model" / "README.md").read_text())
    assert files == [f"plots/{name}.svg" for name in ("exact_match", "nll_per_token", "real_logp")]
    assert sorted(files) == sorted(path.relative_to(folder / "model").as_posix() for path in folder.glob("model/plots/*"))
    for file in files:
        drawing = ElementTree.parse(folder / "model" / file).getroot()
        texts = ["".join(element.itertext()) for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
        assert {"start", "iteration 0", "iteration 1"} <= set(texts), file
        style = next(drawing.iter("{http://www.w3.org/2000/svg}style")).text
        assert all(f".{name} " in style for element in drawing.iter() for name in element.get("class", "").split()), file


def test_what_others_should_not_read_is_hidden(played: Game) -> None:
    changes = [
        "sampling.engine=server",
        "sampling.server.urls=[http://10.1.2.3:8000/v1]",
        "sampling.server.update_command=/home/anna/serve.sh {model} {name}",
        "sampling.ray.address=10.1.2.3:6379",
        "launcher.kind=accelerate",
        "launcher.main_process_ip=10.1.2.3",
        "controls=[continued-sft, {kind: dpo, pairs: /home/anna/pairs.jsonl}]",
        "evaluate.benchmarks={tasks: [quiz], task_folders: [/home/anna/tasks]}",
        "data.path=[/home/anna/a.jsonl.gz, /home/anna/*.csv]",
        "data.prompts=/home/anna/prompts.jsonl",
        "target={kind: majority, checker: number}",
    ]
    text = yaml.safe_dump(public(load_recipe(played.root / "recipe.yaml", changes)))
    assert not any(word in text for word in ("anna", "10.1.2.3", str(played.root))) and text.count("(not shown)") == 4
    assert "path: pairs.jsonl" in text and "path: a.jsonl.gz, *.csv" in text and "path: prompts.jsonl" in text and "- tasks" in text


# --- the data


def test_the_generated_replies_load_as_preference_rows(folder: Path, played: Game) -> None:
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl.data_utils import apply_chat_template, is_conversational

    by_file = load_dataset("parquet", data_files=str(folder / "data/preference/iteration_1.parquet"), split="train")
    rows = load_dataset(str(folder / "data"), "preference", split="iteration_1")
    assert list(rows) == list(by_file) and len(rows) == 48
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for row in rows:
        assert is_conversational(row)
        assert apply_chat_template(row, tokenizer)["prompt"].endswith("<|im_start|>assistant\n")
    generated = {(r["row_id"], r["replica"]): r for r in shards(played, 1)}
    assert len(generated) == 48
    for row in rows:
        reply = generated[row["row_id"], row["replica"]]
        assert row["finish_reason"] == reply["finish_reason"]
        assert row["rejected"] == [{"role": "assistant", "content": tokenizer.decode(reply["token_ids"], skip_special_tokens=True)}]


def shards(game: Game, t: int) -> list[dict[str, Any]]:
    from sparring.data.tables import read_rows

    return read_rows(game.root / f"iterations/{t:03d}/generate")


def test_the_generated_replies_load_as_the_spin_authors_rows(folder: Path, played: Game) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(folder / "data"), "spin", split="iteration_0")
    assert rows.column_names == ["real", "generated"] and len(rows) == 48
    assert all([turn["role"] for turn in row[side]] == ["user", "assistant"] for row in rows for side in row)
    again = load_conversations(DataSection(path=str(folder / "data/spin/iteration_0.parquet")), 0)
    source = load_conversations(DataSection(path=str(played.folder / "rows.jsonl")), 0)
    held_out = {row["row_id"] for row in read(played.root / "data/held_out.parquet")}
    assert {c.row_id for _, c in again.rows} == {c.row_id for _, c in source.rows} - held_out


def read(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_the_data_card_counts_the_rows(folder: Path, played: Game) -> None:
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(folder / "data" / "README.md")
    assert card.data.license == "cc-by-4.0" and [c["config_name"] for c in card.data.configs] == ["preference", "spin"]
    for t in (0, 1):
        truncated = sum(row["finish_reason"] == "length" for row in shards(played, t))
        assert f"| {t} | 48 | 0 | {truncated} |" in card.text


# --- licences


@pytest.mark.parametrize(
    ("card", "name", "source"),
    [
        ("---\nlicense: mit\n---\n# x", "mit", "from the README.md next to it"),
        ("---\nlicense: [cc-by-4.0, mit]\n---\n", "cc-by-4.0", "from the README.md next to it"),
        ("---\nlicense: Apache License, Version 2\n---\n", None, "names none"),
        ("---\ntags: [x]\n---\n", None, "names none"),
        ("# no metadata", None, "names none"),
        ("---\nlicense: [mit\n---\n", None, "cannot be read"),
        (None, None, "there is no card next to it"),
    ],
)
def test_a_licence_is_read_where_it_stands_and_never_guessed(tmp_path: Path, card: str | None, name: str | None, source: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    for path in (tmp_path, tmp_path / "rows.jsonl"):
        (tmp_path / "rows.jsonl").touch()
        found = licence_of(str(path), "base", {})
        assert found.name == name and source in found.source
        assert str(tmp_path) not in str(found) and str(found).startswith(name or "unknown")


def test_a_licence_of_the_hub_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "models--me--base"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc" / "README.md").write_text("---\nlicense: llama3\n---\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert str(licence_of("me/base", "base", {})) == "llama3 (from the card of me/base)"
    assert licence_of("me/other", "base", {}).name is None
    assert licence_of("package:no_such_package/x.gguf", "base", {}).name is None


# --- the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubLoopback]:
    """The stand-in in the place of the Hub, for calls in this process."""
    served = HubLoopback(TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield served
    served.close()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_command_uploads_what_a_dry_run_writes(folder: Path, played: Game) -> None:
    hub = HubLoopback(TOKEN)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent.parent / "src"),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_DEBUG": "1",
    }
    command = [sys.executable, "-m", "sparring", "push", "run", *BOTH, "--all-iterations", "--data-licence", "cc-by-4.0", "--private"]
    done = subprocess.run(command, cwd=played.folder, env=environment, capture_output=True, text=True)
    hub.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "pushed iteration 0 to me/model (iteration-0)"
    branches = hub.repos["model/me/model"]
    assert {name: without(files) for name, files in branches.items()} == {
        "main": files_of(folder / "model"),
        "iteration-0": files_of(folder / "iteration-0"),
        "iteration-1": files_of(folder / "iteration-1"),
    }
    assert without(hub.repos["dataset/me/replies"]["main"]) == files_of(folder / "data")
    assert set(hub.private.values()) == {True}
    assert TOKEN not in done.stdout + done.stderr
    assert not list(played.root.glob(".push")) and not any(TOKEN.encode() in text for text in files_of(played.folder).values())


def without(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: text for path, text in files.items() if path != ".gitattributes"}


def test_a_second_push_takes_away_what_the_first_one_left(played: Game, hub: HubLoopback) -> None:
    list(push(played.root, PushOptions("me/model", revision="try")))
    files = hub.repos["model/me/model"]["try"]
    files |= {"adapter_model.safetensors": b"of an earlier push", "notes.pdf": b"the user's own"}
    list(push(played.root, PushOptions("me/model", iteration="0", dtype="bfloat16", revision="try")))
    assert "adapter_model.safetensors" not in files and "notes.pdf" in files
    assert json.loads(files["config.json"])["dtype"] == "bfloat16" and b"# iteration 0 of" in files["README.md"]
    assert list(hub.repos["model/me/model"]["main"]) == [".gitattributes"]


# as the hub fixture does it, in another process
PUSH_THERE = """
from huggingface_hub import constants
constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = {url!r}, False, True
from sparring.cli import main
main()
"""
CLIENT = "huggingface_hub.hf_api:HfApi"
KILLS = {
    "the model half written": Sabotage("sparring.export:model_card"),
    "no repository yet": Sabotage(f"{CLIENT}.create_repo"),
    "repository created": Sabotage(f"{CLIENT}.create_repo", when="after"),
    "files sent, not committed": Sabotage(f"{CLIENT}.preupload_lfs_files", when="after"),
    "committed": Sabotage(f"{CLIENT}.create_commit", when="after"),
    "between model and replies": Sabotage("sparring.push:dataset_card"),
    "in the second upload": Sabotage(f"{CLIENT}.create_commit", nth=2),
}


@pytest.mark.parametrize("at", KILLS)
def test_a_push_that_was_killed_is_pushed_again(at: str, copy: Game) -> None:
    """What it leaves is that of a push that was never killed, there as here."""
    hub = HubLoopback(TOKEN)
    command = {"python": PUSH_THERE.format(url=hub.url), "environment": {"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}}
    kept = copy.state()
    assert copy.command("push", "run", *BOTH, **command, sabotage=[KILLS[at]]).code == -signal.SIGKILL
    assert list(copy.root.glob(".push/*")), "there is something to clear up"
    done = copy.command("push", "run", *BOTH, **command)
    hub.close()
    assert done.code == 0, done.err
    assert copy.command("push", "run", *BOTH, "--dry-run", "pushed").code == 0
    assert without(hub.repos["model/me/model"]["main"]) == files_of(copy.folder / "pushed/model")
    assert without(hub.repos["dataset/me/replies"]["main"]) == files_of(copy.folder / "pushed/data")
    assert not (copy.root / ".push").exists() and copy.state() == kept


def test_two_pushes_at_once(played: Game, hub: HubLoopback) -> None:
    with hold(played.root, LOCK), pytest.raises(UserError, match="another process works in this run directory: process"):
        list(push(played.root, PushOptions("me/model")))
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("status", "at", "parts"),
    [
        (401, "/api/repos/create", ["refused to create the repository", "status 401", "hf auth login"]),
        (403, "/api/repos/create", ["refused to create the repository", "status 403", "write access"]),
        (404, "/api/models/me/model/preupload", ["refused to upload", "status 404", "check the spelling"]),
        (500, "/api/models/me/model/commit", ["refused to upload", "status 500", "push again later"]),
        (403, "/api/models/me/model/branch", ["refused to create the branch x", "status 403"]),
    ],
)
def test_a_refusal_is_told_without_the_token(
    played: Game,
    hub: HubLoopback,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
    at: str,
    parts: list[str],
) -> None:
    """Though the server echoes it."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    hub.refuse = lambda method, path: (status, {"error": f"Bad request with Bearer {TOKEN}"}) if path.startswith(at) else None
    with pytest.raises(UserError) as refused:
        list(push(played.root, PushOptions("me/model", revision="x")))
    text = str(refused.value)
    assert all(part in text for part in parts) and "me/model" in text, text
    said = capfd.readouterr()
    assert TOKEN not in text + said.out + said.err and not list(played.root.glob(".push"))


def test_a_token_that_no_header_can_carry_is_not_shown(played: Game, hub: HubLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\x07ü")
    with pytest.raises(UserError, match="could not create the repository") as refused:
        list(push(played.root, PushOptions("me/model")))
    assert TOKEN not in str(refused.value)


def test_no_hub_there(played: Game, hub: HubLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="could not create the repository") as refused:
        list(push(played.root, PushOptions("me/model")))
    assert "check the network" in str(refused.value)


def test_nothing_is_created_for_what_cannot_be_made(played: Game, hub: HubLoopback) -> None:
    with pytest.raises(UserError, match="a full model, not an adapter"):
        list(push(played.root, PushOptions("me/model", adapter=True)))
    assert hub.repos == {}


def test_no_token(played: Game, hub: HubLoopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="no token for the Hub") as refused:
        list(push(played.root, PushOptions("me/model")))
    assert "hf auth login" in str(refused.value) and hub.seen == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "--repo", "me/model"], ["HF_HUB_OFFLINE is set", "--dry-run"]),
        (["run"], ["nothing to push", "--dataset-repo"]),
        (["nowhere", "--repo", "me/model"], ["not a run directory"]),
        (["run", "--repo", "a/b/c"], ["--repo", "'a/b/c' cannot be a repository"]),
        (["run", "--repo", "model"], ["--repo", "'model' cannot be a repository", "USER/NAME"]),
        (["run", "--repo", "me/model", "--dataset-repo", "me/.."], ["--dataset-repo", "cannot be a repository"]),
        (["run", "--repo", "me/model", "--iteration", "7"], ["no player '7'"]),
        (["run", "--repo", "me/model", "--adapter", "--dry-run", "x"], ["a full model, not an adapter"]),
        (["run", "--repo", "me/model", "--base-licence", "Apache 2"], ["--base-licence", "not the identifier of a licence", "apache-2.0"]),
        (["run", "--repo", "me/model", "--dry-run", "run"], ["exists and is not empty"]),
    ],
    ids=lambda value: " ".join(value) if value[0] in ("run", "nowhere") else "",
)
def test_bad_input(played: Game, arguments: list[str], parts: list[str]) -> None:
    result = played.command("push", *arguments)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    assert all(part in result.err for part in parts), result.err


def test_a_run_without_a_finished_iteration(game: Game) -> None:
    stopped = game.run(sabotage=[Sabotage("sparring.selfplay:generate")])
    assert stopped.code == -9 and (game.root / "start").exists()
    result = game.command("push", "run", *BOTH, "--dry-run", "x")
    assert result.code == 2 and "no best iteration yet" in result.err and not (game.folder / "x").exists()
