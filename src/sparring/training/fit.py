"""The training loop: exactly `batch_size` items per optimizer step, micro-batches by tokens, checkpoints, one line of metrics per step."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from sparring.config import OptimSection
from sparring.console import counted, log
from sparring.errors import UserError
from sparring.policy.adapters import start_dropout
from sparring.policy.batches import layout_probe_trees, longest_row, micro_batches_of_ranks, shortest
from sparring.policy.compute import make_accelerator
from sparring.policy.ranks import agreed, from_main, gathered, is_main, rank, rank_count
from sparring.progress import progress
from sparring.rundir import fsync, write_text
from sparring.stage_names import METRICS
from sparring.training.checkpoint import Saveable, latest_checkpoint, save_checkpoint
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
    """The trained weights, which rank 0 can save, and the stage's facts."""

    weights: Saveable
    facts: dict[str, Any]

    @property
    def model(self) -> torch.nn.Module:
        """The trained model: float32 weights (this rank's shard, if they are sharded), or a PEFT model with a float32 adapter."""
        return self.weights.master_model


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
    with progress(phase, plan.steps, "steps", first_step) as shown, _appending(stage / METRICS) as write:
        for step in range(first_step, plan.steps):
            row = {**labels, "step": step, **trainer.step(step)}
            rows.append(row)
            write(json.dumps(row) + "\n")
            watch.add(row)
            shown.advance(1, **{name: row[name] for name in ("loss", "margin", "accuracy") if name in row})
            if (step + 1) % settings.checkpoint_every == 0 and step + 1 < plan.steps:
                trainer.checkpoint(stage, step + 1)
    watch.end()
    facts = {"steps": plan.steps, "batch_size": plan.batch_size, "layout": trainer.scorer.layout, "ranks": rank_count()}
    facts["passes"] = settings.forward_passes
    return FitResult(trainer.weights.saveable(), {**facts, **_work_of(rows, phase), **watch.facts()})


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
        self.weights = ranked_weights(folder, settings, make_accelerator(), plan.seed)
        self.model, self.scorer = self.weights.model, self.weights.scorer
        self.max_tokens = settings.max_tokens
        trees = [task.branches(index) for index in range(len(task))]
        self.scorer.choose_layout_on_main(*layout_probe_trees(trees), row_tokens=longest_row(trees, self.max_tokens))
        if settings.gradient_checkpointing:
            self.scorer.use_gradient_checkpointing()
        self.weights.prepare(settings)
        self.optimizer = self.weights.optimizer

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns its metrics. Nothing is updated if the loss or the gradient is not finite."""
        began = time.monotonic()
        batch = self.plan.batch(step)
        weight = self.task.loss_scale(batch)
        start_dropout(self.scorer.model, self.plan.seed * 1_000_003 + step)  # seeded by the step: a resumed run drops the same units
        numbers: list[Numbers] = []
        work: Counter[str] = Counter()
        order: list[int] = []
        mine, idle = self._my_groups(batch)
        for turn, items in enumerate([*mine, *idle], 1):
            counts = turn <= len(mine)
            found = self._accumulate(items, weight if counts else 0.0, work, turn == len(mine) + len(idle))
            if counts:
                order += items
                numbers.append(found)
        means = self._means(numbers, order, step, work)  # the only wait for the device besides the gradient's norm
        lr = self.plan.learning_rate(step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        norm = self._clip(step, batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.sync_compute_weights()
        seconds = time.monotonic() - began
        loss = means.pop("loss") * len(batch) * weight
        speed = {"seconds": seconds, "tokens_per_second": work["tokens"] / seconds}
        return {"loss": loss, **means, "grad_norm": norm, "lr": lr, **work, **speed}

    def checkpoint(self, stage: Path, step: int) -> None:
        """Rank 0 writes the gathered state; no rank continues before it is on disk."""
        optimizer, model = self.weights.optimizer_tensors(), self.weights.saveable()

        def write() -> None:
            fsync(stage / METRICS)
            save_checkpoint(stage, step, model, optimizer)

        from_main(write)

    def _my_groups(self, batch: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """This rank's micro-batches of a step, and the dummy ones after them if all ranks must make equally many passes."""
        # by place in the batch, as the opponent pass does: equal groups give equal rounding
        shapes = [self._shape(index) for index in batch]
        groups = micro_batches_of_ranks(shapes, self.max_tokens, self.scorer.row_layout, rank_count())
        mine = [[batch[place] for place in group] for group in groups[rank()]]
        idle = max(map(len, groups)) - len(mine) if self.weights.needs_all_ranks else 0
        return mine, [[batch[shortest(shapes)]]] * idle

    def _accumulate(self, group: Sequence[int], weight: float, work: Counter[str], is_last: bool) -> Numbers:
        """Accumulate the gradient of a micro-batch and count its tokens in `work`; returns loss and task numbers of every item."""
        batch = self.scorer.collate([self.task.branches(index) for index in group])
        losses = self.task.losses(group, self.weights.wrapped(batch))
        self.weights.backward(losses.loss_D.sum() * weight, is_last)
        for name, count in {"tokens": batch.tokens if weight else 0, "positions": batch.positions, "micro_batches": 1}.items():
            work[name] += count
        return {"loss": losses.loss_D.detach(), **losses.numbers}

    def _means(self, numbers: Sequence[Numbers], items: Sequence[int], step: int, work: Counter[str]) -> dict[str, float]:
        """Means over the items of a step on all ranks, which must have a finite loss; `work` becomes the sum over the ranks."""
        names = list(numbers[0]) if numbers else []
        table = [torch.stack([found[name].double() for name in names]) for found in numbers]
        of_ranks = gathered((names, torch.cat(table, dim=1).cpu() if table else None, list(items), dict(work)))
        for *_, others in of_ranks[: rank()] + of_ranks[rank() + 1 :]:
            work.update(others)  # a Counter adds
        found = [(names, part, own) for names, part, own, _ in of_ranks if part is not None]
        names, whole = found[0][0], torch.cat([part for _, part, _ in found], dim=1)
        order = [index for *_, own in found for index in own]
        bad = [self.task.name(order[place]) for place in (~whole[names.index("loss")].isfinite()).nonzero().flatten().tolist()]
        if bad:
            raise _not_finite("loss", step, bad)
        return dict(zip(names, whole.mean(1).tolist(), strict=True))

    def _clip(self, step: int, batch: Sequence[int]) -> float:
        norm = self.weights.clip(self.settings.max_grad_norm)
        if not math.isfinite(norm):
            raise _not_finite("gradient", step, [self.task.name(index) for index in batch])
        return norm

    def _shape(self, index: int) -> tuple[int, int]:
        return self.task.branches(index).shape(self.scorer.row_layout)


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that appends to the file at once on rank 0, and does nothing on other ranks."""
    if not is_main():
        yield lambda text: None
        return
    with open(path, "a", encoding="utf-8") as file:

        def write(text: str) -> None:
            file.write(text)
            file.flush()

        yield write


def _metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows of the steps before the checkpoint; later rows, whose steps will be repeated, are cut from the file.

    Raises UserError if the file lacks some of them.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:step]
        rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        rows = []
    if len(rows) < step or not all(isinstance(row, dict) for row in rows):
        remedy = "it was truncated or edited by hand; restore it, or redo the stage with --restart-from"
        raise UserError(f"its first {step} lines are not the metrics of the first {step} steps", where=str(path), remedy=remedy)
    write_text(path, "".join(line + "\n" for line in lines))
    return rows


def _not_finite(what: str, step: int, names: Sequence[str]) -> UserError:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    # every rank raises the same error
    return agreed(
        UserError(
            f"the {what} is not finite at step {step} (rows {shown}); no update was made",
            remedy="lower train.lr (or sft.lr), keep max_grad_norm, or look at these rows in data/train.parquet",
        )
    )
