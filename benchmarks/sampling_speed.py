"""Sampling speed: packed rows, transformers' own `generate` and vLLM, on real prompts with replies of varying length.

    python benchmarks/sampling_speed.py DATA_FOLDER [key=value ...]      # the folder with gsm8k_train.jsonl

keys: prompts=256 max_new_tokens=128 runs=3 batch=32 dtype=bfloat16 vllm=PYTHON (the interpreter of an environment with vLLM; left out
without one)

`generate` gets the same prompts, unsorted as a plain script would, in left-padded batches of `batch`, at temperature 1 without top-k or
top-p; vLLM gets all prompts at once. Every run is a process of its own and they alternate. Counted are the tokens of the replies, end of
turn included, nothing after it; loading is not. Prints a table and writes benchmarks/results/sampling_speed.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import MODEL, WORK, options_of, print_origin, question_ids, ready_model, save

DEFAULTS = {"prompts": "256", "max_new_tokens": "128", "runs": "3", "batch": "32", "dtype": "bfloat16", "vllm": ""}


def packed(prompts: list[tuple[int, ...]], limit: int, stops: list[int], model: Any) -> list[int]:
    from sparring.config import SamplingSection
    from sparring.opponent.hf import TransformersEngine
    from sparring.opponent.protocol import Prompt, Stream

    engine = TransformersEngine(model, SamplingSection(max_new_tokens=limit), stops)
    replies = engine.sample([Prompt(str(number), 0, ids) for number, ids in enumerate(prompts)], Stream(0, 0))
    return [len(reply.token_ids) for reply in replies]


def generate(
    prompts: list[tuple[int, ...]], limit: int, stops: list[int], model: Any, batch: int, padded_to: int = 0, **options: Any
) -> list[int]:
    """padded_to: least length of the padded prompts. options: further ones of transformers' GenerationConfig."""
    import torch
    from transformers import GenerationConfig

    torch.manual_seed(0)
    config = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=limit, eos_token_id=stops, pad_token_id=stops[0], **options
    )
    lengths, ends = [], set(stops)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        longest = max(padded_to, *map(len, part))
        ids = torch.tensor([[stops[0]] * (longest - len(one)) + list(one) for one in part], device=model.device)
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in part], device=model.device)
        for row in model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row) - 1)
            lengths.append(end + 1)
    return lengths


def loaded(who: str, options: dict[str, str]) -> Any:
    """Everything that is not timed. vLLM's environment has nothing of ours."""
    if who == "vllm":
        from vllm import LLM

        # by default it takes nine tenths of the machine's memory for its cache, at once; the work needs 1 GB
        return LLM(model=str(MODEL), dtype=options["dtype"], max_model_len=2048, seed=0, gpu_memory_utilization=0.3)
    from sparring.policy.compute import make_accelerator
    from sparring.policy.load import DTYPES, load_model

    return load_model(MODEL, DTYPES[options["dtype"]]).to(make_accelerator().device)  # as in a run


def vllm(prompts: list[tuple[int, ...]], limit: int, stops: list[int], engine: Any) -> list[int]:
    from vllm import SamplingParams

    settings = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=limit, stop_token_ids=stops, detokenize=False)
    found = engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], settings, use_tqdm=False)
    return [len(one.outputs[0].token_ids) for one in found]


def child(who: str, options: dict[str, str]) -> None:
    prompts = json.loads((WORK / "prompts.json").read_text())
    prompts, stops = [tuple(ids) for ids in prompts["ids"]], prompts["stops"]
    model, limit = loaded(who, options), int(options["max_new_tokens"])
    began = time.perf_counter()
    if who == "generate":
        lengths = generate(prompts, limit, stops, model, int(options["batch"]))
    else:
        lengths = {"packed": packed, "vllm": vllm}[who](prompts, limit, stops, model)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "tokens": sum(lengths), "cut": sum(length == limit for length in lengths)}))


def run(who: str, options: dict[str, str]) -> tuple[float, float]:
    """Tokens per second of one process, and tokens per reply."""
    python = options["vllm"] if who == "vllm" else sys.executable
    command = [python, __file__, "child", who, *(f"{key}={value}" for key, value in options.items())]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    one = json.loads(next(line for line in said if line.startswith('{"seconds"')))  # vLLM says more, before and after
    rate = one["tokens"] / one["seconds"]
    print(f"{who:8} {one['tokens']} tokens, {one['cut']} replies cut, {one['seconds']:.1f} s, {rate:.0f} tokens/s", flush=True)
    return rate, one["tokens"] / int(options["prompts"])


def main(data: Path, options: dict[str, str]) -> None:
    from sparring.data.chat import Chat
    from sparring.policy.load import load_tokenizer, model_facts

    ready_model()
    stops = sorted(Chat(load_tokenizer(MODEL), None, model_facts(MODEL)[1]).stop_ids)
    (WORK / "prompts.json").write_text(json.dumps({"ids": question_ids(data, int(options["prompts"])), "stops": stops}))
    rates: dict[str, list[float]] = {"packed": [], "generate": [], **({"vllm": []} if options["vllm"] else {})}
    lengths: dict[str, list[float]] = {who: [] for who in rates}
    for _ in range(int(options["runs"])):
        for who in rates:
            rate, length = run(who, options)
            rates[who].append(rate)
            lengths[who].append(length)
        middle = {who: statistics.median(found) for who, found in rates.items()}
        ratios = {who: middle["packed"] / rate for who, rate in middle.items() if who != "packed"}
        save("sampling_speed", {"options": options, "tokens_per_second": rates, "tokens_per_reply": lengths, "times_faster_than": ratios})
    print_origin()
    print("\n".join(table(rates)))
    print("packed is " + ", ".join(f"{ratio:.2f} times as fast as {who}" for who, ratio in ratios.items()))
    if not options["vllm"]:
        print("vLLM: left out, no interpreter with it was named (vllm=PYTHON)")


def table(rates: dict[str, list[float]]) -> list[str]:
    """The rows of the table in docs/fast-path.md."""
    rows = [f"| {who} | {statistics.median(found):.0f} | {min(found):.0f} to {max(found):.0f} |" for who, found in rates.items()]
    return ["| | median tokens/s | spread |", "|---|---|---|", *rows]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "child":
        child(sys.argv[2], options_of(DEFAULTS, sys.argv[3:]))
    else:
        main(Path(sys.argv[1]), options_of(DEFAULTS, sys.argv[2:]))
