"""Measured after the start and before any game is paid for: what there is to gain, and by which means."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sparring.checkers.grades import Checker
from sparring.config import ControlSection
from sparring.console import log
from sparring.control import sft_settings
from sparring.data.records import Reply
from sparring.evaluation.answers import MAJ_AT, PASS_AT, answer_items, grade_rows
from sparring.evaluation.headroom import COOL, advice
from sparring.evaluation.measure import Measurer, read_measured
from sparring.evaluation.metrics import Score, mean_score, ratio_score
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Stream
from sparring.policy.batches import Branches
from sparring.policy.player import Player
from sparring.rundir import write_json
from sparring.stage_names import HEADROOM, PROBE, headroom_stage
from sparring.stages.checking import held_out_checker
from sparring.stages.context import RunContext
from sparring.stages.inputs import sampling_inputs, training_inputs
from sparring.stages.sft import sft_stage
from sparring.training.plan import make_plan
from sparring.training.ranked import score_player

ROUND = 2**31  # names the random streams of these replies: no iteration of a game gets so far


def measure_headroom(context: RunContext, start: Player) -> None:
    """start/headroom/headroom.json: scores of the start and a sentence about them, which is logged, if the recipe asks for it."""
    recipe = context.recipe
    if not recipe.shows_headroom:
        return
    probe = _probe(context, start)
    if context.is_rank:
        return
    k = max(recipe.evaluate.samples, recipe.sampling.replies_per_prompt)
    with held_out_checker(recipe) as checker:
        assert checker is not None, "the recipe was checked"

        def work(stage: Path) -> dict[str, Any]:
            scores = {**_answers(context, start, stage, checker, k), **_likelihoods(context, start, probe)}
            sentence = advice(scores, k)
            write_json(stage / HEADROOM, {"k": k, "scores": scores, "sentence": sentence})
            log.info(f"headroom: {sentence}")
            return {}

        inputs = {
            **sampling_inputs(recipe, start, ROUND),
            "k": k,
            "data": context.data.outputs["held_out.parquet"],
            "checker": checker.fingerprint,
            "pass_score": recipe.target.pass_score,
            "probe": probe and probe.hash,
        }
        context.stages.run_stage(headroom_stage(), inputs, work)


def _answers(context: RunContext, start: Player, stage: Path, checker: Checker, k: int) -> dict[str, Score]:
    """pass@1, greedy, at a lower temperature, of the majority and any of k: each with its error over prompts."""
    recipe, chat = context.recipe, context.chat
    draw = Measurer(recipe, chat, context.held_out, partial(score_player, settings=context.with_budget(recipe.train))).sample
    with Sampler(recipe, chat, start.folder) as sampler:
        stream = Stream(recipe.seed, ROUND)
        own = draw(stage / "replies", sampler, recipe.sampling.temperature, k, stream, "headroom: replies")
        cool = draw(stage / "cool", sampler, COOL, k, stream, f"headroom: replies at temperature {COOL:g}")
        greedy = draw(stage / "greedy", sampler, 0.0, 1, stream, "headroom: greedy replies")

    def items(replies: list[Reply], of_greedy: list[Reply] | None) -> dict[str, list[float]]:
        rows = grade_rows(context.held_out, replies, of_greedy, checker, chat.decode)
        must_end = recipe.target.checker is not None
        return answer_items(rows, recipe.target.pass_score, must_end, checker.reads_answers)

    found, cooler = items(own, greedy), items(cool, None)
    values = {"pass_at_1": found["exact_match"], "greedy": found["exact_match_greedy"], "cool": cooler["exact_match"]}
    named = {"majority": f"{MAJ_AT}{k}", "any": f"{PASS_AT}{k}"}
    values |= {name: found[metric] for name, metric in named.items() if metric in found}
    return {name: mean_score(value, True) for name, value in values.items()}


def _likelihoods(context: RunContext, start: Player, probe: Player | None) -> dict[str, Score]:
    assert start.measured is not None
    lengths = [len(example.reply_ids) for example in context.held_out]
    before = [-row["real"] for row in read_measured(start.measured).logps]
    scores = {"nll": ratio_score(before, lengths, False)}
    if probe is not None:
        trees = [Branches(example.prompt_ids, (example.reply_ids,)) for example in context.held_out]
        [scored] = score_player(probe.folder, [trees], settings=context.with_budget(context.recipe.train))
        scores["nll_after"] = ratio_score([-logps[0] for logps in scored], lengths, False)
    return scores


def _probe(context: RunContext, start: Player) -> Player | None:
    """The start after a short continued SFT, where the recipe asks for it."""
    recipe, epochs = context.recipe, context.recipe.evaluate.headroom_epochs
    if epochs is None:
        return None
    settings = sft_settings(recipe, ControlSection())
    plan = make_plan(settings, len(context.train_examples), lr=settings.lr, epochs=epochs, seed=recipe.seed, name=PROBE)
    inputs = {"sft": training_inputs(settings), "steps": plan.steps}
    return sft_stage(context, PROBE, start, plan, settings, inputs)
