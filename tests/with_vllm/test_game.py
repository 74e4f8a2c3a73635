"""Whole games on the real vLLM, by the real command: killed and gone on with, over adapters, exported and served."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import TINY, rows, write_rows
from exact import tiny

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm has an environment with it")

from test_kill_and_resume import assert_same_outcome
from test_vllm import HEAD_DIM, free_port, wait_for_port

from sparring.data.records import Message
from sparring.data.tables import read_rows
from sparring.opponent.engines import make_engine
from sparring.opponent.protocol import Prompt, Stream
from sparring.players import Players
from sparring.policy.tiny import byte_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test plays the game that the others compare with
SPARRING = [sys.executable, "-m", "sparring"]
GENERATE = "iterations/000/generate"
TRAINED_ON, SHARD_ROWS = 36, 3


def byte_model(folder: Path) -> None:
    """As builtin:tiny, with heads that vLLM takes."""
    tokenizer = byte_tokenizer()
    tiny(vocabulary=len(tokenizer), sharpness=0.5, head_dim=HEAD_DIM).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"eos_token_id": 1, "pad_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    tokenizer.save_pretrained(folder)


def set_up(folder: Path, **changes: Any) -> None:
    """A recipe whose paths hold wherever its folder lies."""
    byte_model(folder / "model")
    write_rows(folder / "rows.jsonl", rows(TRAINED_ON + 4))
    section = {"gpu_memory_utilization": 0.1, "max_num_seqs": 32}
    values = {
        **TINY,
        "model": {"path": "model", "dtype": "float32"},
        "data": {"path": "rows.jsonl", "held_out": 4},
        "sampling": {"engine": "vllm", "max_new_tokens": 12, "shard_rows": SHARD_ROWS, "vllm": section},
        "sft": None,
        "controls": None,
        "showcase": [],
        "iterations": 1,
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    command = command or (*SPARRING, "run", "recipe.yaml")
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=(folder / "err").open("w"), text=True)


def finish(folder: Path) -> None:
    assert start(folder).wait(800) == 0, (folder / "err").read_text()[-4000:]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a game of one iteration that nothing came between."""
    folder = tmp_path_factory.mktemp("never") / "game"
    set_up(folder)
    finish(folder)
    return folder


# --- killed


@pytest.fixture
def begun(never_killed: Path, tmp_path: Path) -> Path:
    """The same game up to its first replies: what comes before them costs a start of vLLM, and no kill here touches it."""
    folder = tmp_path / "game"
    shutil.copytree(never_killed, folder, symlinks=True)
    shutil.rmtree(folder / "run" / "iterations")
    for derived in ("summary.json", "metrics.jsonl", "best"):
        (folder / "run" / derived).unlink()
    return folder


def kill_when(folder: Path, reached: Callable[[list[str]], bool]) -> None:
    """Start the game and SIGKILL it, and nothing else, as soon as `reached` holds of the titles of its processes."""
    running = start(folder)
    while not reached([title_of(process) for process in psutil.Process(running.pid).children(recursive=True)]):
        assert running.poll() is None, (folder / "err").read_text()[-4000:]
        time.sleep(0.005)
    running.kill()
    running.wait()


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def assert_nothing_runs_in(folder: Path, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while found := [title_of(process) for process in psutil.process_iter() if is_of(process, folder)]:
        assert time.monotonic() < end, found
        time.sleep(0.05)


def is_of(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.cwd() == str(folder)
    except psutil.Error:  # ended
        return False


def shards_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("shard-*.parquet")}


def test_a_game_killed_while_it_samples_ends_as_one_that_was_not(begun: Path, never_killed: Path) -> None:
    """Nothing finished is sampled again, no row is lost or doubled, none of vLLM's processes stays.

    Equal to the uninterrupted game are, bit for bit: all replies with their finish reasons, the opponent's log-probs, the player's
    weights, its scores and samples, metrics, summary, the stages' inputs and facts and the names of all files; all but times.
    """
    partial, cores = begun / "run" / f"{GENERATE}.partial", []

    def is_sampling(titles: list[str]) -> bool:
        cores[:] = [title for title in titles if "EngineCore" in title]
        return len(shards_of(partial)) >= 2

    kill_when(begun, is_sampling)
    kept = shards_of(partial)
    assert 2 <= len(kept) < TRAINED_ON // SHARD_ROWS and cores, "in the middle, with a vLLM at work"
    assert_nothing_runs_in(begun)
    finish(begun)

    assert shards_of(begun / "run" / GENERATE).items() >= kept.items(), "what was there was not sampled again"
    found = [row["row_id"] for row in read_rows(begun / "run" / GENERATE)]
    assert len(found) == len(set(found)) == TRAINED_ON, "no row lost, none doubled"
    for stage in ("start/measure", GENERATE, "iterations/000/measure"):
        check = facts(begun, stage)["logp_check"]
        assert check["rows"] >= 2 and check["worst"] < 1e-3, (stage, check)
    assert_same_outcome(begun / "run", never_killed / "run")


def test_none_of_its_processes_outlives_a_run_that_is_killed_while_they_start(begun: Path) -> None:
    kill_when(begun, lambda titles: any("multiprocessing.spawn" in title for title in titles))
    assert_nothing_runs_in(begun)


# --- ranks


def test_ranks_by_hand_have_their_replies_from_rank_0(begun: Path, never_killed: Path) -> None:
    """Under torchrun, whose names in the environment would have vLLM's processes wait for a store that is not theirs."""
    options = ["launcher.kind=accelerate", "launcher.processes=2", "launcher.cpu=true"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sparring"]
    assert start(begun, *torchrun, "stage", "recipe.yaml", GENERATE, *options).wait(800) == 0, (begun / "err").read_text()[-4000:]
    shards, expected = (shards_of(folder / "run" / GENERATE) for folder in (begun, never_killed))
    assert {name: content for name, (content, _) in shards.items()} == {name: content for name, (content, _) in expected.items()}
    assert facts(begun, GENERATE)["logp_check"]["worst"] < 1e-3
    assert (begun / "err").read_text().count("vLLM starts") == 1
    assert_nothing_runs_in(begun)


def facts(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "run" / stage / "done.json").read_text())["facts"]


# --- adapters


def test_a_game_of_adapters(tmp_path: Path) -> None:
    """At iteration 1 the opponent is base and adapter: vLLM serves the adapter as LoRA, and its log-probs are the merged player's."""
    set_up(tmp_path, train={**TINY["train"], "lora": {"rank": 4}, "lr": 1e-2}, iterations=2)
    finish(tmp_path)
    check = facts(tmp_path, "iterations/001/generate")["logp_check"]
    assert check["rows"] == SHARD_ROWS and check["worst"] < 1e-3, check


# --- served


def test_a_server_answers_as_the_exported_player(never_killed: Path, tmp_path: Path) -> None:
    """Through its chat endpoint, greedily: weights, chat template, end of turn and generation config are those of the folder."""
    run = never_killed / "run"
    subprocess.run([*SPARRING, "export", run, tmp_path / "out"], check=True)
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tmp_path / "out", "--served-model-name", "player"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", port, "--enforce-eager", "--max-num-seqs", "4"]
    command += ["--gpu-memory-utilization", "0.1"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with log.open("w") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for_port(port, process, log)
        assert ask(port, "say ab") == of_the_player(run, "say ab")
    finally:
        process.terminate()
        process.wait(60)


def of_the_player(run: Path, prompt: str) -> list[int]:
    """By the transformers engine, from the run's own folder."""
    players = Players(run)
    chat = players.chat()
    engine = make_engine(
        players.recipe.sampler.with_sampling(engine="transformers"), chat, run / "iterations/000/train/model", temperature=0.0
    )
    asked = Prompt("x", 0, chat.prompt_ids([Message(role="user", content=prompt)]))
    return list(engine.sample([asked], Stream(0, 0))[0].token_ids)


def ask(port: int, prompt: str) -> list[int]:
    """The tokens of the answer: of its text a server keeps back what may be half a character."""
    body = {"model": "player", "messages": [{"role": "user", "content": prompt}], "max_tokens": 12, "temperature": 0}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    data = json.dumps({**body, "return_token_ids": True}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]["token_ids"]
