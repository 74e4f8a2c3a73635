"""Tokens and operations, counted by hand and against what the program itself counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from by_hand import GPU, LENGTHS, llama, recipe_of
from torch.utils.flop_counter import FlopCounterMode

from sparring.planning.estimate import estimate
from sparring.planning.hardware import Samplers, of_sampling
from sparring.planning.work import (
    SCORING,
    TRAINING,
    WIDTH,
    ForwardPasses,
    Shares,
    Work,
    sampling_work,
    seconds,
    training_forward_passes,
    tree_work,
)
from sparring.policy.batches import Branches
from sparring.stage_names import START

BODY = 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 48)  # weights of the matrices of two layers
HEAD = 100 * 32


def test_the_matrices_of_the_shape() -> None:
    shape = llama()
    assert (shape.passed, shape.head) == (BODY, HEAD)


def test_scoring_a_tree_by_hand() -> None:
    """Prompt 10, replies 5 and 7: 10 + 4 + 6 positions, 12 predictions."""
    work = tree_work(llama(), SCORING, 10, (5, 7))
    attended = 14**2 / 2 + 6 * (10 + 6 / 2)
    assert work.tokens == 20 == Branches(tuple(range(10)), (tuple(range(5)), tuple(range(7)))).tokens("tree")
    assert work.flops == 2 * BODY * 20 + 2 * HEAD * 12 + 4 * 32 * 2 * attended


@pytest.mark.parametrize(("recomputed", "frozen"), [(False, False), (True, False), (False, True)])
def test_training_is_what_torch_counts(recomputed: bool, frozen: bool) -> None:
    """Forward and backward of a plain causal row, without attention, by torch's own counter of operations. Under adapters the gradient
    passes frozen weights, the head's too."""
    import transformers

    shape = llama()
    model = transformers.AutoModelForCausalLM.from_config(shape.config)
    if recomputed:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.requires_grad_(not frozen)
    ids = torch.arange(32)[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()  # as after the first adapter
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, labels=ids, use_cache=False).loss.backward()
    found = counter.get_flop_counts()["Global"]
    products = sum(count for operator, count in found.items() if "attention" not in str(operator))
    passes = training_forward_passes(frozen, recomputed, 1024)
    # checkpointing stops before a layer's last product, which nobody needs again
    assert products == pytest.approx(2 * 32 * (passes.body * BODY + passes.head * HEAD), rel=0.05 if recomputed else 1e-6)


def test_passes() -> None:
    assert training_forward_passes(False, False, 1024) == ForwardPasses(3, 3, 3)
    assert training_forward_passes(False, True, 4096) == ForwardPasses(4, 4, 4)
    assert training_forward_passes(True, False, 1024) == ForwardPasses(2, 2, 3)  # frozen weights get no gradient of their own


def test_sampling_by_hand() -> None:
    """10 prompts of 40 tokens, two replies of 20 each: a prompt is read once, the last token of a reply never."""
    shape, recipe = llama(), recipe_of("sampling.batch_tokens=420", "sampling.shard_rows=5")
    work = sampling_work(shape, recipe, LENGTHS, 10, 2, Samplers())
    assert work.tokens == 10 * 40 + 20 * 19
    # 420 tokens are 5 rows of 60 + 24; a shard of 10 replies takes two rounds of 20 and a tail of 4
    assert work.steps == 2 * (2 * 20 + 4)
    weights = 2 * (BODY + 2 * 2 * 32 + HEAD)  # two norms in each layer
    cache = (10 * 20 / 44) * (40 + 10) * 2 * 16 * 2 * 2
    assert work.bytes_read == pytest.approx(work.steps * (weights + cache))
    assert sampling_work(shape, recipe, LENGTHS, 10, 2, Samplers(split=4)).bytes_read == work.bytes_read / 4
    # each of two takes a half of every shard: 5 replies at once, and the tail
    assert sampling_work(shape, recipe, LENGTHS, 10, 2, Samplers(copies=2)).steps == 2 * (20 + 4)


def test_sampling_by_ray_and_by_servers() -> None:
    """Ray deals calls of `batch_rows` to a worker on each device; every server has as many requests as its `concurrency`."""
    shape, eight = llama(), replace(GPU, count=8)
    ray = recipe_of("sampling.engine=ray", "sampling.ray.batch_rows=10", "sampling.shard_rows=40")
    assert of_sampling(ray, eight) == Samplers(copies=8)
    assert sampling_work(shape, ray, LENGTHS, 100, 1, Samplers(copies=8)).steps == 2 * (20 + 4), "ten calls, two of a worker"
    assert of_sampling(recipe_of("sampling.engine=ray", "sampling.ray.max_workers=3"), eight).copies == 3
    split = recipe_of("sampling.engine=ray", "sampling.ray.engine=vllm", "sampling.vllm.tensor_parallel=4")
    assert of_sampling(split, eight) == Samplers(copies=2, split=4)
    server = recipe_of("sampling.engine=server", "sampling.server={urls: ['http://a/v1', 'http://b/v1'], concurrency: 5}")
    assert of_sampling(server, GPU).copies == 2
    assert sampling_work(shape, server, LENGTHS, 100, 1, Samplers(copies=2)).steps == 10 * 20 + 4, "50 of each, 5 at once"


def test_ray_draws_at_the_pace_of_the_engine_inside() -> None:
    many = llama(num_hidden_layers=30)
    plain, ray, vllm = (
        next(stage for stage in estimate(recipe_of(*options), many, LENGTHS, GPU).stages if stage.kind == "generate").seconds
        for options in ((), ("sampling.engine=ray",), ("sampling.engine=ray", "sampling.ray.engine=vllm"))
    )
    assert ray > plain, "no faster than without it on the one device: small calls have tails"
    assert vllm < ray / 5


def test_the_stages_of_a_game() -> None:
    """In the order of selfplay.py; the window doubles the duels of the second iteration; the control costs what the iterations did."""
    recipe = recipe_of("iterations=2", "train.epochs=[2, 1]", "controls=continued-sft", "sft={epochs: 3}")
    plan = estimate(recipe, llama(), LENGTHS, GPU)
    names = [f"{stage.owner}/{stage.kind}" for stage in plan.stages]
    played = [f"iterations/00{t}/{kind}" for t in (0, 1) for kind in ("generate", "score", "train", "measure")]
    assert names == ["sft/train", f"{START}/measure", *played, "continued-sft/train", "continued-sft/measure"]
    by_name = dict(zip(names, plan.stages, strict=True))
    tokens = 40 + 29 + 19
    assert by_name["sft/train"].work.tokens == 3 * 100 * (40 + 29)
    assert by_name["iterations/000/score"].work.tokens == 100 * tokens
    assert by_name["iterations/000/train"].work.tokens == 2 * 100 * tokens
    assert by_name["iterations/001/score"].work.tokens == by_name["iterations/001/train"].work.tokens == 200 * tokens
    kinds = {"generate": 1, "score": 1, "train": 3, "measure": 0}
    forward = sum(by_name[name].work.tokens * kinds[name.rpartition("/")[2]] for name in played)
    assert by_name["continued-sft/train"].work.tokens == pytest.approx(forward / 3)
    assert plan.seconds == pytest.approx(sum(stage.seconds for stage in plan.stages))


def test_continued_sft_without_an_sft_stage_is_trained_with_adamw() -> None:
    """As a run does it, whatever the optimizer of the game: see `sft_settings`."""
    plan = estimate(recipe_of("controls=continued-sft", "train.optimizer=rmsprop"), llama(), LENGTHS, GPU)
    held = {stage.owner: stage.memory.optimizer for stage in plan.stages if stage.kind == "train"}
    assert held["continued-sft"] == 8 * plan.shape.parameters == 2 * held["iterations/000"]


def tokens_of(*overrides: str) -> dict[str, float]:
    plan = estimate(recipe_of("iterations=2", "train.epochs=1", *overrides), llama(), LENGTHS, GPU)
    counted = ("score", "score-start", "train")
    return {f"{stage.owner[-3:]}/{stage.kind}": stage.work.tokens for stage in plan.stages if stage.kind in counted}


def test_passes_of_the_other_objectives() -> None:
    """T-SPIN scores nothing, and trains on the start's reply too where it is another one than the duel's own; alpha-SPIN scores the newest
    duels once more. Trees of 40 prompt, 29 human and 19 generated tokens, 100 rows."""
    two, three = 40 + 29 + 19, 40 + 29 + 19 + 19
    assert tokens_of() == {"000/score": 100 * two, "000/train": 100 * two, "001/score": 200 * two, "001/train": 200 * two}
    assert tokens_of("objective.loss=t-spin") == {"000/train": 100 * two, "001/train": 100 * (two + three)}
    assert tokens_of("objective.loss=t-spin", "objective.window=1") == {"000/train": 100 * two, "001/train": 100 * three}
    assert tokens_of("objective.loss=t-spin", "objective.history_weight=0") == {"000/train": 100 * two, "001/train": 200 * two}
    assert tokens_of("objective.loss=alpha-spin") == {**tokens_of(), "001/score-start": 100 * two}
    assert tokens_of("objective.loss=space") == tokens_of()


def test_greedy_replies_are_counted() -> None:
    options = {"evaluate": {"answer_pattern": "x"}}
    plain, greedy = (
        estimate(recipe_of(f"evaluate.greedy={value}", **options), llama(), LENGTHS, GPU).stages[0] for value in ("false", "true")
    )
    scored = tree_work(llama(), SCORING, 40, (30, 20), 10)
    assert greedy.work.tokens - scored.tokens == 2 * (plain.work.tokens - scored.tokens)


@pytest.mark.parametrize(("number_bytes", "devices", "products", "moving"), [(2, 1, 0.5, 0.8), (4, 1, 0.5, 1.6), (4, 2, 0.25, 0.8)])
@pytest.mark.parametrize("wider", [1, 2])
def test_seconds_by_hand(number_bytes: int, devices: int, products: float, moving: float, wider: int) -> None:
    """1e12 operations at half of 4e12 a second, and 0.02 numbers for each at 5e10 bytes a second; half as many in a model twice as wide."""
    device, shares = replace(GPU, flops=4e12, bandwidth=5e10), Shares(0.5, "", moved=0.02)
    shape = llama(hidden_size=wider * WIDTH)
    assert seconds(Work(flops=1e12), shares, device, devices, shape, number_bytes) == pytest.approx(products + moving / wider)


def test_a_training_moves_numbers_of_its_own_format() -> None:
    """Half as many bytes in bfloat16 as in float32, whatever the other trainings compute in."""
    cpu, shape = replace(GPU, kind="cpu"), llama()
    plans = [estimate(recipe_of("iterations=1", f"sft={{epochs: 3, precision: {name}}}"), shape, LENGTHS, cpu) for name in ("bf16", "fp32")]
    (sft, *others), (wider, *same) = (plan.stages for plan in plans)
    assert wider.seconds - sft.seconds == pytest.approx(sft.work.flops * TRAINING["cpu"].moved * 2 * WIDTH / 32 / cpu.bandwidth)
    assert [stage.seconds for stage in others] == [stage.seconds for stage in same]
