"""The evaluation of a player: measured on the held-out rows, scored, and run on the recipe's benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparring.checkers.make import held_out_checker
from sparring.config import BenchmarksSection
from sparring.data.chat import Chat
from sparring.data.records import Example, Message
from sparring.evaluation.evaluate import GRADES, Grading, write_scores
from sparring.evaluation.harness import HarnessModel, run_benchmarks
from sparring.evaluation.measure import Measurer, read_measured
from sparring.evaluation.metrics import Score
from sparring.opponent.engines import Sampler, answer
from sparring.policy.compute import COMPUTE_DTYPES
from sparring.policy.player import Player
from sparring.rundir import StageRecord, read_object, write_json
from sparring.stage_names import ITEMS, SAMPLES, SCORES, SHOWCASE
from sparring.stages.context import Common, RunContext
from sparring.stages.run_stage import Examples, Replying, Scoring
from sparring.training.ranked import score_player


def evaluate(context: RunContext, player: Player, opponent: Player | None, sampling_round: int) -> Player:
    """Measure and score a player on the held-out rows, in stages below its `owner`, and run the benchmarks if the recipe has any.

    opponent: None for the start, which has none. sampling_round: selects the random stream of the replies; 0 for the start.
    """
    measured = measure(context, player, opponent, sampling_round)
    evaluated = _evaluated(context, player, measured)
    benchmarks = _benchmarked(context, player)
    return player.with_results(measured.path, evaluated.path, None if benchmarks is None else benchmarks.path)


def measure(context: RunContext, player: Player, opponent: Player | None, sampling_round: int) -> StageRecord:
    """The first stage of an evaluation: everything that needs the player's weights."""
    recipe, evaluate, name = context.recipe, context.recipe.evaluate, f"{player.owner}/measure"
    work = partial(
        _measure,
        context.common(name),
        replying=context.replying(player, sampling_round),
        opponent=opponent,
        data=context.held_out,
        samples=evaluate.samples,
        greedy=evaluate.greedy,
        scoring=Scoring.of(context.with_budget(recipe.train)),
    )
    alone = None if recipe.sampling.spec.on_ranks else partial(work, replies_only=True)
    return context.run_stage(name, work, alone=alone)


def _measure(
    common: Common,
    stage: Path,
    *,
    replying: Replying,
    opponent: Player | None,
    data: Examples,
    samples: int,
    greedy: bool,
    scoring: Scoring,
    replies_only: bool = False,
) -> dict[str, Any]:
    model, score = replying.model.folder, partial(score_player, settings=scoring.settings)
    measurer = Measurer(replying.settings, common.chat, data, score, seed=replying.seed, samples=samples, greedy=greedy)
    if replies_only:
        measurer.sample_all(stage, model, replying.round, common.title)
        return {}
    return measurer.measure(stage, model, opponent, replying.round, common.title)


def scores_of(player: Player) -> dict[str, Score]:
    """All scores of a player, benchmarks included."""
    assert player.evaluated is not None
    files = [stage / SCORES for stage in (player.evaluated, player.benchmarks) if stage]
    return {name: score for file in files for name, score in read_object(file).items()}


@dataclass(frozen=True)
class Showcase:
    """The showcase prompts, their system turn, and how the player answers them."""

    system: str | None
    prompts: Sequence[str]
    replying: Replying

    def inputs(self) -> dict[str, Any]:
        """Only the prompts: how the player replies is an input of its measurement."""
        return {"showcase": [self.system, *self.prompts]}


def _evaluated(context: RunContext, player: Player, measured: StageRecord) -> StageRecord:
    recipe, name = context.recipe, f"{player.owner}/evaluate"
    if context.is_rank:
        return context.computed(name)
    with held_out_checker(recipe) as checker:
        work = partial(
            _evaluate,
            context.common(name),
            context.held_out,
            measured=measured,
            grading=Grading.of(recipe, checker),
            confidence=recipe.stop.confidence,
            showcase=Showcase(recipe.showcase_system, recipe.showcase, context.replying(player, 0)),
            tables=[SCORES, ITEMS, SAMPLES, GRADES],
        )
        return context.run_stage(name, work)


def _evaluate(
    common: Common,
    held_out: Sequence[Example],
    stage: Path,
    *,
    measured: StageRecord,
    grading: Grading,
    confidence: float,
    showcase: Showcase,
    tables: Sequence[str],
) -> dict[str, Any]:
    """tables: all files that it may write; as an input of the stage, so that older runs are evaluated again when a file is added."""
    facts = write_scores(stage, read_measured(measured.path), common.chat, held_out, grading, confidence)
    if showcase.prompts:
        answer_showcase(stage / SHOWCASE, common.chat, showcase)
    return facts


def _benchmarked(context: RunContext, player: Player) -> StageRecord | None:
    section = context.recipe.evaluate.benchmarks
    if section is None:
        return None
    if context.is_rank:
        return context.computed(f"{player.owner}/benchmarks")
    chat, scoring = context.chat if section.chat_template else None, Scoring.of(context.recipe.train)
    work = partial(_run_benchmarks, benchmarks=section, model=player, scoring=scoring, chat=chat)
    return context.run_stage(f"{player.owner}/benchmarks", work)


def _run_benchmarks(stage: Path, *, benchmarks: BenchmarksSection, model: Player, scoring: Scoring, chat: Chat | None) -> dict[str, Any]:
    settings, template = scoring.settings, chat.template if chat else None
    return run_benchmarks(
        stage, benchmarks, HarnessModel(model.folder, COMPUTE_DTYPES[settings.number_format], template, settings.four_bit)
    )


def showcase_turns(system: str | None, prompts: Sequence[str]) -> list[list[Message]]:
    """The showcase prompts as turns, each after the system turn if there is one."""
    first = [Message(role="system", content=system)] if system else []
    return [[*first, Message(role="user", content=text)] for text in prompts]


def answer_showcase(file: Path, chat: Chat, showcase: Showcase) -> None:
    """Write the player's answers to the showcase prompts; a prompt has the same random stream in every iteration."""
    replying, turns = showcase.replying, showcase_turns(showcase.system, showcase.prompts)
    with Sampler(replying.settings, chat, replying.model.folder) as sampler:
        replies = answer(sampler.engine(replying.settings.sampling.temperature), chat, turns, replying.seed)
    shown = zip(showcase.prompts, replies, strict=True)
    write_json(file, [{"prompt": prompt, "reply": reply} for prompt, reply in shown])
