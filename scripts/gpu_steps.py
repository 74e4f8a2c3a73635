"""The steps of `make gpu-check`, each in a separate process: `python scripts/gpu_steps.py STEP FOLDER real|dry [PARENT]` prints one line
of JSON last. With the id of its parent, a step ends with all that it has started as soon as that process is gone.

Models have random weights and are in runs/training_speed, where benchmarks/common.py makes them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
DATASHEET = 989e12  # bfloat16 operations a second of an H100 or H200, dense
TESTS_SECONDS = 130  # after which the remaining tests are not run; a dry run has no such limit
GAME = ["data.max_examples=28", "data.held_out=4", "sft=null", "controls=null", "showcase=[]", "report=false"]
GAME += ["sampling.max_new_tokens=12", "train.batch_size=8", "train.checkpoint_every=1"]
GAME += ["sampling.engine=transformers"]  # vLLM, the default where it is installed, takes a minute to start in every stage


@dataclass(frozen=True)
class Size:
    """small, large: shapes of benchmarks/common.py. shorter: how many times shorter the pairs are. batch: rows of `generate` at once."""

    small: str
    large: str
    pairs: int
    shorter: int
    prompts: int
    new_tokens: int
    batch: int
    iterations: int


REAL = Size("llama-1b", "llama-7b", pairs=160, shorter=1, prompts=256, new_tokens=128, batch=32, iterations=2)
# three steps of training, as the speed is that of the steps after the second; few tokens, since many CPUs only emulate bfloat16
DRY = Size("llama-tiny", "llama-tiny", pairs=48, shorter=20, prompts=4, new_tokens=6, batch=4, iterations=1)


def models(_: Path, size: Size) -> dict[str, Any]:
    """Makes the weights while the first steps run."""
    from common import random_model

    return {"models": sorted({str(random_model(name)) for name in (size.small, size.large)})}


def model_at(name: str) -> Path:
    """The folder of a model, which `models` has made. Raises FileNotFoundError if it has not."""
    from common import WORK

    if not (WORK / name).exists():
        raise FileNotFoundError(f"no weights in {WORK / name}; models.err says why")
    return WORK / name


# --- the tests, and games


def tests(folder: Path, size: Size) -> dict[str, Any]:
    """tests/test_gpu.py; in several processes, because most of its time is compilation on the CPU. "exit": pytest's code.

    Exits with an error if the tests were cut, so that a second call repeats them: torch keeps on disk what it has compiled.
    """
    workers = min(8, (os.cpu_count() or 2) // 2) if size is REAL else 0
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-n", str(workers), "tests/test_gpu.py"]
    log, limit = folder / "tests.log", TESTS_SECONDS if size is REAL else None
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # else each worker starts compilers for all cores
    try:
        with log.open("w") as file:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        print(json.dumps({**outcomes(log.read_text()), "exit": None}), flush=True)
        sys.exit(f"cut after {limit} s")
    return {**outcomes(log.read_text()), "exit": code}


OUTCOME = "PASSED|FAILED|ERROR|SKIPPED"
LINES = (re.compile(rf"^\[gw\d+\] \[ *\d+%\] (?P<outcome>{OUTCOME}) (?P<name>tests/.+?) *$", re.M),)  # of several processes
LINES += (re.compile(rf"^(?P<name>tests/\S+::.+?) (?P<outcome>{OUTCOME})\b", re.M),)


def outcomes(text: str) -> dict[str, Any]:
    """Counts of pytest's verbose lines, and the names of what failed."""
    said = {found["name"]: found["outcome"] for line in LINES for found in line.finditer(text)}
    counts = {word.lower(): sum(one == word for one in said.values()) for word in OUTCOME.split("|")}
    return {**counts, "failures": sorted(name for name, one in said.items() if one in ("FAILED", "ERROR"))}


def game(folder: Path, size: Size) -> dict[str, Any]:
    """The tiny recipe, killed after the first checkpoint of its first training, and resumed."""
    command = play(folder / "game", size)
    log = (folder / "game.log").open("w")
    first = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    while first.poll() is None and not any((folder / "game").rglob("checkpoint-*/step.json")):
        time.sleep(0.02)
    was_killed = first.poll() is None
    if was_killed:
        first.kill()
    first.wait()
    subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    return {"killed": was_killed, "went_on": "resuming at step" in (folder / "game.log").read_text(), **played(folder / "game")}


FSDP2 = """distributed_type: FSDP
num_processes: 1
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_reshard_after_forward: true}
"""


def fsdp2(folder: Path, size: Size) -> dict[str, Any]:
    """The tiny recipe on one rank under FSDP2, over NCCL where there is a GPU. With a config file: else a single rank is not sharded."""
    file = folder / "fsdp2.yaml"
    file.write_text(FSDP2)
    more = ["launcher.kind=accelerate", f"launcher.config_file={file}", *(["launcher.cpu=true"] if size is DRY else [])]
    with (folder / "fsdp2.log").open("w") as log:
        subprocess.run(play(folder / "fsdp2", size, *more), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    return played(folder / "fsdp2")


def play(run_dir: Path, size: Size, *more: str) -> list[str]:
    """The command of a new game: what an earlier attempt at the step left is removed."""
    shutil.rmtree(run_dir, ignore_errors=True)
    overrides = [f"run_dir={run_dir}", f"iterations={size.iterations}", *GAME, *more]
    return [sys.executable, "-m", "sparring", "run", str(ROOT / "recipes" / "tiny.yaml"), *overrides]


def played(run_dir: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    return {"iterations": len(summary["iterations"]), "first_margins": [row["margin"] for row in rows if row["step"] == 0]}


# --- training


def train_small(folder: Path, size: Size) -> dict[str, Any]:
    return trained("ours", size.small, size)


def trl_small(folder: Path, size: Size) -> dict[str, Any]:
    return trained("trl", size.small, size)


def train_large(folder: Path, size: Size) -> dict[str, Any]:
    return trained("ours", size.large, size)


def trl_large(folder: Path, size: Size) -> dict[str, Any]:
    return trained("trl", size.large, size)


def lora(folder: Path, size: Size) -> dict[str, Any]:
    return trained("ours", size.small, size, lora={"rank": 16}, lr=1e-4)


def qlora(folder: Path, size: Size) -> dict[str, Any]:
    return trained("ours", size.small, size, lora={"rank": 16, "quantize": "4bit"}, lr=1e-4)


def trained(who: str, name: str, size: Size, **options: Any) -> dict[str, Any]:
    """One epoch of random pairs: tokens a second and share of the peak once two steps are over, memory, the first margin."""
    import training_speed
    from common import matmul_peak, random_pairs

    model = model_at(name)
    rows = json.loads(random_pairs(size.pairs, size.shorter).read_text())
    optimizer = optimizer_that_fits(name)
    if who == "trl":
        found = in_largest_batch(lambda batch, folder: training_speed.trl(rows, [1], folder, model, optimizer, batch))
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = training_speed.ours(rows, [1], Path(folder), model, optimizer, **options)
    seconds = statistics.median(found["step_seconds"][2:] or found["step_seconds"])
    operations = training_speed.useful_operations(rows, model, 1) * 3 / 4 / found["steps"]  # the rest is the opponent pass
    memory = peak_gb()  # before the peak's own matrices
    return {
        **found,
        "peak_gb": memory,
        "model": name,
        "optimizer": optimizer,
        "tokens_per_second": training_speed.tree_tokens(rows) / found["steps"] / seconds,
        "mfu_of_datasheet": operations / seconds / DATASHEET,
        "share_of_measured_peak": operations / seconds / matmul_peak() if size is REAL else None,
    }


def in_largest_batch(work: Callable[[int, Path], dict[str, Any]]) -> dict[str, Any]:
    """What `work` finds with the largest number of pairs that the device holds at once."""
    import torch

    for batch in (4, 2):
        with contextlib.suppress(torch.OutOfMemoryError), tempfile.TemporaryDirectory() as folder:
            return {**work(batch, Path(folder)), "batch": batch}
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        return {**work(1, Path(folder)), "batch": 1}


def optimizer_that_fits(name: str) -> str:
    """RMSProp, the paper's; Adafactor where the device is too small for it (7B on 80 GB)."""
    import torch
    from common import WORK

    from sparring.policy.compute import free_memory
    from sparring.policy.footprint import Parallel, training_bytes
    from sparring.policy.load import model_shape

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    needed = training_bytes("bf16", "rmsprop", Parallel()) * model_shape(WORK / name).num_parameters()
    return "rmsprop" if 1.15 * needed < free_memory(device) else "adafactor"


def peak_gb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


# --- sampling


def sampling(folder: Path, size: Size) -> dict[str, Any]:
    """Reply tokens a second: packed rows, `generate`, and `generate` with a static cache, which transformers compiles into CUDA graphs on
    a GPU. There all batches are padded to one length, as it would compile again for every other size of the cache.

    One token in 64 ends a reply, so that lengths vary as with a trained model.
    """
    import torch
    from sampling_speed import generate, packed

    from sparring.policy.compute import make_accelerator
    from sparring.policy.load import load_model

    prompts = prompts_of(size)
    model = load_model(model_at(size.small), torch.bfloat16).to(make_accelerator().device)
    stops, limit = list(range(0, model.config.vocab_size, 64)), size.new_tokens
    static = {"cache_implementation": "static", "padded_to": max(map(len, prompts))}
    ways: dict[str, Callable[[], list[int]]] = {
        "packed": lambda: packed(prompts, limit, stops, model),
        "generate": lambda: generate(prompts, limit, stops, model, size.batch),
        "generate, static cache": lambda: generate(prompts, limit, stops, model, size.batch, **static),
    }
    rates: dict[str, float] = {}
    own = model.config._attn_implementation
    for name, way in ways.items():
        model.set_attn_implementation(own)  # packed rows have left theirs
        rates[name] = rate_of(way)
        print(json.dumps({"tokens_per_second": rates}), flush=True)  # what is there if this is cut
    return {"tokens_per_second": rates, "peak_gb": peak_gb()}


def vllm(folder: Path, size: Size) -> dict[str, Any]:
    """Reply tokens a second of vLLM, started as the engine vllm starts it, for the prompts of `sampling`; its start is not counted.

    Replies have lengths as one stop token in 64 would give them. vLLM searches the list of stop tokens at every token, and 2,000 of them
    would take as long as the model.
    """
    from sparring.config import SamplingSection
    from sparring.opponent import vllm_engine

    settings = SamplingSection(engine="vllm", max_new_tokens=size.new_tokens)
    engine = vllm_engine.VllmEngine(model_at(size.small), settings, "bfloat16", [])
    prompts, draw = [{"prompt_token_ids": list(ids)} for ids in prompts_of(size)], random.Random(1)
    lengths = [min(size.new_tokens, 1 + int(draw.expovariate(math.log(64 / 63)))) for _ in prompts]

    def sample() -> list[int]:
        asked = [engine._settings(seed, logps=False) for seed in range(len(prompts))]
        for one, length in zip(asked, lengths, strict=True):
            one.max_tokens = length
        engine._llm.reset_prefix_cache()  # which has the prompts after the first go
        return [len(one.outputs[0].token_ids) for one in engine._llm.generate(prompts, asked, use_tqdm=False)]

    try:
        return {"tokens_per_second": {"vllm": rate_of(sample)}}
    finally:
        engine.close()


def prompts_of(size: Size) -> list[tuple[int, ...]]:
    draw = random.Random(0)
    return [tuple(draw.randrange(3, 500) for _ in range(draw.randint(30, 120))) for _ in range(size.prompts)]


def rate_of(way: Callable[[], list[int]]) -> float:
    """Tokens a second of the second of two calls: the first compiles, and checks the model's code."""
    way()
    began = time.perf_counter()
    tokens = sum(way())
    return tokens / (time.perf_counter() - began)


STEPS: dict[str, Callable[[Path, Size], dict[str, Any]]] = {
    step.__name__: step
    for step in (models, tests, game, train_small, trl_small, train_large, trl_large, sampling, lora, qlora, fsdp2, vllm)
}


# --- processes


def end_all(pid: int) -> None:
    """Kill a step's process, all that it has started, and its process group. Ranks that torch starts are in sessions of their own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def end_with(parent: int) -> None:
    """End this step when the process that started it is gone, by a SIGKILL for instance: it would hold the GPU while the next call runs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    end_all(os.getpid())


if __name__ == "__main__":
    if len(sys.argv) > 4:
        threading.Thread(target=end_with, args=(int(sys.argv[4]),), daemon=True).start()
    print(json.dumps(STEPS[sys.argv[1]](Path(sys.argv[2]), DRY if sys.argv[3] == "dry" else REAL)), flush=True)
