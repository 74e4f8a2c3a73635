"""The engine of a recipe: in which number format it samples, at which temperature, and what a free question depends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sparring.config import Recipe, load_recipe
from sparring.data.chat import Chat
from sparring.data.records import Message
from sparring.opponent import engines
from sparring.opponent.engines import OfAllRanks, Sampler, answer, load_sampler, make_engine
from sparring.policy.load import load_tokenizer, model_facts
from sparring.rundir import RunDir


def recipe(**sections: Any) -> Recipe:
    return load_recipe(
        {
            "run_dir": "run",
            "data": {"path": "builtin:tasks"},
            "sampling": {"max_new_tokens": 8},
            "model": {"path": "builtin:tiny", "dtype": "float32"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def chat(tiny: Path) -> Chat:
    return Chat(load_tokenizer(tiny), None, model_facts(tiny)[1])


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        (None, "bf16", torch.bfloat16),
        (None, "fp32", torch.float32),
        ("float32", "bf16", torch.float32),
        ("bfloat16", "fp32", torch.bfloat16),
    ],
)
def test_the_sampler_follows_the_precision_of_training_unless_told(
    dtype: str | None, precision: str, expected: torch.dtype, tiny: Path
) -> None:
    model = load_sampler(recipe(model={"path": "builtin:tiny", "dtype": dtype}, train={"precision": precision}).sampler, tiny)
    assert model.dtype == expected and not model.training


def turns(*texts: str, system: str | None = None) -> list[list[Message]]:
    first = [Message(role="system", content=system)] if system else []
    return [[*first, Message(role="user", content=text)] for text in texts]


def asked(
    chat: Chat, tiny: Path, prompts: Sequence[Sequence[Message]], seed: int = 0, temperature: float = 1.0, **sections: Any
) -> list[str]:
    chosen = recipe(train={"precision": "fp32"}, **sections)
    return answer(make_engine(chosen.sampler, chat, tiny, temperature), chat, prompts, seed)


def test_an_answer_depends_on_the_seed_and_its_place_alone(chat: Chat, tiny: Path) -> None:
    together = asked(chat, tiny, turns("one", "two", "three"))
    assert asked(chat, tiny, turns("one", "two", "three")) == together and len(set(together)) == 3
    assert asked(chat, tiny, turns("one")) == together[:1]
    small = asked(chat, tiny, turns("one", "two", "three"), sampling={"max_new_tokens": 8, "batch_tokens": 1})
    assert small == together
    assert asked(chat, tiny, turns("two"))[0] != together[1], "another place"
    assert asked(chat, tiny, turns("one"), seed=1) != together[:1]


def test_a_system_turn_is_part_of_the_question(chat: Chat, tiny: Path) -> None:
    assert asked(chat, tiny, turns("one", system="be brief")) != asked(chat, tiny, turns("one"))


def test_the_temperature_is_the_callers_and_greedy_needs_no_seed(chat: Chat, tiny: Path) -> None:
    greedy = asked(chat, tiny, turns("one"), temperature=0.0)
    assert greedy == asked(chat, tiny, turns("one"), temperature=0.0, seed=5)
    assert greedy != asked(chat, tiny, turns("one"))
    chosen = recipe(sampling={"max_new_tokens": 8, "temperature": 0.5, "top_p": 0.5})
    engine = make_engine(chosen.sampler, chat, tiny, 1.5)
    assert (engine.sampling.temperature, engine.sampling.top_p) == (1.5, 0.5) and chosen.sampling.temperature == 0.5


def test_no_question_no_answer(chat: Chat, tiny: Path) -> None:
    assert asked(chat, tiny, []) == []


@pytest.mark.parametrize(
    ("installed", "gpu", "more", "chosen"),
    [
        (True, True, {}, "vllm"),
        (False, True, {}, "transformers"),
        (True, False, {}, "transformers"),
        (True, True, {"train": {"lora": {"dora": True}}}, "transformers"),  # which vLLM does not serve
        (True, True, {"launcher": {"kind": "accelerate"}}, "transformers"),
        (True, True, {"sampling": {"engine": "transformers"}}, "transformers"),
    ],
)
def test_the_engine_of_this_machine(
    installed: bool,
    gpu: bool,
    more: dict[str, Any],
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Chosen where the recipe names none, announced once, and kept by the run on another machine."""
    monkeypatch.setattr(engines, "is_installed", lambda package: installed and package == "vllm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    named = recipe(**more)
    with caplog.at_level("INFO"):
        found = engines.with_engine(named, tmp_path)
    assert found.sampling.engine == chosen and (found.sampling.spec.name, found.sampling.inner.name) == (chosen, chosen)
    assert ("sampling.engine: vllm" in caplog.text) == (chosen == "vllm")
    RunDir(tmp_path).stage("start/measure", {"sampling": {"engine": chosen}}, lambda stage: {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not gpu)
    assert engines.with_engine(named, tmp_path / "seed-1", tmp_path).sampling.engine == chosen


@pytest.mark.parametrize(("began", "lora"), [("server", None), ("vllm", {"dora": True})])
def test_an_engine_that_cannot_be_kept(began: str, lora: dict[str, Any] | None, tmp_path: Path) -> None:
    """One with options of its own, or one that the recipe's adapters rule out: the stages say then what they were made from."""
    RunDir(tmp_path).stage("start/measure", {"sampling": {"engine": began}}, lambda stage: {})
    assert engines.with_engine(recipe(train={"lora": lora}), tmp_path).sampling.engine == "transformers"


@pytest.mark.parametrize(("name", "is_shared"), [("transformers", True), ("server", False)])
def test_the_prompts_are_shared_among_ranks_if_the_spec_says_that_they_sample(
    name: str, is_shared: bool, chat: Chat, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the class of the engine: it may be one that was added to the table."""

    class Added:
        def at(self, temperature: float) -> Added:
            return self

    monkeypatch.setattr(engines, "make_engine", lambda *_: Added())
    monkeypatch.setattr(engines, "rank_count", lambda: 2)
    sampler = Sampler(recipe(sampling={"engine": name}).sampler, chat, tiny)
    assert isinstance(sampler.engine(1.0), OfAllRanks) is is_shared
