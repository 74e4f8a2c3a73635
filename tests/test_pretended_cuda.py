"""The whole work on a CUDA device that is not there (pretended_card.py): devices, number formats, and what waits for the device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from pretended_card import CUDA, NONZERO, NUMBER, READ, SENT, Card, PretendedCard, pretended
from zoo import ZOO

import sparring
from sparring.config import SamplerSettings, SamplingSection, TrainSection
from sparring.data.records import Conversation, Duel, Example
from sparring.evaluation.measure import Measurer, read_measured
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Prompt, Stream
from sparring.policy import score
from sparring.policy.adapters import WEIGHTS
from sparring.policy.compute import keep_soft_caps
from sparring.policy.player import Player
from sparring.policy.score import Scorer
from sparring.progress import PhaseProgress
from sparring.training import fit as training
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import TrainPlan, make_plan
from sparring.training.ranked import Replicas, score_player
from sparring.training.tasks import SpinTask

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent

# What waits for the device, by the function that asks, and why it may.
LISTED = {
    (READ, "fit._Trainer._means"): "losses and numbers of all micro-batches of a step, at once",
    (NUMBER, "ranked.Replicas.clip"): "the gradient's norm, which must be finite before the update",
    (READ, "score.score_trees"): "log-probs of a step's micro-batches, read when all are on their way",
    (READ, "decode.Decoder._step"): "the drawn tokens, and their log-probs where the engine is checked: a reply may be finished",
    (SENT, "compute.model_on"): "weights, once a stage",
    (SENT, "masters.AdapterWeights.__init__"): "weights, once a stage",
    (SENT, "adapters.new_adapter"): "weights, once a stage",
    (READ, "masters.MasterWeights.save_pretrained"): "a checkpoint or the player",
    (READ, "adapters.save_with_marks"): "a checkpoint or the player",
    (READ, "checkpoint.save_checkpoint"): "a checkpoint",
    (SENT, "checkpoint.restore_optimizer"): "a checkpoint that is gone on from",
    (NUMBER, "score.Scorer._wrong"): "the check of the layout, once a process and kind of model",
    (NUMBER, "score._finite_logps"): "the check of the layout",
    (SENT, "score.plain_token_logps"): "the check of the layout: plain forwards",
    (NUMBER, "score.plain_token_logps"): "the check of the layout: transformers' mask of a plain forward",
    (READ, "decode._gap"): "the check of packed rows, once a process and kind of model",
    (SENT, "decode._distance"): "the check of packed rows: plain forwards",
    (NUMBER, "decode._distance"): "the check of packed rows: plain forwards",
    (SENT, "agreement._compare"): "eight replies of an attempt, scored beside what the engine said",
    (READ, "agreement._compare"): "eight replies of an attempt, scored beside what the engine said",
}
# torch's own Adafactor reads two norms of every parameter in an optimizer step. Only with it: the function has the loop over micro-batches.
OF_ADAFACTOR = {(NUMBER, "fit._Trainer.step")}
# Of a micro-batch in layouts other than trees: transformers makes the mask from the padding that it finds.
MASK_OF_ROWS = {(NUMBER, "score.Scorer._hidden"), (SENT, "score.Scorer._hidden")}

TREES = [name for name, (_, best) in ZOO.items() if best == "tree"]
# with windows, soft caps, norms of queries and keys, tied heads, learned positions, linear layers that are stored transposed
ARCHITECTURES = ["mistral, short window", "qwen3", "gemma-2", "phi-3", "olmo-2", "gpt-2"]
DUELS = [Duel(str(n), 0, tuple(range(2, 6 + 3 * n)), tuple(range(9, 14 + n)), (tuple(range(20, 23 + n)), (9, 1))) for n in range(4)]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedCard]:
    score._checked.clear()
    with pretended(monkeypatch) as found:
        yield found


def model_of(name: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return keep_soft_caps(transformers.AutoModelForCausalLM.from_config(ZOO[name][0](), dtype=dtype).eval())


def spin(duels: list[Duel] = DUELS) -> SpinTask:
    return SpinTask(duels, {duel.duel_id: [0.0] * 3 for duel in duels}, 0.1, "logistic")


def micro_batch(scorer: Scorer) -> torch.Tensor:
    task = spin()
    logps = scorer(scorer.collate([task.branches(index) for index in range(len(task))]))
    task.losses(range(len(task)), logps).loss_D.sum().backward()
    return logps.detach()


# --- the pretended card itself


def test_the_pretended_card_refuses_and_notes_what_a_gpu_would(card: PretendedCard) -> None:
    here, there = torch.arange(3.0), torch.arange(3.0).to(CUDA)
    with pytest.raises(RuntimeError, match="some on the CPU"):
        here + there
    with pytest.raises(RuntimeError, match="some on the CPU"):
        torch.nn.functional.linear(there, torch.ones(2, 3))
    for number, (what, act) in enumerate(
        [
            (NUMBER, lambda: there.sum().item()),
            (NUMBER, lambda: bool(there[0] > 0)),
            (NONZERO, lambda: there[there > 1]),
            (NONZERO, there.nonzero),
            (READ, there.cpu),
            (READ, there.tolist),
            (SENT, lambda: torch.tensor([1.0], device=CUDA)),
            (SENT, lambda: here.to(CUDA, non_blocking=True)),  # from pageable memory it waits all the same
        ]
    ):
        with card.watched() as waits:
            act()
        assert [kind for kind, _ in waits] == [what], number
    with card.watched() as waits:
        assert isinstance(here.pin_memory().to(CUDA, non_blocking=True) + 1.0 * there, Card)
    assert not waits


# --- training and scoring


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", TREES)
def test_a_micro_batch_waits_for_nothing_and_finds_what_a_cpu_finds(name: str, checkpointing: bool, card: PretendedCard) -> None:
    scorers = [Scorer(model_of(name)), Scorer(model_of(name).to(CUDA))]
    if checkpointing:
        scorers[1].use_gradient_checkpointing()
    expected = micro_batch(scorers[0])
    with card.watched() as waits:
        found = micro_batch(scorers[1])
    assert not waits
    torch.testing.assert_close(found.held, expected, rtol=1e-5, atol=1e-5)
    for here, there in zip(*(scorer.parameters() for scorer in scorers), strict=True):
        assert isinstance(there, Card) and (here.grad is None) == (there.grad is None)
        if here.grad is not None:
            torch.testing.assert_close(there.grad.held, here.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, best) in ZOO.items() if best in ("tree", "rows")])
def test_rows_wait_for_transformers_mask_alone(name: str, card: PretendedCard) -> None:
    scorer = Scorer(model_of(name).to(CUDA))
    scorer.layout = "rows"
    with card.watched() as waits:
        micro_batch(scorer)
    assert set(waits) <= MASK_OF_ROWS


@pytest.mark.parametrize("name", TREES)
def test_a_step_keeps_the_planned_formats_and_devices(name: str, card: PretendedCard, tmp_path: Path) -> None:
    """Float32 masters, gradients and optimizer states, bfloat16 weights that compute and keep no gradient."""
    model_of(name).save_pretrained(tmp_path)
    settings = TrainSection(lr=1e-3, precision="bf16")
    weights = Replicas(tmp_path, settings, 0)
    weights.prepare(settings)
    with card.watched() as waits:
        task = spin()
        logps = weights.wrapped(weights.scorer.collate([task.branches(index) for index in range(len(task))]))
        weights.backward(task.losses(range(len(task)), logps).loss_D.sum())
    assert not waits and logps.dtype == torch.float64
    masters, computing = list(weights.model.parameters()), list(weights.scorer.model.parameters())
    assert all(isinstance(tensor, Card) for tensor in [*masters, *computing, *weights.scorer.model.buffers()])
    assert {master.dtype for master in masters} == {torch.float32} and {weight.dtype for weight in computing} == {torch.bfloat16}
    assert all(weight.grad is None for weight in computing)
    assert {master.grad.dtype for master in masters if master.grad is not None} == {torch.float32}
    for group in weights.optimizer.param_groups:
        group["lr"] = settings.lr
    before = [weight.held.clone() for weight in computing]
    weights.optimizer.step()
    weights.sync_compute_weights()
    assert any(not torch.equal(weight.held, old) for weight, old in zip(computing, before, strict=True))
    for master, weight in zip(masters, computing, strict=True):
        assert torch.equal(weight.held, master.held.bfloat16())
    states = [value for state in weights.optimizer.state.values() for value in state.values() if value.ndim]
    assert states and all(isinstance(value, Card) and value.dtype == torch.float32 for value in states)


def saved(name: str, folder: Path) -> Path:
    model_of(name).save_pretrained(folder)
    return folder


def trained(stage: Path, start: Path, plan: TrainPlan, settings: TrainSection) -> list[dict[str, Any]]:
    """Opponent pass, then `fit`; the lines of metrics."""
    for part in ("score", "train"):
        (stage / part).mkdir(parents=True, exist_ok=True)
    score_duels(stage / "score", start, DUELS, plan, settings, "opponent pass")
    task = SpinTask(DUELS, read_logps(stage / "score"), 0.1, "logistic")
    result = training.fit(stage / "train", start, task, plan, settings, phase="training", labels={})
    result.save(stage / "player")
    return [json.loads(line) for line in (stage / "train" / training.METRICS).read_text().splitlines()]


LORA = {"lora": {"rank": 2, "dropout": 0.1}, "lr": 1e-2}
OPTIONS = {
    "bf16": {},
    "adamw": {"optimizer": "adamw"},
    "fp32": {"precision": "fp32"},
    "adafactor": {"optimizer": "adafactor"},
    "lora": LORA,
}


@pytest.mark.parametrize(
    ("name", "which"), [*(("llama", which) for which in OPTIONS), *((name, which) for name in ARCHITECTURES for which in ("bf16", "lora"))]
)
def test_training_starts_at_margin_zero_and_goes_on_from_a_checkpoint_with_the_same_bits(
    name: str, which: str, card: PretendedCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = saved(name, tmp_path / "model")
    settings = TrainSection(
        **{"lr": 1e-3, "precision": "bf16", "batch_size": 2, "checkpoint_every": 2, "micro_batch_tokens": 64, **OPTIONS[which]}
    )
    plan = make_plan(settings, len(DUELS), lr=settings.lr, epochs=2, seed=0, name="pretended")
    advance = PhaseProgress.advance

    def copied(progress: PhaseProgress, *args: Any, **numbers: float) -> None:
        advance(progress, *args, **numbers)
        if (progress.unit, progress.done) == ("steps", 4):  # as a kill leaves it; steps 3 and 4 are done again
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    with card.watched() as waits, monkeypatch.context() as patch:
        patch.setattr(PhaseProgress, "advance", copied)
        rows = trained(tmp_path / "whole", start, plan, settings)
    assert set(waits) <= set(LISTED) | (OF_ADAFACTOR if which == "adafactor" else set())
    assert waits[READ, "fit._Trainer._means"] == waits[NUMBER, "ranked.Replicas.clip"] == plan.steps == 4
    assert rows[0]["margin"] == 0.0 and rows[-1]["margin"] != 0.0

    assert [row["loss"] for row in trained(tmp_path / "killed", start, plan, settings)] == [row["loss"] for row in rows]
    weights = [tmp_path / which / "player" / (WEIGHTS if settings.lora else "model.safetensors") for which in ("whole", "killed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# --- sampling


@pytest.mark.parametrize(("name", "temperature"), [*((name, 1.0) for name in TREES), ("llama", 0.0)])
def test_replies_are_those_of_a_cpu_and_a_step_waits_for_its_tokens_alone(name: str, temperature: float, card: PretendedCard) -> None:
    prompts = [Prompt(f"row{n}", 0, tuple(range(3, 5 + n % 5))) for n in range(6)]
    found = []
    for device in (torch.device("cpu"), CUDA):
        engine = TransformersEngine(
            model_of(name).to(device), SamplingSection(max_new_tokens=6, batch_tokens=50, temperature=temperature, top_p=0.9), [1]
        )
        engine.sample(prompts[:2], Stream(0, 1))  # the check of the model's code, once
        with card.watched() as waits:
            found.append(engine.sample(prompts, Stream(0, 0)))
        assert engine._takes_packed_rows
    assert found[0] == found[1]
    assert list(waits) == [(READ, "decode.Decoder._step")]


# --- evaluation


ASKED = Conversation(({"role": "user", "content": "?"},), "")
HELD_OUT = [Example(duel.duel_id, ASKED, duel.prompt_ids, duel.real_ids) for duel in DUELS]


def measured(folder: Path, start: Path) -> dict[str, Any]:
    """What is stored of the start, and of an equal player against it."""
    settings = SamplerSettings(SamplingSection(max_new_tokens=4, batch_tokens=50), "float32", False)
    chat: Any = SimpleNamespace(stop_ids=frozenset({1}), decode=str)
    score_all = partial(score_player, settings=TrainSection(precision="fp32", micro_batch_tokens=64))
    measurer = Measurer(settings, chat, HELD_OUT, score_all, seed=0, greedy=True)
    stages = folder / "start", folder / "player"
    for number, stage in enumerate(stages):
        stage.mkdir(parents=True)
        measurer.measure(stage, start, Player("start", start, "hash", stages[0]) if number else None, number, stage.name)
    found = read_measured(stages[1])
    return {"replies": found.replies, "greedy": found.greedy, "logps": found.logps}


@pytest.mark.parametrize("name", ["llama", *ARCHITECTURES])
def test_a_player_is_measured_as_on_a_cpu(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    start = saved(name, tmp_path / "model")
    expected = measured(tmp_path / "cpu", start)
    card = request.getfixturevalue("card")
    found = measured(tmp_path / "card", start)
    assert card.waits[READ, "score.score_trees"] and set(card.waits) <= set(LISTED)
    assert found["replies"] == expected["replies"] and found["greedy"] == expected["greedy"]
    for row, other in zip(found["logps"], expected["logps"], strict=True):
        assert row.pop("row_id") == other.pop("row_id") and row == pytest.approx(other, rel=1e-5, abs=1e-5)
        assert [row["player_real"], row["player_generated"]] == [row["opponent_real"], row["opponent_generated"]], "margin exactly 0"


# --- the game


@pytest.mark.parametrize("lora", [[], pytest.param(["train.lora.rank=4"], marks=pytest.mark.slow)], ids=["all weights", "lora"])
def test_the_whole_game_waits_only_where_it_is_listed(lora: list[str], card: PretendedCard, tmp_path: Path) -> None:
    small = ["data.max_examples=12", "data.held_out=4", "sft=null", "iterations=2", "sampling.max_new_tokens=6", "report=false"]
    mixed = ["model.dtype=bfloat16", "train.precision=bf16", "train.batch_size=4", "controls=null", "showcase=[]"]
    summary = sparring.run(ROOT / "recipes" / "tiny.yaml", [f"run_dir={tmp_path}", *small, *mixed, *lora])
    assert len(summary["iterations"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["margin"] for row in rows if row["step"] == 0] == [0.0, 0.0]
    assert set(card.waits) <= set(LISTED)
    assert card.waits[READ, "fit._Trainer._means"] == card.waits[NUMBER, "ranked.Replicas.clip"] == len(rows)
