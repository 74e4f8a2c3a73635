"""The real vLLM: inside the run, and as a server on loopback, started once each. In an environment of its own: `make test-vllm`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from exact import LONG, SHORT, STOP, VOCABULARY, next_token, p_value, same_prompt, sequences, tiny

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm has an environment with it")

from tokenizers import Tokenizer, models

from sparring.config import LoraSection, SamplingSection, ServerSection
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent.agreement import check_agreement
from sparring.opponent.protocol import Prompt, Stream
from sparring.opponent.server import make_server_engine
from sparring.opponent.vllm_engine import VllmEngine
from sparring.policy.adapters import new_adapter, save_adapter
from sparring.policy.load import load_model
from sparring.policy.score import Scorer

pytestmark = pytest.mark.timeout(900)
HEAD_DIM = 32  # the smallest that vLLM's attention takes on a CPU


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of the other engines' chi-square test, with settings of its own that must have no effect."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tiny(head_dim=HEAD_DIM).save_pretrained(folder)
    vocabulary = {f"t{token}": token for token in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"t{STOP}", pad_token="t0").save_pretrained(folder)
    own = {"temperature": 0.1, "top_k": 2, "repetition_penalty": 5.0, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(own))
    return folder


def sampling(**changes: Any) -> SamplingSection:
    values = {"engine": "vllm", "max_new_tokens": 2, "vllm": {"max_num_seqs": 64, "gpu_memory_utilization": 0.1}, **changes}
    return SamplingSection.model_validate(values)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(folder, sampling(), "float32", [STOP])
    yield engine
    engine.close()


def follows_the_model(draw: Any, folder: Path, shape: dict[str, float], count: int) -> None:
    model = load_model(folder)
    for ids in (LONG, SHORT):
        sampled = [reply.token_ids for reply in draw(same_prompt(ids, count))]
        one = {(token,): p for token, p in enumerate(next_token(model, ids, **shape)) if p > 0}
        assert p_value([ids[:1] for ids in sampled], one) > 1e-3
        assert p_value(sampled, sequences(model, ids, **shape)) > 1e-3


def with_sampling(engine: Any, **changes: Any) -> Any:
    other = engine.at(1.0)
    other.sampling = other.sampling.model_copy(update=changes)
    return other


def mixed(count: int = 24) -> list[Prompt]:
    return [Prompt(f"row{n // 2}", n % 2, LONG[: 1 + n % 5]) for n in range(count)]


# --- inside the run


@pytest.mark.parametrize("shape", [{"temperature": 1.0, "top_p": 1.0}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_frequencies_are_the_models_own(engine: VllmEngine, folder: Path, shape: dict[str, float]) -> None:
    shaped = with_sampling(engine, **shape)
    follows_the_model(lambda prompts: shaped.sample(prompts, Stream(0, 0)), folder, shape, 6000)


def test_a_reply_depends_on_its_row_alone(engine: VllmEngine) -> None:
    long, prompts = with_sampling(engine, max_new_tokens=8), mixed()
    replies = long.sample(prompts, Stream(0, 0))
    assert long.sample(prompts[::-1], Stream(0, 0)) == replies[::-1]
    assert long.sample(prompts[3:5], Stream(0, 0)) == replies[3:5]
    assert long.sample(prompts, Stream(1, 0)) != replies
    honest(replies, 8)


def honest(replies: list[Reply], limit: int) -> None:
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert (reply.token_ids[-1] == STOP) == (reply.finish_reason == "stop") and STOP not in reply.token_ids[:-1]
        assert reply.finish_reason == "stop" or len(reply.token_ids) == limit


def agreement(engine: Any, folder: Path, dtype: torch.dtype, **changes: Any) -> dict[str, Any]:
    shaped = with_sampling(engine, max_new_tokens=30, **changes)
    found = check_agreement(Scorer(load_model(folder, dtype)), shaped.sampling, mixed(), shaped.sample(mixed(), Stream(0, 0), logps=True))
    print("logp_check", changes, found)
    return found


def test_its_log_probs_agree_with_the_scorers(engine: VllmEngine, folder: Path, tmp_path: Path) -> None:
    for shape in ({}, {"temperature": 0.0}, {"temperature": 0.6, "top_p": 0.7}):
        assert agreement(engine, folder, torch.float32, **shape)["worst"] < 1e-4
    tiny(seed=1, head_dim=HEAD_DIM).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not sample from the player that is scored"):
        agreement(engine, tmp_path, torch.float32)


def test_what_it_does_not_take(engine: VllmEngine, folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"row long has 100 tokens, and with 30 of a reply that is more than vLLM.s limit of 128"
    ) as refused:
        with_sampling(engine, max_new_tokens=30).sample([*mixed(3), Prompt("long", 0, (1,) * 100)], Stream(0, 0))
    assert refused.value.where == "sampling.vllm.max_model_len"
    with pytest.raises(UserError, match=r"vLLM does not start: .*max_model_len") as refused:
        VllmEngine(folder, sampling(vllm={"max_model_len": 10**6}), "float32", [STOP])
    assert "gpu_memory_utilization, max_model_len" in str(refused.value)


@pytest.mark.slow
def test_two_devices_draw_as_one_until_one_is_gone(engine: VllmEngine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor parallel over two processes; then one of them is killed, as a system short of memory does it."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else it asks for a NUMA node for each
    others = psutil.Process().children(recursive=True)
    settings = sampling(max_new_tokens=8, vllm={"tensor_parallel": 2, "max_num_seqs": 64, "gpu_memory_utilization": 0.1})
    both = VllmEngine(folder, settings, "float32", [STOP])
    try:
        assert both.sample(mixed(), Stream(0, 0)) == with_sampling(engine, max_new_tokens=8).sample(mixed(), Stream(0, 0))
        assert agreement(both, folder, torch.float32)["worst"] < 1e-4
        workers = [process for process in psutil.Process().children(recursive=True) if process not in others]
        titles = {process: " ".join(process.cmdline()) for process in workers}
        next(process for process, title in titles.items() if "Worker" in title).kill()
        with pytest.raises(UserError, match="a process of vLLM ended while it sampled") as refused:
            both.sample(mixed(), Stream(0, 1))
        assert "the run resumes" in str(refused.value)
    finally:
        both.close()
    assert gone(workers)


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    """Whether all have ended; one that nobody has asked for its exit code has."""
    end = time.monotonic() + seconds
    while any(is_alive(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- a server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real `vllm serve`, under the name that stands for the model's content."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    # what `vllm serve` runs; the command itself asks for a distribution named vllm, and this one is named vllm-cpu
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--served-model-name", "player", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--generation-config", "vllm", "--max-num-seqs", "64"]
    command += ["--gpu-memory-utilization", "0.1", "--api-key", "sk-loopback", "--enable-lora", "--max-lora-rank", "8"]
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    environment = {**os.environ, **quiet, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with log.open("w") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for_port(port, process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 800
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture
def server_engine(served: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("TEST_SERVER_KEY", "sk-loopback")
    section = ServerSection(urls=(served,), model="player", api_key_env="TEST_SERVER_KEY", concurrency=64)
    engine = make_server_engine(folder, sampling(engine="server").model_copy(update={"server": section}), [STOP])
    yield engine
    engine.close()


def test_a_real_server(server_engine: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distribution, a row's own replies, log-probs, a key that is wrong and a model that is not there."""
    follows_the_model(lambda prompts: server_engine.sample(prompts, Stream(1, 0)), folder, {}, 600)
    long, prompts = with_sampling(server_engine, max_new_tokens=8), mixed()
    replies = long.sample(prompts, Stream(0, 0))
    assert long.sample(prompts[::-1], Stream(0, 0)) == replies[::-1]
    honest(replies, 8)
    for shape in ({}, {"temperature": 0.0}, {"temperature": 0.6, "top_p": 0.7}):
        assert agreement(server_engine, folder, torch.float32, **shape)["worst"] < 1e-4

    section = server_engine.endpoints.section
    for change, part in (({"model": "other"}, "does not serve 'other'; it serves 'player'"), ({"api_key_env": None}, "401")):
        settings = server_engine.sampling.model_copy(update={"server": section.model_copy(update=change)})
        with pytest.raises(UserError, match=part):
            make_server_engine(folder, settings, [STOP])


def test_an_adapter_in_a_real_server_of_its_base(
    server_engine: Any, served: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded at its first reply, under a name of its own; it draws from base and adapter, and not from the base."""
    adapter = an_adapter(folder, tmp_path / "adapter")
    section = ServerSection(urls=(served,), api_key_env="TEST_SERVER_KEY")
    engine = make_server_engine(adapter, server_engine.sampling.model_copy(update={"server": section}), [STOP])
    try:
        assert engine.name.startswith("sparring-")
        assert agreement(engine, adapter, torch.float32)["worst"] < 1e-4
        with pytest.raises(UserError, match="does not sample from the player that is scored"):
            agreement(engine, folder, torch.float32)
    finally:
        engine.close()


def an_adapter(base: Path, folder: Path) -> Path:
    """One that moves the model far."""
    model = new_adapter(load_model(base), LoraSection(rank=4), seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.5)
    save_adapter(model, folder, str(base))
    return folder
