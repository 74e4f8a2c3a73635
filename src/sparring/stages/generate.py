"""Stage 1 of an iteration: the opponent's replies, the duels built from them, and whether there is anything to learn from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparring.console import log
from sparring.errors import UserError
from sparring.evaluation.stop import COLLAPSE_PATIENCE, PlayerScores, agrees_on_errors, vote_shares
from sparring.opponent.engines import PADDED, Sampler
from sparring.opponent.replies import checked_facts, read_replies, sample_examples
from sparring.policy.player import Player
from sparring.policy.ranks import from_main
from sparring.rundir import StageRecord
from sparring.stage_names import iteration_stage
from sparring.stages.context import Common, RunContext, counts_text
from sparring.stages.grade import candidates_at, graded_vote_shares, rates
from sparring.stages.run_stage import PromptRows, Replying
from sparring.targets import TARGETS
from sparring.targets.select import OUTCOMES, rules_of
from sparring.targets.window import Window, build_window, select_window


def nothing_to_learn(context: RunContext, window: Window, t: int) -> str | None:
    """Why the game ends before iteration t is trained, or None. Raises UserError if the first iteration has no winner or no loser, or if
    human replies alone would be trained on, which is continued SFT."""
    if window.indistinguishable:
        return "indistinguishable: every reply of the opponent equals the human one"
    if not context.recipe.target.uses_grades:
        return None
    if not window.duels or window.human_alone:
        return _no_contest(context, window, t)
    return _plateau(context, t) if t and context.recipe.stop.plateau else None


def warn_of_collapse(context: RunContext, start: PlayerScores, iterations: Sequence[PlayerScores]) -> None:
    """Warn if the majority agrees more often and is right less often."""
    recipe, graded_votes = context.recipe, graded_vote_shares(context, len(iterations))
    shares = vote_shares(start, iterations[-1], graded_votes)
    if shares is None or not agrees_on_errors(recipe, start, iterations, graded_votes):
        return
    votes, now = shares
    before, after = (scores["exact_match"]["value"] for scores in (start, iterations[-1]))
    log.warning(
        f"the majority agrees on errors: the share of votes for the leading answer rose from {votes:.3f} to {now:.3f} since the start, and "
        f"exact_match fell from {before:.3f} to {after:.3f}; the game ends after {recipe.stop.patience or COLLAPSE_PATIENCE} iterations "
        "without a new best"
    )


def _no_contest(context: RunContext, window: Window, t: int) -> str:
    counts = {name: window.counts[name] for name in OUTCOMES if window.counts[name]}
    recipe, by_margins = context.recipe, context.recipe.objective.kind.uses_margins
    why = f"{'no prompt has winners and losers' if by_margins else 'no generated reply wins'}: {counts_text(counts)}"
    if t:
        no_losers = set(counts) == {"all_pass"} and not window.human_alone
        return f"nothing to learn: {'no prompt has a losing reply' if no_losers else why}"
    remedy = f"read the replies with `sparring grade {context.run.root}`; {_remedy(counts, window, recipe.target.counts_votes)}"
    raise UserError(why, where=f"target.kind {recipe.target.kind}", remedy=remedy)


def _remedy(counts: dict[str, int], window: Window, by_votes: bool) -> str:
    votes = "lower target.min_votes, " if by_votes else ""
    advice = {
        "human_wins": f"{votes}try easier prompts, or more sampling.replies_per_prompt",
        "all_pass": "objective.loss: sft, or objective.nll_weight above 0, learns from winners alone; or use harder prompts",
        "none_pass": "try easier prompts, more sampling.replies_per_prompt, or another target.checker",
        "ties": "more sampling.replies_per_prompt make ties rare",
        "few_votes": "lower target.min_votes, or sample more replies",
        "unjudged": "no reply has a score or a vote: correct evaluate.answer_pattern, target.checker or data.prompts.answer",
    }
    if window.human_alone:
        more = "raise target.max_winners, or " if window.counts["winners_left_out"] else ""
        advice["all_pass"] = f"the human reply takes every place: {more}set target.human: fallback"
    return advice.get(max(counts, key=lambda name: counts[name]), "objective.loss: sft learns from winners alone")


def _plateau(context: RunContext, t: int) -> str | None:
    """Whether the pass rate (majority: the share of votes) has stopped rising since the last iteration, paired over the same prompts."""
    name = "vote_share" if context.recipe.target.counts_votes else "pass_rate"
    before, now = (rates(candidates_at(context, i)).get(name, {}) for i in (t - 1, t))
    both = [row_id for row_id in now if row_id in before]  # a user's function may give no score in one of them
    if len(both) < 2:
        return None
    rise = np.array([now[row_id] - before[row_id] for row_id in both])
    stderr = float(rise.std(ddof=1)) / math.sqrt(len(rise))
    if rise.mean() > stderr:
        return None
    words = "share of votes for the leading answer" if name == "vote_share" else "pass rate"
    return f"plateau: the {words} of the training prompts changed by {rise.mean():+.3f} (standard error {stderr:.3f})"


def generate(context: RunContext, opponent: Player, t: int) -> StageRecord:
    """Sample the opponent's replies to every training prompt."""
    replying, replicas = context.replying(opponent, t), context.recipe.sampling.replies_per_prompt
    name, prompt_rows = iteration_stage(t, "generate"), context.prompt_rows
    work = partial(_sample, context.common(name), replying=replying, replies_per_prompt=replicas, prompt_rows=prompt_rows)
    return context.run_stage(name, work)


def _sample(common: Common, stage: Path, *, replying: Replying, replies_per_prompt: int, prompt_rows: PromptRows) -> dict[str, Any]:
    settings, sampling = replying.settings, replying.settings.sampling
    rule = "greedily" if sampling.temperature == 0 else f"at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    log.info(f"{common.title}: the opponent {replying.model.hash[:12]} replies {rule} ({sampling.engine_name}, {settings.dtype})")
    with Sampler(settings, common.chat, replying.model.folder) as sampler:
        replies = sample_examples(
            stage,
            prompt_rows,
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
    prompt_tokens = readings * sum(len(example.prompt_ids) for example in prompt_rows)
    sampled_tokens = prompt_tokens + sum(len(reply.token_ids) - 1 for reply in replies)  # the last one is not fed
    return {"replies": len(replies), "sampled_tokens": sampled_tokens, **facts}


def window_at(context: RunContext, t: int, regraded: Mapping[int, Path] | None = None) -> Window:
    """The duels of the newest `objective.window` iterations. regraded: as for `candidates_at`."""
    iterations = range(max(0, t - context.recipe.objective.window + 1), t + 1)
    uses_grades = context.recipe.target.uses_grades
    window = _graded_window(context, iterations, t, regraded) if uses_grades else _human_window(context, iterations, t)
    log.info(f"iteration {t}: {counts_text(window.counts)}")
    return window


def _human_window(context: RunContext, iterations: Sequence[int], t: int) -> Window:
    objective, root = context.recipe.objective, context.run.root
    replies = {i: read_replies(root / iteration_stage(i, "generate")) for i in iterations}
    of_start = read_replies(root / iteration_stage(0, "generate")) if objective.kind.uses_start_replies else None
    keep = objective.learns_from_identical(t)
    return build_window(context.train_examples, replies, context.chat.stop_ids, of_start=of_start, keep_identical=keep)


def _graded_window(context: RunContext, iterations: Sequence[int], t: int, regraded: Mapping[int, Path] | None) -> Window:
    recipe = context.recipe
    prompts = {example.row_id: example.prompt_ids for example in context.prompt_rows}
    return select_window(
        prompts,
        {i: candidates_at(context, i, regraded) for i in iterations},
        TARGETS[recipe.target.kind],
        rules_of(recipe),
        uses_margins=recipe.objective.kind.uses_margins,
        uses_likelihood=recipe.objective.uses_likelihood(t),
    )
