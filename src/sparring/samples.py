"""`sparring sample`: one prompt answered by every player of a run."""

from __future__ import annotations

from pathlib import Path

from sparring.data.chat import Chat
from sparring.data.records import Message
from sparring.errors import UserError
from sparring.opponent.engines import Sampler, answer
from sparring.players import Players
from sparring.policy.load import model_facts
from sparring.stage_names import title_of_player


def answers(root: Path, prompt: str, temperature: float | None, seed: int | None, system: str | None = None) -> dict[str, str]:
    """player -> its reply to `prompt` as a first user turn, after a system turn if one is given; all under the same random stream."""
    players = Players(root)
    if not players.stages:
        raise UserError("this run has no player yet", where=str(root), remedy="run its recipe first")
    recipe, chat = players.recipe, players.chat()
    turns = [Message(role="system", content=system)] if system else []
    turns.append(Message(role="user", content=prompt))
    temperature = recipe.sampling.temperature if temperature is None else temperature
    found = {}
    for name in players.stages:
        folder = players.folder(name)
        _check_fits(chat, turns, recipe.sampling.max_new_tokens, model_facts(folder)[0])
        with Sampler(recipe.sampler, chat, folder) as sampler:
            found[title_of_player(name)] = answer(sampler.engine(temperature), chat, [turns], recipe.seed if seed is None else seed)[0]
    return found


def _check_fits(chat: Chat, turns: list[Message], max_new_tokens: int, context: int | None) -> None:
    length = len(chat.prompt_ids(turns))
    if context is not None and length + max_new_tokens > context:
        raise UserError(
            f"{length} prompt tokens and sampling.max_new_tokens ({max_new_tokens}) exceed the model's context of {context}",
            where="prompt",
            remedy="give a shorter prompt",
        )
