"""Many rows through a Ray cluster of two nodes on this machine: rows lost, memory, and throughput compared with one process.

    PYTHON_WITH_RAY benchmarks/ray_rows.py [key=value ...]     # `make setup-ray` makes .venv-ray/bin/python

keys: rows=100000 new=8 shard=4096 batch=512. One reply of at most `new` tokens by the tiny model in float32 to each of `rows` prompts, in
shards as a run writes them; first by the transformers engine in this process with one thread, then by one worker of one thread on every
node. Batches differ, so that rounding may change single replies; they are counted. Memory is that of this process and of the workers
after every shard.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from common import options_of, print_origin, save

from sparring.config import load_recipe
from sparring.data.records import Reply
from sparring.opponent.engines import make_engine
from sparring.opponent.protocol import Prompt, Stream
from sparring.policy.load import model_facts
from sparring.policy.tiny import make_tiny

DEFAULTS = {"rows": "100000", "new": "8", "shard": "4096", "batch": "512"}
VOCABULARY, PROMPT_TOKENS = 64, 12  # of the random prompts; the tiny model knows more tokens


def prompts_of(rows: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (rows, PROMPT_TOKENS), generator=generator).tolist()
    return [Prompt(f"row-{number}", 0, tuple(row)) for number, row in enumerate(ids)]


def engine_of(name: str, folder: Path, options: dict[str, str], **ray: Any) -> Any:
    sampling = {"engine": name, "max_new_tokens": int(options["new"]), "ray": {"batch_rows": int(options["batch"]), **ray}}
    recipe = load_recipe(
        {"run_dir": "run", "model": {"path": str(folder), "dtype": "float32"}, "data": {"path": "d"}, "sampling": sampling}
    )
    chat: Any = SimpleNamespace(stop_ids=frozenset(model_facts(folder)[1]))
    return make_engine(recipe.sampler, chat, folder, 1.0)


def megabytes() -> tuple[float, float]:
    """(resident memory of this process, of all of Ray's workers on this machine)."""
    workers = 0
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::" in part for part in process.info["cmdline"] or ()):
            workers += process.memory_info().rss
    return psutil.Process().memory_info().rss / 1e6, workers / 1e6


def played(parts: Iterator[tuple[int, Sequence[Reply]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(row -> tokens, facts): seconds with the start of workers, rows a second after the first shard, memory after every shard."""
    found, memory, counts, times = dict[str, Any](), [], [], [time.perf_counter()]
    for _, replies in parts:
        found |= {reply.row_id: reply.token_ids for reply in replies}
        counts.append(len(replies))
        times.append(time.perf_counter())
        memory.append(megabytes())
    rate = sum(counts[1:]) / (times[-1] - times[1])
    return found, {"rows": sum(counts), "seconds": times[-1] - times[0], "rows_a_second": rate, "memory_mb": memory}


def on_two_nodes(folder: Path, options: dict[str, str], shards: Sequence[Sequence[Prompt]]) -> tuple[dict[str, Any], dict[str, Any]]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        engine = engine_of("ray", folder, options, address=cluster.address)
        found = played(engine.sample_parts(shards, Stream(0, 0)))
        engine.close()
        return found
    finally:
        cluster.shutdown()


def shown(name: str, found: dict[str, Any]) -> None:
    own, workers = zip(*found["memory_mb"], strict=True)
    quarter = max(1, len(own) // 4)
    spans = ", ".join(
        f"{what} {max(values[:quarter]):.0f} MB in the first quarter, {max(values[-quarter:]):.0f} in the last"
        for what, values in (("this process", own), ("workers", workers))
    )
    print(f"{name}: {found['rows']:,} rows in {found['seconds']:.1f} s, {found['rows_a_second']:.0f} a second; {spans}", flush=True)


def main(options: dict[str, str]) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    torch.set_num_threads(1)
    print_origin()
    prompts = prompts_of(int(options["rows"]))
    size = int(options["shard"])
    shards = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "player"
        folder.mkdir()
        make_tiny(folder, 0)
        alone = engine_of("transformers", folder, options)
        own, one = played((number, alone.sample(shard, Stream(0, 0))) for number, shard in enumerate(shards))
        shown("one process", one)
        found, two = on_two_nodes(folder, options, shards)
        shown("two nodes", two)
    lost, ratio = len(own.keys() - found.keys()), two["rows_a_second"] / one["rows_a_second"]
    other = sum(own[row] != reply for row, reply in found.items())
    print(f"lost {lost}, other replies {other}, {ratio:.2f} times as fast")
    save("ray_rows", {"options": options, "one_process": one, "two_nodes": two, "lost": lost, "other_replies": other})
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main(options_of(DEFAULTS, sys.argv[1:]))
