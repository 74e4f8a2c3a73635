"""The headroom: what a lower temperature and verified or majority targets could gain, measured on the start before iteration 0."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Checker
from sparring.checkers.make import held_out_checker
from sparring.config import ControlSection, sft_settings
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Reply
from sparring.evaluation.answers import answer_items, grade_rows
from sparring.evaluation.measure import Measurer, ScoreTrees, read_measured
from sparring.evaluation.metrics import MAJ_AT, PASS_AT, Score, mean_score, ratio_score
from sparring.evaluation.stop import advice
from sparring.opponent.engines import Sampler
from sparring.policy.batches import Branches
from sparring.policy.player import Player
from sparring.rundir import write_json
from sparring.stage_names import HEADROOM, PROBE, START
from sparring.stages.context import RunContext
from sparring.stages.run_stage import Examples, Replying, Scoring
from sparring.stages.train import sft_stage
from sparring.training.plan import make_plan
from sparring.training.ranked import score_player

ROUND = 2**31  # selects the random streams of these replies; no iteration has this number


def measure_headroom(context: RunContext, start: Player) -> None:
    """start/headroom/headroom.json: scores of the start and a sentence about them, which is logged, if the recipe asks for it."""
    recipe = context.recipe
    if not recipe.shows_headroom:
        return
    probe = _probe(context, start)
    if context.is_rank:
        return
    with held_out_checker(recipe) as checker:
        assert checker is not None, "the recipe was checked"
        work = partial(
            _measure,
            context.chat,
            Scoring.of(context.with_budget(recipe.train)),
            recipe.target.checker is not None,
            replying=context.replying(start, ROUND),
            k=max(recipe.evaluate.samples, recipe.sampling.replies_per_prompt),
            data=context.held_out,
            checker=checker,
            pass_score=recipe.target.pass_score,
            probe=probe,
        )
        context.run_stage(f"{START}/headroom", work)


def _measure(
    chat: Chat,
    scoring: Scoring,
    must_end: bool,
    stage: Path,
    *,
    replying: Replying,
    k: int,
    data: Examples,
    checker: Checker,
    pass_score: float,
    probe: Player | None,
) -> dict[str, Any]:
    """scoring, must_end: as in the measurement of the start and in its evaluation."""
    score = partial(score_player, settings=scoring.settings)
    own, cool, greedy = _sample(Measurer(replying.settings, chat, data, score, seed=replying.seed), stage, replying, k)

    def items(replies: list[Reply], of_greedy: list[Reply] | None) -> dict[str, list[float]]:
        rows = grade_rows(data, replies, of_greedy, checker, chat.decode)
        return answer_items(rows, pass_score, must_end, checker.reads_answers)

    cooler = None if cool is None else items(cool, None)
    scores = {**_answers(items(own, greedy), cooler, k), **_likelihoods(data, score, replying.model, probe)}
    sentence = advice(scores, k)
    write_json(stage / HEADROOM, {"k": k, "scores": scores, "sentence": sentence})
    log.info(f"headroom: {sentence}")
    return {}


def _sample(measurer: Measurer, stage: Path, replying: Replying, k: int) -> tuple[list[Reply], list[Reply] | None, list[Reply]]:
    """Replies at the game's temperature, at a lower one if there is one, and greedy."""
    sample, stream, sampling = measurer.sample, replying.stream, replying.settings.sampling
    lower = sampling.lower_temperature
    with Sampler(replying.settings, measurer.chat, replying.model.folder) as sampler:
        own = sample(stage / "replies", sampler, sampling.temperature, k, stream, "headroom: replies")
        cool = None if lower is None else sample(stage / "cool", sampler, lower, k, stream, f"headroom: replies at temperature {lower:g}")
        return own, cool, sample(stage / "greedy", sampler, 0.0, 1, stream, "headroom: greedy replies")


def _answers(found: Mapping[str, list[float]], cooler: Mapping[str, list[float]] | None, k: int) -> dict[str, Score]:
    """Scores of pass@1, greedy replies, a lower temperature (if there is one), maj@k and pass@k, with standard errors over prompts."""
    values = {"pass_at_1": found["exact_match"], "greedy": found["exact_match_greedy"]}
    if cooler is not None:
        values["cool"] = cooler["exact_match"]
    named = {"majority": f"{MAJ_AT}{k}", "any": f"{PASS_AT}{k}"}
    values |= {name: found[metric] for name, metric in named.items() if metric in found}
    return {name: mean_score(value, True) for name, value in values.items()}


def _likelihoods(data: Examples, score: ScoreTrees, start: Player, probe: Player | None) -> dict[str, Score]:
    assert start.measured is not None
    lengths = [len(example.reply_ids) for example in data]
    before = [-row["real"] for row in read_measured(start.measured).logps]
    scores = {"nll": ratio_score(before, lengths, False)}
    if probe is not None:
        trees = [Branches(example.prompt_ids, (example.reply_ids,)) for example in data]
        [scored] = score(probe.folder, [trees])
        scores["nll_after"] = ratio_score([-logps[0] for logps in scored], lengths, False)
    return scores


def _probe(context: RunContext, start: Player) -> Player | None:
    """The start after a short continued SFT, where the recipe asks for it."""
    recipe, epochs = context.recipe, context.recipe.evaluate.headroom_epochs
    if epochs is None:
        return None
    settings = sft_settings(recipe, ControlSection())
    plan = make_plan(settings, len(context.train_examples), lr=settings.lr, epochs=epochs, seed=recipe.seed, name=PROBE)
    return sft_stage(context, PROBE, start, settings, plan.steps)
