"""The recipes that come with the program: each loads, can be planned without a network, and plays for real with a tiny model of the same
architecture and rows of the same shape in place of what would take hours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import write_rows
from zygote import Result, Zygote

from sparring.config import Recipe, at_iteration, load_recipe
from sparring.planning.command import plan_of
from sparring.planning.given_shape import KNOWN_SHAPES
from sparring.planning.hardware import find_hardware
from sparring.planning.lengths import Given
from sparring.policy.tiny import CHATML, byte_tokenizer

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*/recipe.yaml"))
NAMES = [path.parent.name for path in RECIPES]
# on which each is meant to fit
HARDWARE = {
    "llama-70b-fsdp": "32xH100-80G",
    "qwen-1.5b-lora-24gb": "RTX4090",
    "smollm2-135m": "RTX4090",
    "zephyr-7b": "8xA100-80G",
    "zephyr-7b-paper": "8xA100-80G",
}
ZEPHYR = (Path(__file__).parent / "data" / "zephyr.jinja").read_text(encoding="utf-8")
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
# played with all their iterations; of the others one is enough here
IN_FULL = ("zephyr-7b-paper",)


def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / name / "recipe.yaml", overrides)


def test_every_folder_is_listed_and_explained() -> None:
    assert sorted(HARDWARE) == NAMES
    assert all((path.parent / "README.md").is_file() for path in RECIPES)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("**/*.yaml")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads(path: Path) -> None:
    load_recipe(path)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned_and_fits_the_hardware_that_it_is_for(name: str) -> None:
    plan = plan_of(recipe(name), HARDWARE[name], Given())
    assert plan.peak.memory.total <= find_hardware(HARDWARE[name]).memory, (plan.peak.kind, plan.peak.memory)
    assert plan.fits


# ---------------------------------------------------------------------------------------------- played for real


def make_model(folder: Path, path: str) -> None:
    """The model's architecture with every size made small, and a template like its own."""
    known = KNOWN_SHAPES[path]
    tokenizer = byte_tokenizer(ZEPHYR if known["model_type"] == "mistral" else CHATML)
    sizes = {
        **TINY,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    if "sliding_window" in known:
        sizes["sliding_window"] = 64
    config = transformers.AutoConfig.for_model(**{**known, **sizes, "head_dim": 8})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows_like(name: str, count: int = 14) -> list[dict[str, Any]]:
    """Rows in the columns of the recipe's data set."""

    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    if name == "zephyr-7b-paper":
        return [{"real": turns(f"ask {n}", f"answer {n}"), "generated": turns(f"ask {n}", "an old reply")} for n in range(count)]
    if name.startswith("qwen"):
        return [{"question": f"what is {n} + 1", "answer": f"one more #### {n + 1}"} for n in range(count)]
    asked = [f"ask {n}" for n in range(count)]
    return [
        {"prompt": ask, "prompt_id": str(n), "messages": turns(ask, f"first {n}", "and then?", f"second {n}")}
        for n, ask in enumerate(asked)
    ]


def play(name: str, folder: Path, zygote: Zygote) -> Result:
    """The recipe itself, with what a laptop cannot hold replaced on the command line."""
    make_model(folder / "model", recipe(name).model.path)
    write_rows(folder / "rows.jsonl", rows_like(name))
    overrides = ["run_dir=run", "model.path=model", "model.revision=null", "data.path=rows.jsonl", "data.name=null", "data.held_out=4"]
    overrides += ["sampling.max_new_tokens=6", "train.batch_size=4", "stop.indistinguishable=false", "stop.patience=null"]
    overrides += ["sft.batch_size=4"] if recipe(name).sft else []
    if name not in IN_FULL:
        overrides += ["iterations=1", f"train.lr={at_iteration(recipe(name).train.lr, 0)}"]
    overrides += ["launcher=inline", "sampling.engine=transformers", "sampling.vllm={}"]
    return zygote.run(["run", str(ROOT / "recipes" / name / "recipe.yaml"), *overrides], folder)


@pytest.mark.parametrize("name", NAMES)
def test_it_plays_for_real_in_the_small(name: str, zygote: Zygote, tmp_path: Path) -> None:
    result = play(name, tmp_path, zygote)
    assert result.code == 0, result.err
    wanted, run = recipe(name), tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    played = wanted.iterations if name in IN_FULL else 1
    assert len(summary["iterations"]) == played
    assert bool(summary["controls"]) is bool(wanted.controls)
    for t in range(played):
        first = json.loads((run / f"iterations/00{t}/train/metrics.jsonl").read_text().splitlines()[0])
        assert first["margin"] == pytest.approx(0.0, abs=1e-9)
    if name == "zephyr-7b-paper":
        check_the_published_schedule(run)


def check_the_published_schedule(run: Path) -> None:
    """Two of six epochs: the learning rate is still at two thirds and more of its peak; the last iteration has beta 5."""
    peaks, betas, steps = [], [], []
    for t in range(4):
        rows = [json.loads(line) for line in (run / f"iterations/00{t}/train/metrics.jsonl").read_text().splitlines()]
        rates = [row["lr"] for row in rows]
        assert rates[-1] > 2 / 3 * max(rates)
        peaks.append(max(rates)), steps.append(len(rates))
        betas.append(json.loads((run / f"iterations/00{t}/train/done.json").read_text())["inputs"]["objective"]["beta"])
    assert betas == [0.1, 0.1, 0.1, 5.0]
    assert peaks == pytest.approx([5e-7, 5e-7, 1e-7, 1e-7], rel=0.35)  # few steps: the peak may lie between two of them
    assert steps[0] * 2 == pytest.approx(steps[1], abs=2), "two iterations of duels from the second on"
