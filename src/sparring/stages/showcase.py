"""The recipe's showcase prompts, which every player answers."""

from __future__ import annotations

from pathlib import Path

from sparring.config import Recipe
from sparring.data.records import Message
from sparring.opponent.engines import Sampler, answer
from sparring.policy.player import Policy
from sparring.rundir import write_json
from sparring.stages.context import RunContext


def showcase_turns(recipe: Recipe) -> list[list[Message]]:
    system = recipe.showcase_system
    first = [Message(role="system", content=system)] if system else []
    return [[*first, Message(role="user", content=text)] for text in recipe.showcase]


def answer_showcase(context: RunContext, file: Path, player: Policy) -> None:
    """Write its answers, each under one random stream that is the same in every iteration."""
    recipe = context.recipe
    with Sampler(recipe, context.chat, player.folder) as sampler:
        engine = sampler.engine(recipe.sampling.temperature)
        replies = answer(engine, context.chat, showcase_turns(recipe), recipe.seed)
    shown = zip(recipe.showcase, replies, strict=True)
    write_json(file, [{"prompt": prompt, "reply": reply} for prompt, reply in shown])
