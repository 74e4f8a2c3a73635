"""The recipe's checker, and its inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext

from sparring.checkers.grades import Checker, GradingRequest, ask
from sparring.checkers.make import CheckerSettings, make_checker
from sparring.config import Recipe
from sparring.data.records import Example, Reply, TokenIds


def open_checker(recipe: Recipe, name: str | None) -> closing[Checker]:
    """The checker called `name` with the recipe's options; closed on exit. Raises UserError if it is unknown or cannot be loaded."""
    return closing(make_checker(checker_settings(recipe, name)))


def held_out_checker(recipe: Recipe) -> AbstractContextManager[Checker | None]:
    """The checker of held-out replies: the recipe's checker, else the answer pattern; None if there is neither."""
    name = recipe.target.grading_checker
    if name is None and recipe.evaluate.answer_pattern is None:
        return nullcontext()
    return open_checker(recipe, name)


def checker_settings(recipe: Recipe, name: str | None) -> CheckerSettings:
    """The recipe's options for the checker called `name`; None is the checker `exact` with `evaluate.answer_pattern`."""
    target = recipe.target
    return CheckerSettings(
        kind=name or "exact",
        answer_pattern=recipe.evaluate.answer_pattern,
        tolerance=target.tolerance if name == "number" else 0.0,
        random_like=checker_settings(recipe, target.random_like) if name == "random" else None,
        timeout_seconds=target.timeout_seconds,
        memory_mb=target.memory_mb,
        seed=recipe.seed,
        workers=target.workers,
    )


def asked_of(
    examples: Sequence[Example], replies: Sequence[Reply], decode: Callable[[TokenIds], str], with_human: bool
) -> list[GradingRequest]:
    """The inputs of a checker, one per prompt in the order of the examples: the human reply first, if there is one and `with_human`,
    then the replies in the order of their replicas."""
    texts: dict[str, list[str]] = defaultdict(list)
    for reply in sorted(replies, key=lambda reply: reply.replica):
        texts[reply.row_id].append(decode(reply.token_ids))
    if with_human:
        for example in examples:
            if example.has_reply:
                texts[example.row_id].insert(0, example.conversation.reply)
    return ask(examples, texts)
