"""DPO on labelled pairs (arXiv 2305.18290) as a control: equation 4.7 with the rejected reply in the opponent's place, K = 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import ControlSection, TrainSection, control_batch_size, control_lr
from sparring.console import log
from sparring.data.fingerprint import ROW_OPTIONS, changed, chat_fingerprint, source_fingerprint
from sparring.data.preferences import prepare_pairs, read_pairs, write_pairs
from sparring.data.records import Duel
from sparring.policy.batches import Layout, branches_of
from sparring.policy.player import Player
from sparring.rundir import StageRecord
from sparring.stage_names import control_stage, iteration_stage
from sparring.stages.context import RunContext
from sparring.stages.fitting import fit_model
from sparring.stages.inputs import training_inputs
from sparring.stages.score import score_stage
from sparring.training.opponent_pass import read_logps
from sparring.training.plan import TrainPlan, make_plan, order_seed
from sparring.training.tasks import SpinTask

PAIRS = "pairs.parquet"
DATA_LIMITS = ("max_prompt_tokens", "max_reply_tokens", "too_long")


def pairs_stage(context: RunContext, section: ControlSection) -> StageRecord:
    """The pairs, tokenised."""
    source, recipe = section.pairs, context.recipe
    assert source is not None

    def work(stage: Path) -> dict[str, Any]:
        held_out = {example.prompt_ids for example in context.held_out}
        found = prepare_pairs(source, recipe.data, context.chat, recipe.seed, held_out)
        write_pairs(stage / PAIRS, found.duels)
        for notice in found.notices:
            log.info(f"{section.title}: {notice}")
        log.info(f"{section.title}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.counts.items() if count))
        return {"counts": found.counts}

    inputs = {
        "pairs": {**source.model_dump(exclude={"path"}), "content": source_fingerprint(source)},
        "limits": {**recipe.data.model_dump(include=set(DATA_LIMITS)), **changed(recipe.data, ROW_OPTIONS)},
        "held_out": context.data.outputs["held_out.parquet"],
        "chat": chat_fingerprint(context.chat),
        "seed": recipe.seed,
    }
    return context.stages.run_stage(control_stage(section.folder, "pairs"), inputs, work)


def train_dpo(context: RunContext, section: ControlSection, reference: Player, played: int, forward_tokens: int) -> Player:
    """The reference's log-probs of the pairs first, then the player, who starts as the reference.

    forward_tokens: what it may cost where the recipe names no epochs.
    """
    prepared = _prepared(context, section, played, forward_tokens)
    duels, plan, settings = prepared.duels, prepared.plan, prepared.settings
    score = _score(context, section, reference, prepared)

    def work(stage: Path) -> dict[str, Any]:
        task = SpinTask(duels, read_logps(score.path), section.beta, "logistic")
        name = control_stage(section.folder, "train")
        return fit_model(context, stage, reference, task, plan, settings, phase=f"{section.title}: training", labels={"stage": name})

    inputs = {
        "train": {**training_inputs(settings), "lr": plan.lr, "epochs": None},
        "steps": plan.steps,
        "beta": section.beta,
        "reference": reference.hash,
        "reference_logps": score.digest,
        "order": plan.seed,
        "seed": context.recipe.seed,
    }
    return Player.of_stage(context.stages.run_stage(control_stage(section.folder, "train"), inputs, work))


@dataclass(frozen=True)
class _Prepared:
    duels: list[Duel]
    plan: TrainPlan
    settings: TrainSection


def _prepared(context: RunContext, section: ControlSection, played: int, forward_tokens: int) -> _Prepared:
    duels = read_pairs(pairs_stage(context, section).path / PAIRS)
    settings = _settings(context, section)
    epochs = section.epochs or _epochs(duels, forward_tokens, settings.forward_passes, _layout(context))
    lr = control_lr(context.recipe, section)
    plan = make_plan(settings, len(duels), lr=lr, epochs=epochs, seed=order_seed(context.recipe, played), name=section.title)
    return _Prepared(duels, plan, settings)


def _settings(context: RunContext, section: ControlSection) -> TrainSection:
    """The game's own way to train, with the control's batch size."""
    train = context.recipe.train
    return train.model_copy(update={"batch_size": control_batch_size(context.recipe, section), "horizon_epochs": None})


def _score(context: RunContext, section: ControlSection, reference: Player, prepared: _Prepared) -> StageRecord:
    name, phase = control_stage(section.folder, "score"), f"{section.title}: reference log-probs"
    return score_stage(context, name, reference, prepared.duels, prepared.plan, prepared.settings, phase)


def _layout(context: RunContext) -> Layout:
    """How the game has laid out its duels: where its model takes no packed trees, every reply has computed the prompt for itself."""
    trained = context.run.finished(iteration_stage(0, "train"))
    return "tree" if trained is None or trained.facts["layout"] == "tree" else "rows"


def _epochs(duels: list[Duel], forward_tokens: int, passes: int, layout: Layout) -> float:
    """Passes over the pairs that cost so many tokens times forward passes, the reference's one pass included; at least a step is made."""
    of_epoch = sum(branches_of(duel).tokens(layout) for duel in duels)
    share = forward_tokens / of_epoch
    return (share - 1) / passes if share >= 1 + passes else share / (1 + passes)
