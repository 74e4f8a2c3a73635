"""The training loop: exactly `batch_size` items per optimizer step, micro-batches by tokens, checkpoints, one line of metrics per step."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from sparring.config import OptimSection
from sparring.console import counted, log
from sparring.errors import UserError
from sparring.policy.adapters import start_dropout
from sparring.policy.ranks import AgreedError, from_main, gathered, is_main, rank_count
from sparring.progress import progress
from sparring.rundir import fsync, write_text
from sparring.stage_names import METRICS
from sparring.training.checkpoint import latest_checkpoint, save_checkpoint
from sparring.training.plan import TrainPlan
from sparring.training.ranked import ranked_weights
from sparring.training.tasks import Task

WINDOW = 10
FEWEST, FEWEST_AT_END = 4, 2
STDERRS = 2.0  # batches differ by chance: a mean reward must be this many standard errors below 0 to count as a fall


class HumanLogpWatch:
    """Warns once when the human replies' mean reward is negative while the margin is larger than in the steps before.

    After every step, the newest ten steps are compared with the ten before them; while there are fewer than 20 steps, but at least eight,
    the second half is compared with the first. At the end of training the halves are compared again, from four steps on.
    """

    def __init__(self, phase: str, preferred: str = "human replies") -> None:
        """preferred: what the log calls the replies that should not become less likely."""
        self.phase, self.preferred = phase, preferred
        self.rows: list[dict[str, Any]] = []
        self.warned_at: int | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add the log row of a step and judge the newest steps."""
        if "reward_real" in row:  # missing without opponent log-probs, and then the change since the start is unknown
            self.rows.append(row)
            self._judge(min(WINDOW, len(self.rows) // 2), FEWEST)

    def end(self) -> None:
        """Compare the halves of the whole training."""
        self._judge(len(self.rows) // 2, FEWEST_AT_END)

    def facts(self) -> dict[str, Any]:
        """The step of the warning, for the stage's facts; empty without a warning."""
        return {} if self.warned_at is None else {"human_logp_warning_at_step": self.warned_at}

    def _judge(self, width: int, fewest: int) -> None:
        if self.warned_at is not None or width < fewest:
            return
        before, newest = self.rows[-2 * width : -width], self.rows[-width:]
        rewards = [row["reward_real"] for row in newest]
        falls = fmean(rewards) < -STDERRS * stdev(rewards) / math.sqrt(width)
        if falls and _margin(newest) > max(0.0, _margin(before)):
            self.warned_at = newest[-1]["step"]
            log.warning(
                f"{self.phase}: the margin grows but the {self.preferred} lose log-prob (mean reward {fmean(rewards):.3f} "
                f"over the last {width} steps): a larger objective.beta or a smaller train.lr prevents this"
            )


def _margin(rows: Sequence[dict[str, Any]]) -> float:
    return fmean(row["margin"] for row in rows)


Numbers = dict[str, torch.Tensor]


@dataclass(frozen=True)
class FitResult:
    """The trained model, the function by which rank 0 writes its folder, and the stage's facts.

    model: float32 weights (this rank's shard, if they are sharded), or a PEFT model with a float32 adapter.
    """

    model: torch.nn.Module
    save: Callable[[Path], None]
    facts: dict[str, Any]


def fit(stage: Path, start: Path, task: Task, plan: TrainPlan, settings: OptimSection, *, phase: str, labels: dict[str, Any]) -> FitResult:
    """Train the model in folder `start` on `task`, checkpointing into `stage`; resumes from a checkpoint found there.

    `labels` are added to every line of metrics. Raises UserError on a non-finite loss or gradient, before the update.
    """
    first_step, folder = from_main(lambda: latest_checkpoint(stage)) or (0, start)
    trainer = _Trainer(folder, task, plan, settings)
    log.info(f"{phase}: {counted(plan.steps, 'step')} of {plan.batch_size} {task.unit}, {counted(plan.epochs, 'epoch')}, lr {plan.lr:g}")
    if first_step:
        log.info(f"{phase}: resuming at step {first_step} of {plan.steps}")
        trainer.weights.restore_optimizer(folder)
    rows = from_main(lambda: _metrics_until(stage / METRICS, first_step))
    watch = HumanLogpWatch(phase, task.preferred)
    for row in rows:  # the steps before the interruption
        watch.add(row)
    with (
        progress(phase, plan.steps, "steps", first_step) as shown,
        open(stage / METRICS if is_main() else os.devnull, "a", encoding="utf-8", buffering=1) as lines,  # written line by line
    ):
        for step in range(first_step, plan.steps):
            row = {**labels, "step": step, **trainer.step(step)}
            rows.append(row)
            lines.write(json.dumps(row) + "\n")
            watch.add(row)
            shown.advance(1, **{name: row[name] for name in ("loss", "margin", "accuracy") if name in row})
            if (step + 1) % settings.checkpoint_every == 0 and step + 1 < plan.steps:
                trainer.checkpoint(stage, step + 1)
    watch.end()
    facts = {"steps": plan.steps, "batch_size": plan.batch_size, "layout": trainer.scorer.layout, "ranks": rank_count()}
    facts["passes"] = settings.forward_passes
    return FitResult(trainer.weights.model, trainer.weights.model_writer(), {**facts, **_work_of(rows, phase), **watch.facts()})


def _work_of(rows: Sequence[dict[str, Any]], phase: str) -> dict[str, Any]:
    """The stage's facts: totals over all steps."""
    tokens, positions, parts = (sum(row[name] for row in rows) for name in ("tokens", "positions", "micro_batches"))
    padding = 1 - tokens / positions
    log.info(f"{phase}: {tokens:,} tokens in {parts} micro-batches, {padding:.1%} of the computed positions are padding")
    seconds = round(sum(row["seconds"] for row in rows), 3)
    return {"trained_tokens": tokens, "padding": round(padding, 4), "micro_batches": parts, "train_seconds": seconds}


class _Trainer:
    """Model, optimizer and the training step. Every rank has one and computes its share of each step."""

    def __init__(self, folder: Path, task: Task, plan: TrainPlan, settings: OptimSection) -> None:
        self.task, self.plan, self.settings = task, plan, settings
        self.weights = ranked_weights(folder, settings, plan.seed)
        self.scorer = self.weights.scorer
        self.scorer.choose_layout_on_main([task.branches(index) for index in range(len(task))], settings.max_tokens)
        if settings.gradient_checkpointing:
            self.scorer.use_gradient_checkpointing()
        self.weights.prepare(settings)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns its metrics. Nothing is updated if the loss or the gradient is not finite."""
        began = time.monotonic()
        batch = self.plan.batch(step)
        scale = self.task.loss_scale(batch)
        start_dropout(self.scorer.model, self.plan.seed * 1_000_003 + step)  # seeded by the step: a resumed run drops the same units
        trees = [self.task.branches(index) for index in batch]
        mine, dummies = self.scorer.groups_of_rank(trees, self.settings.max_tokens, self.weights.needs_all_ranks)
        groups = [[batch[place] for place in group] for group in mine]
        work: Counter[str] = Counter()
        numbers = [self._accumulate(group, scale, work) for group in groups]
        for dummy in dummies:
            self._accumulate([batch[place] for place in dummy], 0.0, work)
        # the only wait for the device besides the gradient's norm
        means, work = self._means(numbers, [index for group in groups for index in group], step, work)
        lr = self.plan.learning_rate(step)
        for parameters in self.weights.optimizer.param_groups:
            parameters["lr"] = lr
        norm = self.weights.clip(self.settings.max_grad_norm)
        if not math.isfinite(norm):
            raise _not_finite("gradient", step, [self.task.names[index] for index in batch])
        self.weights.optimizer.step()
        self.weights.optimizer.zero_grad()
        self.weights.sync_compute_weights()
        seconds = time.monotonic() - began
        loss = means.pop("loss") * len(batch) * scale
        speed = {"seconds": seconds, "tokens_per_second": work["tokens"] / seconds}
        return {"loss": loss, **means, "grad_norm": norm, "lr": lr, **work, **speed}

    def checkpoint(self, stage: Path, step: int) -> None:
        """Rank 0 writes the gathered state; no rank continues before it is on disk."""
        optimizer, save_model = self.weights.optimizer_tensors(), self.weights.model_writer()

        def write() -> None:
            fsync(stage / METRICS)
            save_checkpoint(stage, step, save_model, optimizer)

        from_main(write)

    def _accumulate(self, group: Sequence[int], scale: float, work: Counter[str]) -> Numbers:
        """Accumulate the gradient of a micro-batch and count its tokens in `work`; returns loss and task numbers of every item."""
        batch = self.scorer.collate([self.task.branches(index) for index in group])
        losses = self.task.losses(group, self.weights.wrapped(batch))
        self.weights.backward(losses.loss_D.sum() * scale)
        work.update(tokens=batch.tokens if scale else 0, positions=batch.positions, micro_batches=1)
        return {"loss": losses.loss_D.detach(), **losses.numbers}

    def _means(
        self, numbers: Sequence[Numbers], items: Sequence[int], step: int, work: Counter[str]
    ) -> tuple[dict[str, float], Counter[str]]:
        """Means over the items of a step on all ranks, which must have a finite loss; and the sum of the ranks' `work`."""
        names = list(numbers[0]) if numbers else []
        table = [torch.stack([found[name].double() for name in names]) for found in numbers]
        of_ranks = gathered((names, torch.cat(table, dim=1).cpu() if table else None, list(items), dict(work)))
        total: Counter[str] = Counter()
        for *_, part in of_ranks:
            total.update(part)  # a Counter adds
        found = [(names, part, own) for names, part, own, _ in of_ranks if part is not None]
        names, whole = found[0][0], torch.cat([part for _, part, _ in found], dim=1)
        order = [index for *_, own in found for index in own]
        bad = [self.task.names[order[place]] for place in (~whole[names.index("loss")].isfinite()).nonzero().flatten().tolist()]
        if bad:
            raise _not_finite("loss", step, bad)
        return dict(zip(names, whole.mean(1).tolist(), strict=True)), total


def _metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of the steps before the checkpoint; later rows, whose steps will be repeated, are cut from the file.

    Raises UserError if the file lacks some of them.
    """
    if not path.exists() and not step:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:step] if path.exists() else []
        rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        rows = []
    if len(rows) < step or not all(isinstance(row, dict) for row in rows):
        remedy = "it was deleted, truncated or edited by hand; restore it, or redo the stage with --restart-from"
        raise UserError(f"its first {step} lines are not the metrics of the first {step} steps", where=str(path), remedy=remedy)
    write_text(path, "".join(line + "\n" for line in lines))
    return rows


def _not_finite(what: str, step: int, names: Sequence[str]) -> AgreedError:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return AgreedError(
        f"the {what} is not finite at step {step} (rows {shown}); no update was made",
        remedy="lower train.lr (or sft.lr) and redo the stage with --restart-from, or look at these rows in data/train.parquet",
    )
