"""The training loop on tiny models: the first step, the batch, the update, what stops it, and going on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig

from sparring.config import TrainSection
from sparring.data.records import Conversation, Duel, Example
from sparring.data.tables import read_rows
from sparring.errors import UserError
from sparring.objectives.spin import LOSSES, LossName
from sparring.policy.batches import Layout, branches_of
from sparring.policy.load import load_model
from sparring.policy.score import Scorer, plain_logps
from sparring.progress import PhaseProgress
from sparring.training.checkpoint import latest_checkpoint, remove_checkpoints
from sparring.training.fit import METRICS, FitResult, _Trainer, fit
from sparring.training.masters import make_optimizer
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import TrainPlan, make_plan
from sparring.training.tasks import ItemLosses, SftTask, SpinTask, Task

pytestmark = pytest.mark.long

VOCABULARY, EOS = 64, 63
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
ALIBI = transformers.BloomConfig(**SHAPE, n_layer=2, n_head=4)  # its positions are in its mask: no tree
AT_ZERO = {"logistic": math.log(2), "hinge": 1.0, "exponential": 1.0, "correlation": 1.0}


def llama(folder: Path, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SHAPE, **changes})).save_pretrained(folder)
    return folder


def save_random(config: PreTrainedConfig, folder: Path) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("start"), 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is not the start."""
    return llama(tmp_path_factory.mktemp("other"), 1)


def tokens(draw: torch.Generator, low: int, high: int) -> tuple[int, ...]:
    count = int(torch.randint(low, high + 1, (), generator=draw))
    return tuple(torch.randint(1, 40, (count,), generator=draw).tolist())


def make_duels(count: int) -> list[Duel]:
    """One to three replies of 1 to 9 tokens; every third duel has a reply that equals the human one beside one that does not."""
    draw = torch.Generator().manual_seed(5)
    duels = []
    for index in range(count):
        real = (*tokens(draw, 1, 8), EOS)
        generated = [(*tokens(draw, 0, 8), EOS) for _ in range(1 + index % 3)]
        if index % 3 == 1:
            generated[0] = real
        duels.append(Duel(f"row{index}", index % 2, tokens(draw, 1, 9), real, tuple(generated)))
    assert not any(duel.is_all_identical for duel in duels)
    return duels


DUELS = make_duels(14)


def settings(**changes: Any) -> TrainSection:
    return TrainSection(**{"precision": "fp32", "batch_size": 4, "micro_batch_tokens": 60, "checkpoint_every": 2, "warmup": 0.0, **changes})


def plan_of(section: TrainSection, items: int, lr: float = 1e-3, epochs: float = 1.0) -> TrainPlan:
    return make_plan(section, items, lr=lr, epochs=epochs, seed=3, name="test")


def opponent_logps(folder: Path, stage: Path, plan: TrainPlan, section: TrainSection) -> dict[str, list[float]]:
    stage.mkdir(parents=True)
    score_duels(stage, folder, DUELS, plan, section, "score")
    return read_logps(stage)


def plain_opponent(folder: Path) -> dict[str, list[float]]:
    """The log-probs that the opponent pass would find, one unbatched forward per reply."""
    model = load_model(folder)
    task = SpinTask(DUELS, {}, 1.0, "logistic")
    return {duel.duel_id: plain_logps(model, task.branches(index)).tolist() for index, duel in enumerate(DUELS)}


def run_fit(stage: Path, start: Path, task: Task, plan: TrainPlan, section: TrainSection) -> FitResult:
    stage.mkdir(parents=True, exist_ok=True)
    return fit(stage, start, task, plan, section, phase="test", labels={"iteration": 0})


def metrics(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / METRICS).read_text().splitlines()]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")} for row in rows]


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


class Recorder(SpinTask):
    """Keeps the margin of every duel and the makeup of every micro-batch."""

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        result = super().losses(indices, logps_DR)
        self.__dict__.setdefault("margins", []).extend(result.numbers["margin"].tolist())
        self.__dict__.setdefault("groups", []).append(list(indices))
        return result


# --- the first step


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_pass_has_margin_exactly_0(loss: LossName, checkpointing: bool, start: Path, tmp_path: Path) -> None:
    """At learning rate 0 every step is a first step: opponent pass and training must agree to the last bit on every duel."""
    section = settings(gradient_checkpointing=checkpointing)
    plan = plan_of(section, len(DUELS), lr=0.0)
    task = Recorder(DUELS, opponent_logps(start, tmp_path / "score", plan, section), 0.5, loss)
    run_fit(tmp_path / "train", start, task, plan, section)
    rows = metrics(tmp_path / "train")
    assert len(rows) == 4
    assert [row["margin"] for row in rows] == [0.0] * 4
    assert set(task.margins) == {0.0} and len(task.margins) == 16
    assert len(task.groups) > 4, "several micro-batches"
    for row in rows:
        assert row["loss"] == pytest.approx(AT_ZERO[loss], abs=1e-12)
        assert row["accuracy"] == 0.5
        assert row["reward_real"] == row["reward_generated"] == 0.0


@pytest.mark.parametrize("max_queries", [4, 512])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_pass_with_blocks_cut_or_whole(
    precision: str, checkpointing: bool, max_queries: int, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparring.policy.tree_attention.MAX_QUERIES", max_queries)
    section = settings(precision=precision, gradient_checkpointing=checkpointing)
    plan = plan_of(section, len(DUELS), lr=0.0)
    task = Recorder(DUELS, opponent_logps(start, tmp_path / "score", plan, section), 0.5, "logistic")
    run_fit(tmp_path / "train", start, task, plan, section)
    assert set(task.margins) == {0.0}


def test_the_first_step_in_bf16(start: Path, tmp_path: Path) -> None:
    section = settings(precision="bf16")
    plan = plan_of(section, len(DUELS), lr=0.0)
    task = Recorder(DUELS, opponent_logps(start, tmp_path / "score", plan, section), 0.5, "logistic")
    run_fit(tmp_path / "train", start, task, plan, section)
    assert max(map(abs, task.margins)) <= 1e-3
    assert metrics(tmp_path / "train")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    fp32 = plain_opponent(start)
    assert any(abs(fp32[name][0] - logps[0]) > 1e-3 for name, logps in task.opponent_logps.items()), "it was computed in bf16"


def test_the_first_step_of_a_model_that_cannot_take_the_tree(tmp_path: Path) -> None:
    save_random(ALIBI, tmp_path / "start")
    section = settings()
    plan = plan_of(section, len(DUELS), lr=0.0)
    task = Recorder(DUELS, opponent_logps(tmp_path / "start", tmp_path / "score", plan, section), 0.5, "logistic")
    assert run_fit(tmp_path / "train", tmp_path / "start", task, plan, section).facts["layout"] == "rows"
    assert set(task.margins) == {0.0}


@pytest.mark.parametrize(("layout", "config"), [("tree", transformers.MistralConfig(**SHAPE, sliding_window=5)), ("rows", ALIBI)])
def test_the_opponent_pass_counts_the_tokens_that_it_computed(layout: Layout, config: PreTrainedConfig, tmp_path: Path) -> None:
    """Per duel, in the layout that the model takes; a duel that the end of the epoch met twice was computed twice. As training counts."""
    save_random(config, tmp_path / "start")
    section = settings()
    plan = plan_of(section, len(DUELS), lr=0.0)
    (tmp_path / "score").mkdir()
    facts = score_duels(tmp_path / "score", tmp_path / "start", DUELS, plan, section, "score")
    batches = [plan.batch(step) for step in range(plan.first_pass_steps())]
    assert sum(map(len, batches)) == 16 > len(DUELS)
    trees = [branches_of(DUELS[index]) for batch in batches for index in batch]
    assert facts == {"scored_tokens": sum(tree.tokens(layout) for tree in trees), "ranks": 1}
    rows = read_rows(tmp_path / "score")
    assert [row["tokens"] for row in rows] == [tree.tokens(layout) for tree in trees]
    assert [row["duel_id"] for row in rows] == [DUELS[index].duel_id for batch in batches for index in batch]
    result = run_fit(
        tmp_path / "train", tmp_path / "start", SpinTask(DUELS, read_logps(tmp_path / "score"), 1.0, "logistic"), plan, section
    )
    assert result.facts["layout"] == layout and result.facts["trained_tokens"] == facts["scored_tokens"]
    again = score_duels(tmp_path / "score", tmp_path / "start", DUELS, plan, section, "score")
    assert again == facts, "counted from what is there"


# --- the loss and the batch


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_by_hand_with_identical_replies_in_the_mean(loss: LossName, start: Path, other: Path, tmp_path: Path) -> None:
    section, beta = settings(), 0.3
    plan = plan_of(section, len(DUELS))
    opponent = plain_opponent(other)
    run_fit(tmp_path, start, SpinTask(DUELS, opponent, beta, loss), plan, section)
    first = metrics(tmp_path)[0]

    player = plain_opponent(start)
    ell = LOSSES[loss]
    losses, margins, wins, computed = [], [], [], 0
    for index in plan.batch(0):
        duel = DUELS[index]
        different = [ids for ids in duel.generated_ids if ids != duel.real_ids]
        ratio = [mine - theirs for mine, theirs in zip(player[duel.duel_id], opponent[duel.duel_id], strict=True)]
        own = [ratio[0] - ratio[1 + different.index(ids)] if ids in different else 0.0 for ids in duel.generated_ids]
        margins.append(sum(own) / len(own))
        losses.append(sum(ell(torch.tensor(beta * margin, dtype=torch.float64)).item() for margin in own) / len(own))
        wins.append(sum(0.5 if margin == 0 else float(margin > 0) for margin in own) / len(own))
        computed += len(duel.prompt_ids) + sum(len(ids) - 1 for ids in (duel.real_ids, *different))
    assert any(duel.real_ids in duel.generated_ids for duel in (DUELS[index] for index in plan.batch(0)))
    assert first["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert first["margin"] == pytest.approx(sum(margins) / 4, rel=1e-5)
    assert first["accuracy"] == pytest.approx(sum(wins) / 4)
    assert first["tokens"] == computed, "identical replies are not computed"


def gradient_of_step(
    start: Path, task: Task, plan: TrainPlan, section: TrainSection, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient before clipping, and the metrics, of step 0."""
    trainer = _Trainer(start, task, plan, section)
    found: dict[str, Tensor] = {}
    clip = trainer.weights.clip

    def keep(limit: float | None) -> float:
        found.update({name: p.grad.clone() for name, p in trainer.weights.model.named_parameters()})
        return clip(limit)

    monkeypatch.setattr(trainer.weights, "clip", keep)
    return found, trainer.step(0)


@pytest.mark.parametrize("kind", ["spin", "sft"])
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(kind: str, start: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spin = Recorder(DUELS, plain_opponent(other), 0.3, "logistic")
    task: Task = spin if kind == "spin" else SftTask(EXAMPLES)
    results = []
    for budget in (1, 60, 100_000):
        section = settings(batch_size=7, micro_batch_tokens=budget)
        spin.groups = []
        results.append(gradient_of_step(start, task, plan_of(section, len(DUELS)), section, monkeypatch))
        if kind == "spin":
            sizes = [len(group) for group in spin.groups]
            assert sum(sizes) == 7, "exactly batch_size duels per step"
            assert {1: len(sizes) == 7, 60: 1 < len(sizes) < 7, 100_000: len(sizes) == 1}[budget]
    (one_by_one, alone), *rest = results
    for gradient, row in rest:
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert row["tokens"] == alone["tokens"]
        for name, expected in one_by_one.items():
            assert (gradient[name] - expected).norm() <= 1e-5 * expected.norm(), name


def test_every_step_takes_exactly_batch_size_duels(start: Path, tmp_path: Path, other: Path) -> None:
    task = Recorder(DUELS, plain_opponent(other), 0.3, "logistic")
    section = settings()
    plan = plan_of(section, len(DUELS), epochs=2.0)
    updates = []
    run_fit(tmp_path, start, task, plan, section)
    seen = iter([index for group in task.groups for index in group])
    for step in range(plan.steps):
        updates.append(sorted(next(seen) for _ in range(4)))
        assert updates[-1] == sorted(plan.batch(step))
    assert next(seen, None) is None and plan.steps == 7
    assert sorted(index for update in updates for index in update) == sorted(list(range(14)) * 2), "two epochs"


def test_the_learning_rate_of_the_plan_is_the_optimizers(start: Path, tmp_path: Path, other: Path) -> None:
    section = settings(schedule="cosine", warmup=0.3)
    plan = plan_of(section, len(DUELS), epochs=2.0)
    run_fit(tmp_path, start, SpinTask(DUELS, plain_opponent(other), 0.3, "logistic"), plan, section)
    assert [row["lr"] for row in metrics(tmp_path)] == [plan.learning_rate(step) for step in range(7)]


def test_the_gradient_is_clipped_to_its_norm(start: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = SpinTask(DUELS, plain_opponent(other), 5.0, "logistic")
    used, logged = [], []
    for limit in (None, 0.01):
        section = settings(max_grad_norm=limit)
        trainer = _Trainer(start, task, plan_of(section, len(DUELS)), section)
        parameters = list(trainer.weights.model.parameters())
        monkeypatch.setattr(
            trainer.weights.optimizer, "step", lambda of=parameters: used.append(torch.cat([p.grad.flatten() for p in of]).norm().item())
        )
        logged.append(trainer.step(0)["grad_norm"])
    assert logged == pytest.approx([used[0]] * 2, rel=1e-5), "the logged norm is the one before clipping"
    assert used[0] > 0.1 and used[1] == pytest.approx(0.01, rel=1e-3)


# --- SFT


def example(index: int, duel: Duel) -> Example:
    return Example(f"row{index}", Conversation((), ""), duel.prompt_ids, duel.real_ids)


EXAMPLES = [example(index, duel) for index, duel in enumerate(DUELS)]


def test_the_sft_loss_is_that_of_transformers(start: Path, tmp_path: Path) -> None:
    """Token mean over the batch, as `labels=` gives it on the padded batch."""
    section = settings()
    plan = plan_of(section, len(EXAMPLES))
    run_fit(tmp_path, start, SftTask(EXAMPLES), plan, section)
    chosen = [EXAMPLES[index] for index in plan.batch(0)]
    length = max(len(e.prompt_ids) + len(e.reply_ids) for e in chosen)
    ids, labels, mask = [], [], []
    for e in chosen:
        pad = length - len(e.prompt_ids) - len(e.reply_ids)
        ids.append([*e.prompt_ids, *e.reply_ids] + [0] * pad)
        labels.append([-100] * len(e.prompt_ids) + list(e.reply_ids) + [-100] * pad)
        mask.append([1] * (length - pad) + [0] * pad)
    model = load_model(start)
    expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels)).loss
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert "margin" not in metrics(tmp_path)[0]


@pytest.mark.parametrize("optimizer", ["rmsprop", "adamw"])
def test_sft_learns(optimizer: str, start: Path, tmp_path: Path) -> None:
    section = settings(optimizer=optimizer, batch_size=7)
    run_fit(tmp_path, start, SftTask(EXAMPLES), plan_of(section, len(EXAMPLES), lr=3e-3, epochs=10.0), section)
    losses = [row["loss"] for row in metrics(tmp_path)]
    assert losses[-1] < 0.6 * losses[0]


# --- the update


def far_from_zero(folder: Path) -> Path:
    """A model whose every weight is between 0.02 and 0.06 in size, as most are in a real one, and exact in bfloat16."""
    llama(folder, 2, initializer_range=0.02)
    model = load_model(folder)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.02 + 0.04 * torch.rand(parameter.shape, generator=draw)
            sign = torch.where(torch.rand(parameter.shape, generator=draw) < 0.5, -1.0, 1.0)
            parameter.copy_((size * sign).bfloat16().float())
    model.save_pretrained(folder)
    return folder


def test_parameters_move_at_lr_5e7_in_bf16(other: Path, tmp_path: Path) -> None:
    """spin.md 4.6: float32 master weights move under bf16 compute; the same gradients applied to plain bf16 weights move nothing."""
    start = far_from_zero(tmp_path / "start")
    before = state_of(load_model(start))
    section = settings(precision="bf16", optimizer="rmsprop")
    plan = plan_of(section, len(DUELS), lr=5e-7)
    trainer = _Trainer(start, SpinTask(DUELS, plain_opponent(other), 1.0, "logistic"), plan, section)
    plain = load_model(start, torch.bfloat16)
    plain_optimizer = make_optimizer(plain, section)
    own_step = trainer.weights.optimizer.step

    def step_both() -> None:
        for parameter, twin in zip(trainer.weights.model.parameters(), plain.parameters(), strict=True):
            twin.grad = parameter.grad.bfloat16()
        for group in plain_optimizer.param_groups:
            group["lr"] = trainer.weights.optimizer.param_groups[0]["lr"]
        plain_optimizer.step()
        own_step()

    trainer.weights.optimizer.step = step_both
    for step in range(3):
        row = trainer.step(step)
        assert 0 < row["lr"] <= 5e-7
    for name, parameter in trainer.weights.model.named_parameters():
        assert parameter.dtype == torch.float32
        moved = (parameter != before[name]).float().mean()
        assert moved > (0.2 if "embed_tokens" in name else 0.95), (name, moved)  # the embeddings of tokens that do not occur stay
        assert (parameter - before[name]).abs().max() < 1e-4
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.float(), before[name]), f"{name}: a bf16 weight of this size cannot move"


def test_every_step_computes_with_the_newest_weights(start: Path, other: Path) -> None:
    section = settings(precision="bf16")
    trainer = _Trainer(start, SpinTask(DUELS, plain_opponent(other), 1.0, "logistic"), plan_of(section, len(DUELS)), section)
    seen = []
    for step in range(3):
        trainer.step(step)
        for master, parameter in zip(
            trainer.weights.weights.master_model.parameters(), trainer.weights.weights.model.parameters(), strict=True
        ):
            assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, master.bfloat16())
        seen.append(parameter.clone())
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_weight_decay_is_for_matrices_only(start: Path) -> None:
    model = load_model(start)
    groups = make_optimizer(model, settings(optimizer="adamw", weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"]) and all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


# --- numbers that are none


def poisoned(start: Path, folder: Path, token: int) -> Path:
    """A model that gives NaN to every row with `token` in it, and ordinary numbers to the others."""
    model = load_model(start)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(folder)
    return folder


def test_a_loss_that_is_not_finite_stops_before_the_update(start: Path, other: Path, tmp_path: Path) -> None:
    section = settings()
    plan = plan_of(section, len(DUELS))
    bad = plan.batch(1)[2]
    duels = list(DUELS)
    duels[bad] = Duel(duels[bad].row_id, duels[bad].source_iteration, (50,), duels[bad].real_ids, duels[bad].generated_ids)
    folder = poisoned(start, tmp_path / "start", 50)
    task = SpinTask(duels, plain_opponent(other), 0.3, "logistic")

    trainer = _Trainer(folder, task, plan, section)
    trainer.step(0)
    before = state_of(trainer.weights.model)
    with pytest.raises(UserError) as error:
        trainer.step(1)
    assert "the loss is not finite at step 1" in str(error.value) and f"(rows {duels[bad].duel_id})" in str(error.value)
    assert "train.lr" in str(error.value)
    after = trainer.weights.model.state_dict()
    assert all(torch.equal(before[name].nan_to_num(7.0), after[name].nan_to_num(7.0)) for name in before)

    with pytest.raises(UserError, match="not finite at step 1"):
        run_fit(tmp_path / "train", folder, task, plan, section)
    assert [row["step"] for row in metrics(tmp_path / "train")] == [0], "the bad step is not logged as done"


class SteepTask(SftTask):
    """A finite loss with an infinite slope: the root at 0."""

    def losses(self, indices: Sequence[int], logps_DR: Tensor) -> ItemLosses:
        result = super().losses(indices, logps_DR)
        return ItemLosses((result.loss_D - result.loss_D.detach()).sqrt(), result.numbers)


def test_a_gradient_that_is_not_finite_stops_before_the_update(start: Path) -> None:
    section = settings()
    plan = plan_of(section, len(EXAMPLES))
    trainer = _Trainer(start, SteepTask(EXAMPLES), plan, section)
    before = state_of(trainer.weights.model)
    with pytest.raises(UserError) as error:
        trainer.step(0)
    assert "the gradient is not finite at step 0" in str(error.value)
    assert all(EXAMPLES[index].row_id in str(error.value) for index in plan.batch(0))
    assert_equal_states(trainer.weights.model.state_dict(), before)


# --- going on after a kill


class Killed(BaseException):
    pass


def kill_at_step(monkeypatch: pytest.MonkeyPatch, victim: int) -> None:
    """When the step is computed, before a checkpoint after it."""
    advance = PhaseProgress.advance

    def sabotaged(self: PhaseProgress, *args: Any, **numbers: float) -> None:
        if self.done == victim:
            raise Killed
        advance(self, *args, **numbers)

    monkeypatch.setattr(PhaseProgress, "advance", sabotaged)


@pytest.mark.parametrize("victims", [(1,), (4, 5)], ids=str)
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [("fp32", "rmsprop"), ("fp32", "adamw"), ("bf16", "rmsprop"), ("bf16", "adafactor"), ("bf16", "rmsprop8bit"), ("bf16", "adamw8bit")],
)
def test_an_interrupted_fit_ends_in_the_same_bits(
    precision: str, optimizer: str, victims: tuple[int, ...], start: Path, other: Path, tmp_path: Path
) -> None:
    if optimizer.endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    section = settings(precision=precision, optimizer=optimizer, max_grad_norm=0.1, warmup=0.2, weight_decay=0.01)
    plan = plan_of(section, len(DUELS), epochs=2.0)
    task = SpinTask(DUELS, plain_opponent(other), 1.0, "logistic")
    expected = run_fit(tmp_path / "whole", start, task, plan, section)

    stage = tmp_path / "killed"
    for victim in victims:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at_step(patch, victim)
            run_fit(stage, start, task, plan, section)
    assert latest_checkpoint(stage) is None or latest_checkpoint(stage)[0] == victims[-1] // 2 * 2
    assert not [file.name for file in stage.rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle")]
    found = run_fit(stage, start, task, plan, section)

    assert_equal_states(found.model.state_dict(), expected.model.state_dict())
    assert [row["step"] for row in metrics(stage)] == list(range(7))
    assert without_times(metrics(stage)) == without_times(metrics(tmp_path / "whole"))
    assert found.facts["trained_tokens"] == expected.facts["trained_tokens"] == sum(row["tokens"] for row in metrics(stage))
    assert {**found.facts, "train_seconds": 0} == {**expected.facts, "train_seconds": 0}
    remove_checkpoints(stage)
    assert [path.name for path in stage.iterdir()] == [METRICS]


def test_a_finished_fit_goes_on_from_its_last_checkpoint(start: Path, other: Path, tmp_path: Path) -> None:
    """A kill between the last step and the commit of the stage."""
    section = settings()
    plan = plan_of(section, len(DUELS), epochs=2.0)
    task = SpinTask(DUELS, plain_opponent(other), 1.0, "logistic")
    first = run_fit(tmp_path, start, task, plan, section)
    again = run_fit(tmp_path, start, task, plan, section)
    assert_equal_states(again.model.state_dict(), first.model.state_dict())
    assert [row["step"] for row in metrics(tmp_path)] == list(range(7))


def killed_fit(start: Path, folder: Path) -> Callable[[], FitResult]:
    """A training in `folder` that was killed in its sixth step, after the checkpoint of four; the call resumes it."""
    section = settings()
    plan = plan_of(section, len(DUELS), epochs=2.0)
    rerun = partial(run_fit, folder, start, SpinTask(DUELS, plain_opponent(start), 1.0, "logistic"), plan, section)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, 5)
        rerun()
    return rerun


def test_an_interrupted_fit_without_its_metrics_is_refused(start: Path, tmp_path: Path) -> None:
    """Without them the tokens of the steps before the checkpoint would be missing in the cost that controls are given."""
    rerun = killed_fit(start, tmp_path)
    (tmp_path / METRICS).unlink()
    with pytest.raises(UserError, match="its first 4 lines are not the metrics of the first 4 steps"):
        rerun()


def test_an_interrupted_fit_remembers_what_the_watch_saw(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The facts of the stage must not depend on where it was killed."""
    monkeypatch.setattr("sparring.training.fit.FEWEST", 2)
    monkeypatch.setattr("sparring.training.fit.STDERRS", -math.inf)  # every reward is a fall
    monkeypatch.setattr("sparring.training.fit._margin", lambda rows: rows[-1]["step"] + 1)
    rerun = killed_fit(start, tmp_path)
    assert rerun().facts["human_logp_warning_at_step"] == 3


def test_the_opponent_pass_goes_on_from_its_shards(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.training.opponent_pass.STEPS_PER_SHARD", 1)
    section = settings()
    plan = plan_of(section, len(DUELS))
    whole = opponent_logps(start, tmp_path / "whole", plan, section)
    assert whole.keys() == {duel.duel_id for duel in DUELS}
    assert [len(whole[duel.duel_id]) for duel in DUELS] == [1 + sum(ids != duel.real_ids for ids in duel.generated_ids) for duel in DUELS]

    forwards: list[int] = []
    forward = Scorer.forward

    def killed(self: Scorer, batch: Any) -> Tensor:
        forwards.append(batch.duels)
        if len(forwards) == 6:
            raise Killed
        return forward(self, batch)

    stage = tmp_path / "killed"
    stage.mkdir()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Scorer, "forward", killed)
        score_duels(stage, start, DUELS, plan, section, "score")
    kept = {path: path.stat().st_mtime_ns for path in stage.glob("shard-*.parquet")}
    assert 0 < len(kept) < 4
    score_duels(stage, start, DUELS, plan, section, "score")
    assert read_logps(stage) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "finished shards are not computed again"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.training.ranked.load_model", None)
        score_duels(stage, start, DUELS, plan, section, "score")
