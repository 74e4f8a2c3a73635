"""What a player is worth: measured on the held-out rows, scored, and played through the recipe's benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sparring.data.fingerprint import chat_fingerprint
from sparring.evaluation.evaluate import GRADES, ITEMS, SAMPLES, Evaluator
from sparring.evaluation.harness import HarnessModel, benchmark_inputs, run_benchmarks
from sparring.evaluation.measure import Measurer, Opponent, read_measured
from sparring.evaluation.metrics import Score
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.player import Policy
from sparring.rundir import StageRecord, read_object
from sparring.stage_names import SCORES, START, benchmark_stage, evaluate_stage, iteration_name, measure_stage, title_of
from sparring.stages.checking import held_out_checker
from sparring.stages.ground import Ground
from sparring.stages.inputs import base_format, sampling_inputs
from sparring.stages.making import samples_on_ranks
from sparring.stages.showcase import answer_showcase
from sparring.training.ranked import score_player


def evaluate_start(ground: Ground, start: Policy) -> Policy:
    return results(ground, START, start, None, round_index=0)


def evaluate(ground: Ground, player: Policy, opponent: Policy, t: int) -> Policy:
    """Stage 3 of an iteration: the player on the held-out rows."""
    return results(ground, iteration_name(t), player, opponent, round_index=t + 1)


def results(ground: Ground, owner: str, player: Policy, opponent: Policy | None, round_index: int, derived: bool = False) -> Policy:
    """Measure and score a player on the held-out rows, in stages below `owner`, and play the benchmarks where there are any."""
    measured = measure(ground, owner, player, opponent, round_index, derived)
    evaluated = _evaluated(ground, owner, player, measured)
    benchmarks = _benchmarked(ground, owner, player)
    return player.with_results(measured.path, evaluated.path, benchmarks and benchmarks.path)


def measure(ground: Ground, owner: str, player: Policy, opponent: Policy | None, round_index: int, derived: bool = False) -> StageRecord:
    """The first of them: everything that the player's weights are needed for."""
    recipe = ground.recipe

    def draw(stage: Path) -> None:
        _measurer(ground).draw(stage, player.folder, round_index, title_of(owner))

    def work(stage: Path) -> dict[str, Any]:
        against = Opponent(opponent.folder, opponent.measured) if opponent else None
        return _measurer(ground).measure(stage, player.folder, against, round_index, title_of(owner))

    inputs = {
        **sampling_inputs(recipe, player, round_index),
        "opponent": opponent.hash if opponent else None,
        "data": ground.data.outputs["held_out.parquet"],
        "greedy": recipe.evaluate.greedy,
        **({"samples": recipe.evaluate.samples} if recipe.evaluate.samples > 1 else {}),
        "precision": recipe.train.precision,
        **base_format(recipe),
    }
    alone = None if samples_on_ranks(recipe) else draw
    return ground.maker.make(measure_stage(owner), inputs, work, shared=True, alone=alone, derived=derived)


def scores_of(player: Policy) -> dict[str, Score]:
    """What its evaluation and its benchmarks found."""
    assert player.evaluated is not None
    files = [stage / SCORES for stage in (player.evaluated, player.benchmarks) if stage]
    return {name: score for file in files for name, score in read_object(file).items()}


def _measurer(ground: Ground) -> Measurer:
    score = partial(score_player, settings=ground.with_budget(ground.recipe.train))
    return Measurer(ground.recipe, ground.chat, ground.held_out, score)


def _evaluated(ground: Ground, owner: str, player: Policy, measured: StageRecord) -> StageRecord:
    recipe = ground.recipe

    with held_out_checker(recipe) as checker:

        def work(stage: Path) -> dict[str, Any]:
            Evaluator(recipe, ground.chat, ground.held_out, checker).evaluate(stage, read_measured(measured.path))
            if recipe.showcase:
                answer_showcase(ground, stage / "showcase.json", player)
            return {}

        inputs = {
            "measured": measured.digest,
            "answer_pattern": recipe.evaluate.answer_pattern,
            **({"checker": checker.fingerprint, "pass_score": recipe.target.pass_score} if checker and recipe.target.checker else {}),
            "confidence": recipe.stop.confidence,
            "showcase": [recipe.showcase_system, *recipe.showcase],
            "tables": [SCORES, ITEMS, SAMPLES, GRADES],
        }
        return ground.maker.make(evaluate_stage(owner), inputs, work, derived=True)


def _benchmarked(ground: Ground, owner: str, player: Policy) -> StageRecord | None:
    section, train = ground.recipe.evaluate.benchmarks, ground.recipe.train
    if section is None:
        return None
    template = ground.chat.template if section.chat_template else None
    model = HarnessModel(player.folder, COMPUTE_DTYPES[train.precision], template, train.four_bit)
    inputs = {
        **benchmark_inputs(section),
        "model": player.hash,
        "precision": train.precision,
        **base_format(ground.recipe),
        "chat": chat_fingerprint(ground.chat) if section.chat_template else None,
    }
    return ground.maker.make(benchmark_stage(owner), inputs, lambda stage: run_benchmarks(stage, section, model), derived=True)
