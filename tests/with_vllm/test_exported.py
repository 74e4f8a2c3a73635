"""`vllm serve` on what `sparring export` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm has an environment with it")

from test_vllm import SPARRING, finish, free_port, recipe_file, wait_for_port

from sparring.samples import answers

pytestmark = pytest.mark.timeout(900)


def test_a_server_answers_as_the_exported_player(tmp_path: Path) -> None:
    """Through its chat endpoint, greedily: weights, chat template, end of turn and generation config are those of the folder."""
    recipe_file(tmp_path, sampling={"max_new_tokens": 5})
    finish(tmp_path)
    subprocess.run([SPARRING, "export", tmp_path / "run", tmp_path / "out"], check=True)
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tmp_path / "out", "--served-model-name", "player"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", port, "--enforce-eager", "--max-num-seqs", "4"]
    command += ["--gpu-memory-utilization", "0.3"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with log.open("w") as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=subprocess.STDOUT, env=environment)
    try:
        wait_for_port(port, process, log)
        assert ask(port, "say ab") == answers(tmp_path / "run", "say ab", temperature=0.0, seed=None)["iteration 0"]
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, prompt: str) -> str:
    body = {"model": "player", "messages": [{"role": "user", "content": prompt}], "max_tokens": 5, "temperature": 0}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]
