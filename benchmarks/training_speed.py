"""Opponent pass + training, ours and TRL's DPOTrainer: same model, same token ids, same precision, same optimizer steps.

    python benchmarks/training_speed.py DATA_FOLDER [key=value ...]     # the folder with gsm8k_train.jsonl and dolly_1k.jsonl
    python benchmarks/training_speed.py - model=llama-1b                # random weights and token ids, nothing to download; for a GPU

keys: pairs=64 epochs=1,3 runs=3 data=dolly,gsm8k optimizer=rmsprop trl_batch=0 threads=0 (0: TRL's fastest of 1, 2, 4 and 8 is found first;
all cores). rmsprop is what the paper trains with. model=smollm2, or llama-1b, llama-7b (14 bytes a parameter: 100 GB) or llama-tiny.

Every run is a process of its own and trains for the most epochs; its time for fewer is that without the later epochs' steps, start and
end included. Ours and TRL's alternate. Prints a table of medians and, after every two runs, writes benchmarks/results/training_speed.json
(of random weights: training_speed-MODEL.json).
The work runs on a GPU where there is one. TRL computes the reference log-probs once, as
we do, without gradient checkpointing; its other settings are its defaults. Utilisation counts the useful floating-point operations only:
2 per weight and token forward, 4 backward, of the tokens of the packed trees (prompt once, last token of a reply not fed), of the head at
reply tokens, and of the attention that the tree allows. Nothing that is computed again counts. The peak is the best matrix product
(bfloat16 where the machine has fast ones, which is then what both compute in, else float32) that the script measures between the runs.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from common import (
    BATCH_SIZE,
    LR,
    MODEL,
    WORK,
    duels_of,
    machine,
    make_pairs,
    matmul_peak,
    options_of,
    precision,
    print_origin,
    random_model,
    random_pairs,
    ready_model,
    save,
    section_of,
    tokens_that_fit,
)

BETA = 0.1
DEFAULTS = {
    "pairs": "64",
    "epochs": "1,3",
    "runs": "3",
    "data": "dolly,gsm8k",
    "optimizer": "rmsprop",
    "model": "smollm2",
    "trl_batch": "0",
    "threads": "0",
}


def ours(rows: list[dict[str, Any]], epochs: Sequence[int], folder: Path, model: Path, optimizer: str, **options: Any) -> dict[str, Any]:
    """options: further ones of the recipe's section `train`."""
    from sparring.training.fit import METRICS, fit
    from sparring.training.opponent_pass import read_logps, score_duels
    from sparring.training.plan import make_plan
    from sparring.training.tasks import SpinTask

    tokens = tokens_that_fit(model, optimizer)
    duels, section = duels_of(rows), section_of(epochs=max(epochs), optimizer=optimizer, micro_batch_tokens=tokens, **options)
    plan = make_plan(section, len(duels), lr=LR, epochs=max(epochs), seed=0, name="benchmark")
    (folder / "score").mkdir()
    (folder / "train").mkdir()
    began = time.perf_counter()
    score_duels(folder / "score", model, duels, plan, section, "opponent pass")
    scored = time.perf_counter()
    task = SpinTask(duels, read_logps(folder / "score"), BETA, "logistic")
    fit(folder / "train", model, task, plan, section, phase="training", labels={})
    ended = time.perf_counter()
    rows_of_steps = [json.loads(line) for line in (folder / "train" / METRICS).read_text().splitlines()]
    later = {several: sum(row["seconds"] for row in rows_of_steps[several * plan.steps // max(epochs) :]) for several in epochs}
    seconds = {several: ended - began - later[several] for several in epochs}
    facts = {"opponent_pass": scored - began, "steps": plan.steps, "first_loss": rows_of_steps[0]["loss"], "micro_batch_tokens": tokens}
    first = {"first_margin": rows_of_steps[0]["margin"], "step_seconds": [row["seconds"] for row in rows_of_steps]}
    return {"seconds": seconds, **facts, **first}


def trl(rows: list[dict[str, Any]], epochs: Sequence[int], folder: Path, model: Path, optimizer: str, batch: int) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class OnTheseIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
            return dataset

    class Clock(TrainerCallback):
        ends: ClassVar[list[float]] = []
        steps: ClassVar[list[float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps.append(time.perf_counter())

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    began = time.perf_counter()
    arguments = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        learning_rate=LR,
        optim={"rmsprop": "rmsprop", "adamw": "adamw_torch_fused", "adafactor": "adafactor"}[optimizer],
        lr_scheduler_type="linear",
        num_train_epochs=max(epochs),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=BATCH_SIZE // batch,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=precision() == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = OnTheseIds(
        model=AutoModelForCausalLM.from_pretrained(model, dtype="float32"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[Clock()],
    )
    scored = time.perf_counter()
    trainer.train()
    ended = time.perf_counter()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    seconds = {several: ended - began - (Clock.ends[-1] - Clock.ends[several - 1]) for several in epochs}
    steps = {"steps": trainer.state.global_step, "step_seconds": [end - start for start, end in pairwise([scored, *Clock.steps])]}
    return {"seconds": seconds, "opponent_pass": scored - began, "first_loss": first, **steps}


def tree_tokens(rows: list[dict[str, Any]]) -> int:
    """Tokens that are computed of the pairs as trees: prompt once, last token of a reply not fed."""
    return sum(len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) - 2 for row in rows)


def useful_operations(rows: list[dict[str, Any]], model: Path, epochs: int) -> float:
    """Floating-point operations of one opponent pass and `epochs` of training, counted as the module's text says."""
    config = json.loads((model / "config.json").read_text())
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


# --- a run is a process


@dataclass(frozen=True)
class Work:
    """What both sides are given."""

    pairs: Path
    model: Path
    epochs: tuple[int, ...]
    optimizer: str
    trl_batch: int
    threads: int


def child(who: str, pairs: str, model: str, epochs: str, optimizer: str, batch: str) -> None:
    import torch

    rows = json.loads(Path(pairs).read_text())
    with tempfile.TemporaryDirectory() as folder:
        given = (rows, [int(several) for several in epochs.split(",")], Path(folder), Path(model), optimizer)
        found = ours(*given) if who == "ours" else trl(*given, int(batch))
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Linux counts in kilobytes
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else process
    print(json.dumps({**found, "peak_memory_gb": peak}))


def run(who: str, work: Work) -> dict[str, Any]:
    """One process; its numbers. Raises RuntimeError with the end of what it said where it fails."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(work.threads)} if work.threads else {})}
    arguments = [work.pairs, work.model, ",".join(map(str, work.epochs)), work.optimizer, work.trl_batch]
    command = [sys.executable, __file__, "child", who, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["seconds"] = {int(several): value for several, value in found["seconds"].items()}
    of = work.pairs.stem + (f", batches of {work.trl_batch}" if who == "trl" else "")
    seconds = ", ".join(f"{several} epochs {value:.1f} s" for several, value in found["seconds"].items())
    print(f"{who:5} {of}: {seconds}, {found['peak_memory_gb']:.2f} GB", flush=True)
    return found


def fastest_trl_batch(work: Work) -> int:
    """On a quarter of the pairs, one epoch. A batch that does not fit is no candidate."""
    rows = json.loads(work.pairs.read_text())
    few = WORK / f"few-{work.pairs.stem}.json"
    few.write_text(json.dumps(rows[: max(BATCH_SIZE, len(rows) // 4)]))
    seconds = {}
    for batch in (1, 2, 4, 8):
        try:
            seconds[batch] = run("trl", replace(work, pairs=few, epochs=(1,), trl_batch=batch))["seconds"][1]
        except RuntimeError as error:
            print(f"trl, batches of {batch}: {str(error).splitlines()[-1]}")
    if not seconds:
        sys.exit("TRL cannot train this in any batch size")
    return min(seconds, key=seconds.__getitem__)


def compare(work: Work, runs: int) -> Iterator[dict[int, dict[str, Any]]]:
    """Alternating runs; after every pair of them the comparison so far, for each number of epochs."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    peaks = []
    for _ in range(runs):
        for who in found:
            found[who].append(run(who, work))
        peaks.append(matmul_peak())
        yield {several: _comparison(work, several, found, max(peaks)) for several in work.epochs}


def _comparison(work: Work, epochs: int, found: dict[str, list[dict[str, Any]]], peak: float) -> dict[str, Any]:
    rows = json.loads(work.pairs.read_text())
    seconds = {who: [one["seconds"][epochs] for one in several] for who, several in found.items()}
    memory = {who: statistics.median(one["peak_memory_gb"] for one in several) for who, several in found.items()}
    middle = {who: statistics.median(values) for who, values in seconds.items()}
    useful = useful_operations(rows, work.model, epochs)
    tokens = tree_tokens(rows)
    return {
        "machine": machine(),
        "pairs": len(rows),
        "model": work.model.name,
        "epochs": epochs,
        "runs": len(found["ours"]),
        "optimizer": work.optimizer,
        "trl_batch": work.trl_batch,
        "seconds": seconds,
        "peak_memory_gb": memory,
        "first_loss": {who: several[0]["first_loss"] for who, several in found.items()},
        "tokens_per_second": {who: tokens * epochs / value for who, value in middle.items()},
        "times_faster": middle["trl"] / middle["ours"],
        "memory_ratio": memory["trl"] / memory["ours"],
        "matmul_peak_gflops": peak / 1e9,
        "utilisation": {who: useful / value / peak for who, value in middle.items()},
    }


def table(results: dict[str, Any]) -> list[str]:
    """The rows of the table in docs/fast-path.md."""
    columns = "work | ours, s | TRL, s | times faster | ours, tokens/s | ours, GB | TRL, GB | memory ratio | ours, of peak | TRL, of peak"
    lines = [f"| {columns} |", "|" + "---|" * 10]
    for name, one in results.items():
        spread = {who: f"{statistics.median(v):.1f} ({min(v):.1f} to {max(v):.1f})" for who, v in one["seconds"].items()}
        memory, used = one["peak_memory_gb"], one["utilisation"]
        lines.append(
            f"| {name}, {one['pairs']} pairs | {spread['ours']} | {spread['trl']} | {one['times_faster']:.2f} | "
            f"{one['tokens_per_second']['ours']:.0f} | {memory['ours']:.2f} | {memory['trl']:.2f} | {one['memory_ratio']:.2f} | "
            f"{used['ours']:.0%} | {used['trl']:.0%} |"
        )
    return lines


def works(data: Path, options: dict[str, str]) -> Iterator[tuple[str, Work]]:
    """(name, work) for every data set, or for random ids where the weights are random."""
    rest = options["optimizer"], int(options["trl_batch"]), int(options["threads"])
    epochs = tuple(int(several) for several in options["epochs"].split(","))
    if options["model"] != "smollm2":
        yield "random ids", Work(random_pairs(int(options["pairs"])), random_model(options["model"]), epochs, *rest)
        return
    if not data.is_dir():
        sys.exit(f"training speed: skipped, there is no folder {data} with gsm8k_train.jsonl and dolly_1k.jsonl (make bench DATA=...)")
    ready_model()
    for name in options["data"].split(","):
        yield name, Work(make_pairs(name, data, int(options["pairs"])), MODEL, epochs, *rest)


def main(data: Path, options: dict[str, str]) -> None:
    results: dict[str, Any] = {}
    for name, work in works(data, options):
        work = work if work.trl_batch else replace(work, trl_batch=fastest_trl_batch(work))
        file = "training_speed" if work.model == MODEL else f"training_speed-{work.model.name}"
        for so_far in compare(work, int(options["runs"])):
            results |= {f"{name}, {epochs} epochs": comparison for epochs, comparison in so_far.items()}
            save(file, {"results": results})
    print_origin()
    print("\n".join(table(results)))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "child":
        child(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]), options_of(DEFAULTS, sys.argv[2:]))
