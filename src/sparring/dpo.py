"""DPO on labelled pairs (arXiv 2305.18290) as a control: equation 4.7 with the rejected reply in the opponent's place, K = 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import ControlSection, DataSection, PairsSection, TrainSection, at_iteration, control_batch_size, control_lr
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.preferences import PreparedPairs, prepare_pairs, read_pairs, write_pairs
from sparring.data.prepare import ROW_OPTIONS, changed
from sparring.data.records import Duel, PromptSet
from sparring.policy.batches import Layout, branches_of
from sparring.policy.player import Player
from sparring.rundir import StageRecord
from sparring.stage_names import iteration_stage
from sparring.stages.context import Common, RunContext, counts_text
from sparring.stages.run_stage import Examples
from sparring.stages.train import fit_model, score_stage
from sparring.training.opponent_pass import read_logps
from sparring.training.plan import make_plan, order_seed, steps_plan
from sparring.training.tasks import SpinTask

PAIRS = "pairs.parquet"
DATA_LIMITS = ("max_prompt_tokens", "max_reply_tokens", "too_long")


@dataclass(frozen=True)
class Limits:
    """The options of the data section that also apply to pairs; the other options of `section` have their defaults."""

    section: DataSection

    def inputs(self) -> dict[str, Any]:
        """For the fingerprint; options that were added later are left out while they have their defaults."""
        return {"limits": {**self.section.model_dump(include=set(DATA_LIMITS)), **changed(self.section, ROW_OPTIONS)}}


def pairs_stage(context: RunContext, section: ControlSection) -> StageRecord:
    """The pairs, tokenised."""
    return context.run_stage(f"{section.folder}/pairs", partial(_prepare, section.title, **_arguments(context, section)))


def check_pairs(context: RunContext, section: ControlSection) -> None:
    """Raise UserError for pairs that cannot be read. They are tokenised here, unless the stage is to be redone later."""
    if f"{section.folder}/pairs" in context.run.redone:
        _read(**_arguments(context, section))
    else:
        pairs_stage(context, section)


def _arguments(context: RunContext, section: ControlSection) -> dict[str, Any]:
    data = context.recipe.data
    limits = Limits(DataSection(path=data.path, **{name: getattr(data, name) for name in (*DATA_LIMITS, *ROW_OPTIONS)}))
    of_run = {"held_out": context.held_out, "chat": context.chat, "seed": context.recipe.seed}
    return {"pairs": section.pairs, "limits": limits, **of_run}


def _read(*, pairs: PairsSection, limits: Limits, held_out: Examples, chat: Chat, seed: int) -> PreparedPairs:
    return prepare_pairs(pairs, limits.section, chat, seed, PromptSet(held_out))


def _prepare(title: str, stage: Path, *, pairs: PairsSection, limits: Limits, held_out: Examples, chat: Chat, seed: int) -> dict[str, Any]:
    found = _read(pairs=pairs, limits=limits, held_out=held_out, chat=chat, seed=seed)
    write_pairs(stage / PAIRS, found.duels)
    for notice in found.notices:
        log.info(f"{title}: {notice}")
    log.info(f"{title}: {counts_text(found.counts)}")
    return {"counts": found.counts}


def train_dpo(context: RunContext, section: ControlSection, reference: Player, played: int, forward_tokens: int) -> Player:
    """Compute the reference's log-probs of the pairs, then train a player that starts as a copy of the reference.

    forward_tokens: the budget if the recipe gives no epochs.
    """
    recipe, name = context.recipe, f"{section.folder}/train"
    duels = read_pairs(pairs_stage(context, section).path / PAIRS)
    settings = recipe.train.model_copy(update={"batch_size": control_batch_size(recipe, section), "horizon_epochs": None})
    epochs = section.epochs or _epochs(duels, forward_tokens, settings.forward_passes, _layout(context))
    lr, order = control_lr(recipe, section), order_seed(recipe.seed, played)
    plan = make_plan(settings, len(duels), lr=lr, epochs=epochs, seed=order, name=section.title)
    scored, phase = f"{section.folder}/score", f"{section.title}: reference log-probs"
    work = partial(
        _train,
        context.common(name),
        duels,
        train=context.with_budget(settings.model_copy(update={"lr": plan.lr, "epochs": None})),
        steps=plan.steps,
        beta=section.beta,
        reference=reference,
        reference_logps=score_stage(context, scored, reference, duels, plan, settings, phase),
        order=order,
        seed=recipe.seed,
    )
    return Player.of_stage(context.run_stage(name, work))


def _train(
    common: Common,
    duels: Sequence[Duel],
    stage: Path,
    *,
    train: TrainSection,
    steps: int,
    beta: float,
    reference: Player,
    reference_logps: StageRecord,
    order: int,
    seed: int,
) -> dict[str, Any]:
    """duels: those that the reference has scored; seed: gave the order of batches and the pairs."""
    plan = steps_plan(train, len(duels), lr=at_iteration(train.lr, 0), steps=steps, seed=order)
    task = SpinTask(duels, read_logps(reference_logps.path), beta, "logistic")
    return fit_model(common, stage, reference, task, plan, train)


def _layout(context: RunContext) -> Layout:
    """The layout of the game's training: "rows" if its model cannot compute packed trees, so that every reply repeats the prompt."""
    trained = context.run.finished(iteration_stage(0, "train"))
    return "tree" if trained is None or trained.facts["layout"] == "tree" else "rows"


def _epochs(duels: list[Duel], forward_tokens: int, forward_passes: int, layout: Layout) -> float:
    """Epochs over the pairs that cost `forward_tokens`, the reference's one forward pass included; at least one step is trained."""
    of_epoch = sum(branches_of(duel).tokens(layout) for duel in duels)
    share = forward_tokens / of_epoch
    return (share - 1) / forward_passes if share >= 1 + forward_passes else share / (1 + forward_passes)
