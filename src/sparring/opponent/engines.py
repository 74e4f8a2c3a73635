"""The recipe's sampling engine, and free questions to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from sparring.config import Recipe
from sparring.data.chat import Chat
from sparring.data.records import Message
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.policy.compute import make_accelerator
from sparring.policy.load import DTYPES, load_model


def load_sampler(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """The model that samples: the weights of `folder` in the recipe's sampling dtype, on this process's device."""
    return load_model(folder, DTYPES[recipe.sampling_dtype], recipe.train.four_bit).to(make_accelerator().device)


def make_engine(recipe: Recipe, chat: Chat, model: PreTrainedModel, temperature: float) -> Engine:
    """The recipe's sampling engine around a loaded model."""
    return TransformersEngine(model, recipe.sampling.model_copy(update={"temperature": temperature}), chat.stop_ids)


def answer(engine: Engine, chat: Chat, prompts: Sequence[Sequence[Message]], seed: int) -> list[str]:
    """One reply to each prompt (its turns); the random stream depends on the seed and the place in the list alone."""
    asked = [Prompt(f"showcase-{place}", 0, chat.prompt_ids(turns)) for place, turns in enumerate(prompts)]
    return [chat.decode(reply.token_ids) for reply in engine.sample(asked, Stream(seed, 0))]
