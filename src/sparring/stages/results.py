"""The evaluation of a player: measured on the held-out rows, scored, and run on the recipe's benchmarks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.data.fingerprint import chat_fingerprint
from sparring.data.records import Message
from sparring.evaluation.evaluate import GRADES, ITEMS, SAMPLES, Evaluator
from sparring.evaluation.harness import HarnessModel, benchmark_inputs, run_benchmarks
from sparring.evaluation.measure import Measurer, Opponent, read_measured
from sparring.evaluation.metrics import Score
from sparring.opponent.engines import Sampler, answer
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.player import Player
from sparring.rundir import StageRecord, read_object, write_json
from sparring.stage_names import SCORES, benchmark_stage, evaluate_stage, measure_stage
from sparring.stages.checking import held_out_checker
from sparring.stages.context import RunContext
from sparring.stages.inputs import base_format, sampling_inputs
from sparring.training.ranked import score_player


def evaluate(context: RunContext, player: Player, opponent: Player | None, sampling_round: int) -> Player:
    """Measure and score a player on the held-out rows, in stages below its `owner`, and run the benchmarks if the recipe has any.

    opponent: None for the start, which has none. sampling_round: names the random stream of the replies; 0 for the start.
    """
    measured = measure(context, player, opponent, sampling_round)
    evaluated = _evaluated(context, player, measured)
    benchmarks = _benchmarked(context, player)
    return player.with_results(measured.path, evaluated.path, None if benchmarks is None else benchmarks.path)


def measure(context: RunContext, player: Player, opponent: Player | None, sampling_round: int) -> StageRecord:
    """The first stage of an evaluation: everything that needs the player's weights."""
    recipe = context.recipe

    def sample_all(stage: Path) -> None:
        _measurer(context).sample_all(stage, player.folder, sampling_round, player.title)

    def work(stage: Path) -> dict[str, Any]:
        against = None
        if opponent is not None:
            assert opponent.measured is not None, "an opponent was measured when it was the player"
            against = Opponent(opponent.folder, opponent.measured)
        return _measurer(context).measure(stage, player.folder, against, sampling_round, player.title)

    inputs = {
        **sampling_inputs(recipe, player, sampling_round),
        "opponent": opponent.hash if opponent else None,
        "data": context.data.outputs["held_out.parquet"],
        "greedy": recipe.evaluate.greedy,
        **({"samples": recipe.evaluate.samples} if recipe.evaluate.samples > 1 else {}),
        "precision": recipe.train.precision,
        **base_format(recipe),
    }
    alone = None if recipe.sampling.spec.on_ranks else sample_all
    return context.stages.run_stage(measure_stage(player.owner), inputs, work, alone=alone)


def scores_of(player: Player) -> dict[str, Score]:
    """All scores of a player, benchmarks included."""
    assert player.evaluated is not None
    files = [stage / SCORES for stage in (player.evaluated, player.benchmarks) if stage]
    return {name: score for file in files for name, score in read_object(file).items()}


def _measurer(context: RunContext) -> Measurer:
    score = partial(score_player, settings=context.with_budget(context.recipe.train))
    return Measurer(context.recipe, context.chat, context.held_out, score)


def _evaluated(context: RunContext, player: Player, measured: StageRecord) -> StageRecord:
    recipe = context.recipe
    if context.is_rank:
        return context.stages.computed(evaluate_stage(player.owner))
    with held_out_checker(recipe) as checker:

        def work(stage: Path) -> dict[str, Any]:
            Evaluator(recipe, context.chat, context.held_out, checker).evaluate(stage, read_measured(measured.path))
            if recipe.showcase:
                answer_showcase(context, stage / "showcase.json", player)
            return {}

        inputs = {
            "measured": measured.digest,
            "answer_pattern": recipe.evaluate.answer_pattern,
            **({"checker": checker.fingerprint, "pass_score": recipe.target.pass_score} if checker and recipe.target.checker else {}),
            "confidence": recipe.stop.confidence,
            "showcase": [recipe.showcase_system, *recipe.showcase],
            "tables": [SCORES, ITEMS, SAMPLES, GRADES],
        }
        return context.stages.run_stage(evaluate_stage(player.owner), inputs, work)


def _benchmarked(context: RunContext, player: Player) -> StageRecord | None:
    section, train = context.recipe.evaluate.benchmarks, context.recipe.train
    if section is None:
        return None
    if context.is_rank:
        return context.stages.computed(benchmark_stage(player.owner))
    template = context.chat.template if section.chat_template else None
    model = HarnessModel(player.folder, COMPUTE_DTYPES[train.precision], template, train.four_bit)
    inputs = {
        **benchmark_inputs(section),
        "model": player.hash,
        "precision": train.precision,
        **base_format(context.recipe),
        "chat": chat_fingerprint(context.chat) if section.chat_template else None,
    }
    return context.stages.run_stage(benchmark_stage(player.owner), inputs, lambda stage: run_benchmarks(stage, section, model))


def showcase_turns(recipe: Recipe) -> list[list[Message]]:
    """The showcase prompts as turns, each after the system turn if there is one."""
    system = recipe.showcase_system
    first = [Message(role="system", content=system)] if system else []
    return [[*first, Message(role="user", content=text)] for text in recipe.showcase]


def answer_showcase(context: RunContext, file: Path, player: Player) -> None:
    """Write the player's answers to the showcase prompts; a prompt has the same random stream in every iteration."""
    recipe = context.recipe
    with Sampler(recipe, context.chat, player.folder) as sampler:
        engine = sampler.engine(recipe.sampling.temperature)
        replies = answer(engine, context.chat, showcase_turns(recipe), recipe.seed)
    shown = zip(recipe.showcase, replies, strict=True)
    write_json(file, [{"prompt": prompt, "reply": reply} for prompt, reply in shown])
