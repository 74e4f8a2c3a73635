"""Where the time of a training step, or of sampling, goes: its operators, grouped, and the matrix products that take longest.

    python benchmarks/step_profile.py DATA_FOLDER [key=value ...]     # the folder with gsm8k_train.jsonl and dolly_1k.jsonl

keys: work=training pairs=64 data=dolly tokens=1024 steps=3 (tokens of a micro-batch; steps that are profiled, after one that is not);
work=sampling samples replies of at most `new=32` tokens to `pairs` questions of GSM8K, all at once.

Prints a table of self times and writes benchmarks/results/step_profile.json, or sampling_profile.json. Sampling runs too many operators
for the profiler to keep their shapes.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import LR, MODEL, duels_of, make_pairs, matmul_peak, options_of, print_origin, question_ids, ready_model, save, section_of
from torch.profiler import ProfilerActivity, profile

DEFAULTS = {"work": "training", "pairs": "64", "data": "dolly", "tokens": "1024", "steps": "3", "new": "32"}
# The first group with a matching part of an operator's name takes it.
OF_TRAINING = {
    "attention (products, softmax, gathering)": ("bmm", "baddbmm", "softmax", "flash", "index_select", "index_copy", "Take", "PutBack"),
    "matrix products of linear layers and head": ("aten::mm", "aten::addmm", "mkldnn"),
    "copies between float32 and bfloat16, and others": ("copy_", "_to_copy", "cat", "clone", "contiguous"),
    "optimizer and gradient norm": ("_fused", "norm", "foreach", "rmsprop", "sqrt", "addcdiv", "addcmul", "lerp"),
}

OF_SAMPLING = {
    "attention over the cache, and writing it": ("scaled_dot_product", "flash", "bmm", "index_put", "index_copy", "index_select"),
    "drawing": ("softmax", "cumsum", "searchsorted", "argmax", "where", "gather", "aten::sum", "minimum", "nextafter"),
    "matrix products of linear layers and head": ("aten::mm", "aten::addmm", "mkldnn"),
    "norms": ("pow", "rsqrt", "mean"),
    "copies": ("copy_", "_to_copy", "cat", "clone", "contiguous"),
}
GROUPS = {"training": OF_TRAINING, "sampling": OF_SAMPLING}


def profiled(rows: list[dict[str, Any]], tokens: int, steps: int) -> tuple[Any, float, int]:
    """(profile, seconds, tokens) of `steps` training steps."""
    from sparring.training.fit import _Trainer
    from sparring.training.plan import make_plan
    from sparring.training.tasks import SpinTask

    duels = duels_of(rows)
    section = section_of(epochs=8, micro_batch_tokens=tokens)
    plan = make_plan(section, len(duels), lr=LR, epochs=8, seed=0, name="profile")
    trainer = _Trainer(MODEL, SpinTask(duels, {duel.duel_id: [0.0, 0.0] for duel in duels}, 0.1, "logistic"), plan, section)
    trainer.step(0)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as found:
        began = time.perf_counter()
        done = sum(int(trainer.step(step)["tokens"]) for step in range(1, steps + 1))
        seconds = time.perf_counter() - began
    return found, seconds, done


def profiled_sampling(questions: list[tuple[int, ...]], new: int) -> tuple[Any, float, int]:
    """(profile, seconds, tokens) of replies of `new` tokens at most."""
    from sparring.config import SamplingSection
    from sparring.opponent.hf import TransformersEngine
    from sparring.opponent.protocol import Prompt, Stream
    from sparring.policy.compute import make_accelerator
    from sparring.policy.load import DTYPES, load_model, model_facts

    make_accelerator()  # as in a run
    engine = TransformersEngine(load_model(MODEL, DTYPES["bfloat16"]), SamplingSection(max_new_tokens=new), model_facts(MODEL)[1])
    prompts = [Prompt(str(number), 0, ids) for number, ids in enumerate(questions)]
    engine.sample(prompts[:4], Stream(0, 0))  # finds out which way the model takes
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        done = sum(len(reply.token_ids) for reply in engine.sample(prompts, Stream(0, 0)))
        seconds = time.perf_counter() - began
    return found, seconds, done


def grouped(found: Any, parts_of: dict[str, tuple[str, ...]]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = defaultdict(lambda: {"seconds": 0.0, "operations": 0.0})
    for event in found.key_averages():
        name = next((group for group, parts in parts_of.items() if any(part in event.key for part in parts)), "elementwise and the rest")
        groups[name]["seconds"] += event.self_cpu_time_total / 1e6
        groups[name]["operations"] += event.flops or 0
    return dict(groups)


def slowest_shapes(found: Any, count: int = 12) -> list[tuple[str, str, int, float, float]]:
    """(operator, shapes, calls, seconds, GFLOP/s) of the matrix products that take longest."""
    events = sorted((e for e in found.key_averages(group_by_input_shape=True)), key=lambda e: -e.self_cpu_time_total)
    return [
        (e.key, str(e.input_shapes)[:70], e.count, e.self_cpu_time_total / 1e6, (e.flops or 0) / max(e.self_cpu_time_total, 1) / 1e3)
        for e in events[:count]
    ]


def main(data: Path, overrides: list[str]) -> None:
    options = options_of(DEFAULTS, overrides)
    if options["work"] not in GROUPS:
        sys.exit(f"work={options['work']}: one of {', '.join(GROUPS)}")
    ready_model()
    if options["work"] == "training":
        rows = json.loads(make_pairs(options["data"], data, int(options["pairs"])).read_text())
        found, seconds, tokens = profiled(rows, int(options["tokens"]), int(options["steps"]))
    else:
        found, seconds, tokens = profiled_sampling(question_ids(data, int(options["pairs"])), int(options["new"]))
    groups = grouped(found, GROUPS[options["work"]])
    total = sum(group["seconds"] for group in groups.values())
    print_origin()
    print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.0f} a second\n")
    print("| operators | share | seconds | GFLOP/s |\n|---|---|---|---|")
    for name, group in sorted(groups.items(), key=lambda item: -item[1]["seconds"]):
        rate = f"{group['operations'] / group['seconds'] / 1e9:.0f}" if group["operations"] else ""
        print(f"| {name} | {group['seconds'] / total:.0%} | {group['seconds']:.2f} | {rate} |")
    for row in slowest_shapes(found) if options["work"] == "training" else ():
        print("{:28} {:70} {:5} {:7.3f} s {:6.0f} GFLOP/s".format(*row))
    name = {"training": "step_profile", "sampling": "sampling_profile"}[options["work"]]
    save(name, {"tokens": tokens, "seconds": seconds, "groups": groups, "matmul_peak": matmul_peak()})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
