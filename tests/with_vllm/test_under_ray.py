"""Data parallel: a vLLM in every worker of Ray. Where both are installed: `make test-vllm SLOW=1`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exact import LONG, STOP, p_value, same_prompt, sequences, tiny

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm has an environment with it")
pytest.importorskip("ray", reason="Ray is not installed here: make test-vllm SLOW=1 has both")

from test_vllm import HEAD_DIM

from sparring.config import load_recipe
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CHAT: Any = SimpleNamespace(stop_ids=frozenset({STOP}))  # all that an engine asks of it


def test_every_worker_has_a_vllm(tmp_path: Path) -> None:
    """The chi-square test, and the log-probs against the scorer's, over replies of several vLLMs."""
    tiny(head_dim=HEAD_DIM).save_pretrained(tmp_path)
    vllm = {"max_num_seqs": 64, "gpu_memory_utilization": 0.1}
    sampling = {"engine": "ray", "max_new_tokens": 2, "vllm": vllm, "ray": {"engine": "vllm", "max_workers": 2, "batch_rows": 100}}
    recipe = load_recipe({"run_dir": "run", "model": {"path": "p", "dtype": "float32"}, "data": {"path": "d"}, "sampling": sampling})
    prompts = same_prompt(LONG, 2000)
    with Sampler(recipe.sampler, CHAT, tmp_path) as sampler:
        replies = sampler.engine(1.0).sample(prompts, Stream(0, 0), logps=True)
        assert sampler.check(1.0, prompts, replies)["worst"] < 1e-4
    assert p_value([reply.token_ids for reply in replies], sequences(tiny(head_dim=HEAD_DIM), LONG)) > 1e-3
