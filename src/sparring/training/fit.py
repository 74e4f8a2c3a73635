"""The training loop: exactly `batch_size` items per optimizer step, micro-batches by tokens, checkpoints, one line of metrics a step."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sparring.config import OptimSection
from sparring.console import log, progress
from sparring.errors import UserError
from sparring.policy.batches import hardest, micro_batches
from sparring.policy.compute import make_accelerator
from sparring.policy.score import Scorer
from sparring.rundir import fsync, write_text
from sparring.training.checkpoint import latest_checkpoint, restore_optimizer, save_checkpoint
from sparring.training.masters import Weights, trainable_weights
from sparring.training.optimizers import make_optimizer
from sparring.training.plan import TrainPlan
from sparring.training.tasks import Task
from sparring.training.watch import HumanLogpWatch

METRICS = "metrics.jsonl"
Numbers = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FitResult:
    weights: Weights
    facts: dict[str, Any]

    @property
    def model(self) -> torch.nn.Module:
        """What was trained: float32 weights, or a PEFT model with a float32 adapter."""
        return self.weights.masters


def fit(stage: Path, start: Path, task: Task, plan: TrainPlan, settings: OptimSection, *, phase: str, labels: dict[str, Any]) -> FitResult:
    """Train the model in folder `start` on `task`, checkpointing into `stage`; goes on from a checkpoint found there.

    `labels` are added to every line of metrics. Raises UserError on a non-finite loss or gradient, before the update.
    """
    first_step, folder = latest_checkpoint(stage) or (0, start)
    trainer = _Trainer(folder, task, plan, settings)
    log.info(f"{phase}: {plan.steps} steps of {plan.batch_size} {task.unit}, {plan.epochs:.3g} epochs, lr {plan.lr:g}")
    if first_step:
        log.info(f"{phase}: going on from step {first_step} of {plan.steps}")
        restore_optimizer(folder, trainer.optimizer)
    rows = _metrics_until(stage / METRICS, first_step)
    watch = HumanLogpWatch(phase)
    for row in rows:  # what it saw before the interruption
        watch.see(row)
    with progress(phase, plan.steps, "steps", first_step) as shown, open(stage / METRICS, "a", encoding="utf-8") as metrics:
        for step in range(first_step, plan.steps):
            row = {**labels, "step": step, **trainer.step(step)}
            rows.append(row)
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            watch.see(row)
            shown.advance(1, **{name: row[name] for name in ("loss", "margin", "accuracy") if name in row})
            if (step + 1) % settings.checkpoint_every == 0 and step + 1 < plan.steps:
                fsync(stage / METRICS)
                save_checkpoint(stage, step + 1, trainer.weights, trainer.optimizer)
    watch.end()
    facts = {"steps": plan.steps, "batch_size": plan.batch_size, "layout": trainer.scorer.layout}
    return FitResult(trainer.weights, {**facts, **_work_of(rows, phase), **watch.facts()})


def _work_of(rows: Sequence[dict[str, Any]], phase: str) -> dict[str, Any]:
    """Facts: what all steps computed together."""
    tokens, positions, parts = (sum(row[name] for row in rows) for name in ("tokens", "positions", "micro_batches"))
    padding = 1 - tokens / positions
    log.info(f"{phase}: {tokens:,} tokens in {parts} micro-batches, {padding:.1%} of the computed positions padding")
    seconds = round(sum(row["seconds"] for row in rows), 3)
    return {"trained_tokens": tokens, "padding": round(padding, 4), "micro_batches": parts, "train_seconds": seconds}


class _Trainer:
    """Model, optimizer and one step of it."""

    def __init__(self, folder: Path, task: Task, plan: TrainPlan, settings: OptimSection) -> None:
        self.task, self.plan, self.settings = task, plan, settings
        self.accelerator: Accelerator = make_accelerator()
        self.weights = trainable_weights(folder, settings, self.accelerator.device, plan.seed)
        self.model = self.weights.masters
        self.max_tokens = settings.max_tokens
        self.scorer = Scorer(self.weights.model)
        self.scorer.choose_layout(*hardest(task.branches(index) for index in range(len(task))))
        if settings.gradient_checkpointing:
            self.scorer.use_gradient_checkpointing()
        optimizer = make_optimizer(self.model, settings)
        self.prepared, self.optimizer = self.accelerator.prepare(self.scorer, optimizer)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns its metrics. Nothing is updated when the loss or the gradient is not finite."""
        began = time.monotonic()
        batch = self.plan.batch(step)
        weight = self.task.weight(batch)
        self.weights.start_dropout(self.plan.seed * 1_000_003 + step)  # by the step alone: a resumed run drops the same
        numbers: list[Numbers] = []
        work: dict[str, int] = Counter()
        order: list[int] = []
        # by place in the batch, as the opponent pass does: equal groups give equal rounding
        layout = self.scorer.row_layout
        for group in micro_batches(range(len(batch)), lambda place: self._shape(batch[place]), self.max_tokens, layout):
            order += (items := [batch[place] for place in group])
            numbers.append(self._accumulate(items, weight, work))
        means = self._means(numbers, order, step)  # the only wait for the device beside the gradient's norm
        norm = self._clip(step, batch)
        lr = self.plan.learning_rate(step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.publish()
        seconds = time.monotonic() - began
        loss = means.pop("loss") * len(batch) * weight
        speed = {"seconds": seconds, "tokens_per_second": work["tokens"] / seconds}
        return {"loss": loss, **means, "grad_norm": norm, "lr": lr, **work, **speed}

    def _accumulate(self, group: Sequence[int], weight: float, work: dict[str, int]) -> Numbers:
        """Adds to the gradient, and to `work` what was computed for it; returns the loss and the task's numbers of every item."""
        batch = self.scorer.collate([self.task.branches(index) for index in group])
        losses = self.task.losses(group, self.prepared(batch))
        self.accelerator.backward(losses.loss_D.sum() * weight)
        for name, count in {"tokens": batch.tokens, "positions": batch.positions, "micro_batches": 1}.items():
            work[name] += count
        return {"loss": losses.loss_D.detach(), **losses.numbers}

    def _means(self, numbers: Sequence[Numbers], items: Sequence[int], step: int) -> dict[str, float]:
        """Means over the items of a step, which must all have a finite loss."""
        names = list(numbers[0])
        table = torch.cat([torch.stack([found[name].double() for name in names]) for found in numbers], dim=1).cpu()
        bad = [self.task.name(items[place]) for place in (~table[names.index("loss")].isfinite()).nonzero().flatten().tolist()]
        if bad:
            raise _not_finite("loss", step, bad)
        return dict(zip(names, table.mean(1).tolist(), strict=True))

    def _clip(self, step: int, batch: Sequence[int]) -> float:
        limit = self.settings.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit))
        if not math.isfinite(norm):
            raise _not_finite("gradient", step, [self.task.name(index) for index in batch])
        return norm

    def _shape(self, index: int) -> tuple[int, int]:
        return self.task.branches(index).shape(self.scorer.row_layout)


def _metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of the steps that the checkpoint holds; later ones, of steps that will be done again, are cut from the file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()[:step]
    write_text(path, "".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]


def _not_finite(what: str, step: int, names: Sequence[str]) -> UserError:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return UserError(
        f"the {what} is not finite at step {step} (rows {shown}); no update was made",
        remedy="lower train.lr (or sft.lr), keep max_grad_norm, or look at these rows in data/train.parquet",
    )
