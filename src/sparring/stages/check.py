"""Checks that need no stage: they run before the game starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparring.checkers.grades import Checker, ask, has_answer, require_few_failures
from sparring.checkers.make import TRIED, held_out_checker
from sparring.config import ENGINES, Recipe, defaults_with_grades, require_shardable, unused_sections
from sparring.console import log
from sparring.data.chat import load_template
from sparring.data.records import Example
from sparring.data.sources import local_files
from sparring.errors import UserError
from sparring.evaluation.harness import require_harness
from sparring.launch import check_launcher, parallel_of, with_config
from sparring.opponent.engines import require_engine
from sparring.own_code import is_own_code
from sparring.policy.adapters import new_adapter
from sparring.policy.load import load_config, model_facts, model_shape
from sparring.stages.context import RunContext
from sparring.stages.results import showcase_turns
from sparring.training.masters import require_trainable

LONG_SHARE = 0.95


def check(context: RunContext) -> None:
    """Raise UserError for every mistake that can be found before the work starts; files are checked before a model is downloaded."""
    recipe = context.recipe
    _check_alone(recipe)
    with held_out_checker(recipe) as checker:
        for name, section in recipe.trained.items():
            if section.lora:
                new_adapter(model_shape(context.base.folder), section.lora, 0, where=f"{name}.lora.targets")
        _log_unsharded_stages(context)
        _check_tokens(context)
        _announce_cut(context)
        _check_context(context)
        check_answers(recipe, context.held_out, checker)
        _check_prompts(context, checker)
        check_human_replies(recipe, context.held_out, checker)
    for trained in recipe.trained.values():
        context.with_budget(trained)  # from the memory that is free before anything is loaded


def check_answers(recipe: Recipe, held_out: Sequence[Example], checker: Checker | None) -> None:
    """Raise UserError if the checker finds no answer in any held-out row: every exact match would be 0. Single misses are logged."""
    pattern, column = recipe.evaluate.answer_pattern, recipe.data.answer
    if checker is None or is_own_code(checker.name):
        return
    by = "evaluate.answer_pattern" if pattern is not None else f"target.checker {checker.name}"
    asked = ask(held_out, {})
    missed = sum(checker.expected(one) is None for one in asked)
    rows = "held-out human replies" if column is None else f"held-out rows (data.answer {column!r})"
    if missed == len(asked):
        raise UserError(
            f"{pattern or checker.name!r} finds no answer in any of the {missed} {rows}",
            where=by,
            remedy=f"one of them is {((asked[0].answer if has_answer(asked[0]) else asked[0].human) or '')[:200]!r}",
        )
    if missed:
        log.warning(f"{by} finds no answer in {missed} of {len(asked)} {rows}: they can never match")


def check_human_replies(recipe: Recipe, held_out: Sequence[Example], checker: Checker | None) -> None:
    """Grade the first held-out human replies. Raise UserError if a user's function can grade none of them: a column that it needs may be
    missing. Warn if none passes: the checker may read another answer than the right one, or none at all. Log the file of a function."""
    if checker is None:
        return
    if is_own_code(checker.name):
        log.info(f"target.checker: {checker.name}, sha256 {checker.fingerprint['sha256'][:12]}")
    texts = {example.row_id: example.conversation.reply for example in held_out[:TRIED]}
    asked = ask(held_out[:TRIED], {row_id: [text] for row_id, text in texts.items()})
    grades = [grade for grades in checker.grade(asked) for grade in grades]
    if is_own_code(checker.name) and all(grade.failed for grade in grades):
        require_few_failures(list(texts.values()), grades, checker.name)
    least, by = recipe.target.pass_score, "evaluate.answer_pattern" if recipe.target.checker is None else "target.checker"
    if not any(grade.score is not None and grade.score >= least for grade in grades):
        log.warning(
            f"{by}: none of the first {len(grades)} held-out human replies passes (the first one: {grades[0].reason}), although "
            f"they should reach target.pass_score {least:g}; `sparring check-checker` shows how it grades them"
        )


def _check_prompts(context: RunContext, checker: Checker | None) -> None:
    """Raise UserError if no prompt without a human reply has an answer to compare with: none of their replies could be graded."""
    if context.recipe.target.counts_votes or checker is None or is_own_code(checker.name) or not context.prompts:
        return
    missed = sum(checker.expected(one) is None for one in ask(context.prompts, {}))
    if missed == len(context.prompts):
        answers = [example.conversation.answer for example in context.prompts]
        raise UserError(
            f"target.checker {checker.name} finds no answer in any of the {missed} rows",
            where=f"data.prompts.answer {context.recipe.data.prompts and context.recipe.data.prompts.answer!r}",
            remedy=f"the first one is {answers[0]!r:.200}; fix the column, or use target.kind majority, which needs no answers",
        )
    if missed:
        log.warning(
            f"target.checker finds no answer in {missed} of {len(context.prompts)} data.prompts: their replies neither win nor lose"
        )


def _check_alone(recipe: Recipe) -> None:
    """Checks that need neither the model nor the rows."""
    local_files(recipe.data)
    recipe.objective.at(0, recipe.sampling.replies_per_prompt).check()
    require_engine(recipe.sampling)
    if recipe.evaluate.benchmarks:
        require_harness(recipe.evaluate.benchmarks)
    _announce_unused(recipe)
    check_launcher(recipe.launcher)
    for name, section in recipe.trained.items():
        require_trainable(section, name)
        if with_config(recipe.launcher).shards:
            require_shardable(section, name)
    if recipe.model.chat_template:
        load_template(recipe.model.chat_template)


def _announce_cut(context: RunContext) -> None:
    """Warn before sampling if replies as long as the longer human ones would be cut."""
    lengths = sorted(len(example.reply_ids) for example in context.train_examples if example.has_reply)
    most = context.recipe.sampling.max_new_tokens
    long = lengths[math.ceil(LONG_SHARE * len(lengths)) - 1] if lengths else 0
    if most < long:
        log.warning(
            f"sampling.max_new_tokens is {most}, but the 95th percentile of the human replies is {long} tokens: longer replies will be "
            f"cut, and training can then recognise them by the missing end-of-turn token; set it to {long} or more"
        )


def _announce_unused(recipe: Recipe) -> None:
    """Log the sections of engines and the options of the target that are not used, and the stages that the objective does not need."""
    sampling, objective = recipe.sampling, recipe.objective
    if not objective.kind.uses_opponent_logps:
        log.info(f"objective.loss {objective.loss} compares likelihoods alone: no opponent log-probs are computed")
    taken = defaults_with_grades(objective.loss)
    if recipe.target.uses_grades and taken:
        values = ", ".join(f"{key} {getattr(objective, key)} (default {value:g})" for key, value in taken.items())
        log.info(f"objective, with a {recipe.target.kind} target: {values}")
    for name in unused_sections(sampling):
        log.info(f"sampling.{name} has no effect: sampling.engine is {sampling.engine_name}")
    for option, why in recipe.target.unused(objective).items():
        log.info(f"target.{option} {why}")


def _log_unsharded_stages(context: RunContext) -> None:
    """Log which stages hold the whole model on one device while the launcher shards it for all others."""
    recipe = context.recipe
    parallel = parallel_of(recipe.launcher)
    if not parallel.is_sharded:
        return
    whole = f"the whole model on one device, {model_shape(context.base.folder).num_parameters() / 1e9:.2g} billion weights"
    if recipe.sampling.inner.holds_whole:
        sharding = " or ".join(name for name, spec in ENGINES.items() if spec.devices)
        log.info(f"sampling needs {whole}; {parallel.strategy} shards everything else, sampling.engine {sharding} shards sampling too")
    if recipe.evaluate.benchmarks:
        log.info(f"evaluate.benchmarks run in one process, with {whole}")


def _check_tokens(context: RunContext) -> None:
    """Raise UserError for a row with a token that the model has no embedding for: a tokenizer may have more tokens than the model."""
    size = load_config(context.base.folder).get_text_config().vocab_size
    for example in (*context.prompt_rows, *context.held_out):
        token = max((*example.prompt_ids, *example.reply_ids))
        if token >= size:
            name = context.chat.tokenizer.convert_ids_to_tokens(token)
            what = f"row {example.row_id} contains the token {name!r} ({token}), but the model's vocabulary has {size} tokens"
            where = "data.path" if example.has_reply else "data.prompts"
            raise UserError(what, where=where, remedy="drop the row, or use a model whose vocabulary has this token")


def _check_context(context: RunContext) -> None:
    """Raise UserError if a row, a showcase prompt or the longest reply does not fit the model's context."""
    longest, _ = model_facts(context.base.folder)
    if longest is None:
        return
    new = context.recipe.sampling.max_new_tokens
    if new >= longest:
        what = f"{new} does not fit the model's context of {longest} tokens"
        raise UserError(what, where="sampling.max_new_tokens", remedy=f"set it below {longest}")
    prompts = [(f"row {e.row_id}", len(e.prompt_ids), len(e.reply_ids)) for e in [*context.prompt_rows, *context.held_out]]
    showcase = showcase_turns(context.recipe.showcase_system, context.recipe.showcase)
    prompts += [("a showcase prompt", len(context.chat.prompt_ids(turns)), 0) for turns in showcase]
    for name, prompt, reply in prompts:
        if prompt + max(new, reply) > longest:
            raise UserError(
                f"{name}: {prompt} prompt tokens and {max(new, reply)} reply tokens exceed the model's context of {longest}",
                where="data.max_prompt_tokens, sampling.max_new_tokens",
                remedy="lower data.max_prompt_tokens (longer prompts are dropped), data.max_reply_tokens or sampling.max_new_tokens",
            )
