"""Stage 1 of an iteration: the opponent's replies, and the duels built from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparring.console import log
from sparring.opponent.engines import PADDED, Sampler
from sparring.opponent.replies import checked_facts, read_replies, sample_examples
from sparring.policy.player import Player
from sparring.policy.ranks import from_main
from sparring.rundir import StageRecord
from sparring.stage_names import iteration_stage
from sparring.stages.context import Common, RunContext, counts_text
from sparring.stages.grade import candidates_at
from sparring.stages.inputs import Played, Replying
from sparring.targets import TARGETS
from sparring.targets.select import rules_of
from sparring.targets.window import Window, build_window, select_window


def generate(context: RunContext, opponent: Player, t: int) -> StageRecord:
    """Sample the opponent's replies to every training prompt."""
    replying, replicas = context.replying(opponent, t), context.recipe.sampling.replies_per_prompt
    name, played = iteration_stage(t, "generate"), context.played_examples
    work = partial(_sample, context.common(name), replying=replying, replies_per_prompt=replicas, played=played)
    return context.stages.run_stage(name, work)


def _sample(common: Common, stage: Path, *, replying: Replying, replies_per_prompt: int, played: Played) -> dict[str, Any]:
    settings, sampling = replying.settings, replying.settings.sampling
    rule = "greedily" if sampling.temperature == 0 else f"at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    log.info(f"{common.title}: the opponent {replying.model.hash[:12]} replies {rule} ({sampling.engine_name}, {settings.dtype})")
    with Sampler(settings, common.chat, replying.model.folder) as sampler:
        replies = sample_examples(
            stage,
            played,
            lambda: sampler.engine(sampling.temperature),
            replying.stream,
            replies_per_prompt,
            sampling.shard_rows,
            f"{common.title}: sampling",
            partial(sampler.check, sampling.temperature),
            common.chat.decode,
        )
    facts = from_main(partial(checked_facts, stage))  # read by rank 0, which is the one that gives the stage its final name
    readings = replies_per_prompt if facts.get("logp_check", {}).get(PADDED) else 1
    prompt_tokens = readings * sum(len(example.prompt_ids) for example in played)
    sampled_tokens = prompt_tokens + sum(len(reply.token_ids) - 1 for reply in replies)  # the last one is not fed
    return {"replies": len(replies), "sampled_tokens": sampled_tokens, **facts}


def window_at(context: RunContext, t: int) -> Window:
    """The duels of the newest `objective.window` iterations."""
    iterations = range(max(0, t - context.recipe.objective.window + 1), t + 1)
    window = _graded_window(context, iterations, t) if context.recipe.target.uses_grades else _human_window(context, iterations, t)
    log.info(f"iteration {t}: {counts_text(window.counts)}")
    return window


def _human_window(context: RunContext, iterations: Sequence[int], t: int) -> Window:
    objective, root = context.recipe.objective, context.run.root
    replies = {i: read_replies(root / iteration_stage(i, "generate")) for i in iterations}
    of_start = read_replies(root / iteration_stage(0, "generate")) if objective.kind.uses_start_replies else None
    keep = objective.learns_from_identical(t)
    return build_window(context.train_examples, replies, context.chat.stop_ids, of_start=of_start, keep_identical=keep)


def _graded_window(context: RunContext, iterations: Sequence[int], t: int) -> Window:
    recipe = context.recipe
    prompts = {example.row_id: example.prompt_ids for example in context.played_examples}
    return select_window(
        prompts,
        {i: candidates_at(context, i) for i in iterations},
        TARGETS[recipe.target.kind],
        rules_of(recipe),
        uses_margins=recipe.objective.kind.uses_margins,
        uses_likelihood=recipe.objective.uses_likelihood(t),
    )
