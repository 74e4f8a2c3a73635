"""DPO on labelled pairs (arXiv 2305.18290) as a control: equation 4.7 with the rejected reply in the opponent's place, K = 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import BaselineSection, TrainSection, at_iteration
from sparring.console import log
from sparring.data.fingerprint import chat_fingerprint, source_fingerprint
from sparring.data.preferences import prepare_pairs, read_pairs, write_pairs
from sparring.data.records import Duel
from sparring.policy.batches import Layout, branches_of
from sparring.policy.player import Policy
from sparring.rundir import StageRecord
from sparring.stage_names import control_stage, iteration_stage
from sparring.stages import Stages, fingerprinted
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.plan import TrainPlan, make_plan
from sparring.training.tasks import SpinTask

PAIRS = "pairs.parquet"
DATA_LIMITS = ("max_prompt_tokens", "max_reply_tokens", "too_long")


def pairs_stage(stages: Stages, section: BaselineSection) -> StageRecord:
    """The pairs, tokenised."""
    source, recipe = section.pairs, stages.recipe
    assert source is not None

    def work(stage: Path) -> dict[str, Any]:
        held_out = {example.prompt_ids for example in stages.held_out}
        found = prepare_pairs(source, recipe.data, stages.chat, recipe.seed, held_out)
        write_pairs(stage / PAIRS, found.duels)
        log.info(f"{section.folder}: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.counts.items()))
        return {"counts": found.counts}

    inputs = {
        "pairs": {**source.model_dump(exclude={"path"}), "content": source_fingerprint(source)},
        "limits": recipe.data.model_dump(include=set(DATA_LIMITS)),
        "held_out": stages.data.outputs["held_out.parquet"],
        "chat": chat_fingerprint(stages.chat),
        "seed": recipe.seed,
    }
    return stages.derived_stage(control_stage(section.folder, "pairs"), inputs, work)


def train_dpo(stages: Stages, section: BaselineSection, reference: Policy, played: int, forward_tokens: int) -> Policy:
    """The reference's log-probs of the pairs first, then the player, who starts as the reference.

    forward_tokens: what it may cost where the recipe names no epochs.
    """
    prepared = _prepared(stages, section, played, forward_tokens)
    duels, plan, settings = prepared.duels, prepared.plan, prepared.settings
    score = _score(stages, section, reference, prepared)

    def work(stage: Path) -> dict[str, Any]:
        task = SpinTask(duels, read_logps(score.path), section.beta, "logistic")
        name = control_stage(section.folder, "train")
        return stages.fit_model(stage, reference, task, plan, settings, phase=name, labels={"stage": name})

    inputs = {
        "train": {**fingerprinted(settings), "lr": plan.lr, "epochs": None},
        "steps": plan.steps,
        "beta": section.beta,
        "reference": reference.hash,
        "reference_logps": score.digest,
        "order": plan.seed,
        "seed": stages.recipe.seed,
    }
    return Policy.of_stage(stages.derived_stage(control_stage(section.folder, "train"), inputs, work, shared=True))


def score_dpo(stages: Stages, section: BaselineSection, reference: Policy, played: int, forward_tokens: int) -> StageRecord:
    """The reference's log-probs alone."""
    return _score(stages, section, reference, _prepared(stages, section, played, forward_tokens))


@dataclass(frozen=True)
class _Prepared:
    duels: list[Duel]
    plan: TrainPlan
    settings: TrainSection


def _prepared(stages: Stages, section: BaselineSection, played: int, forward_tokens: int) -> _Prepared:
    duels = read_pairs(pairs_stage(stages, section).path / PAIRS)
    settings = _settings(stages, section)
    epochs = section.epochs or _epochs(duels, forward_tokens, settings.passes, _layout(stages))
    lr = section.lr or at_iteration(settings.lr, 0)
    plan = make_plan(settings, len(duels), lr=lr, epochs=epochs, seed=stages.order_seed(played), name=section.folder)
    return _Prepared(duels, plan, settings)


def _settings(stages: Stages, section: BaselineSection) -> TrainSection:
    """The game's own way to train, with the control's batch size."""
    train = stages.recipe.train
    return train.model_copy(update={"batch_size": section.batch_size or train.batch_size, "horizon_epochs": None})


def _score(stages: Stages, section: BaselineSection, reference: Policy, prepared: _Prepared) -> StageRecord:
    duels, plan, settings = prepared.duels, prepared.plan, prepared.settings

    def work(stage: Path) -> dict[str, Any]:
        return score_duels(stage, reference.folder, duels, plan, stages.with_budget(settings), f"{section.folder}: reference log-probs")

    inputs = stages.scoring_inputs(reference, duels, plan, settings)
    return stages.derived_stage(control_stage(section.folder, "score"), inputs, work, shared=True)


def _layout(stages: Stages) -> Layout:
    """How the game has laid out its duels: where its model takes no packed trees, every reply has computed the prompt for itself."""
    trained = stages.run.finished(iteration_stage(0, "train"))
    return "tree" if trained is None or trained.facts["layout"] == "tree" else "rows"


def _epochs(duels: list[Duel], forward_tokens: int, passes: int, layout: Layout) -> float:
    """Passes over the pairs that cost so many tokens times forward passes, the reference's one pass included; at least a step is made."""
    of_epoch = sum(branches_of(duel).tokens(layout) for duel in duels)
    share = forward_tokens / of_epoch
    return (share - 1) / passes if share >= 1 + passes else share / (1 + passes)
