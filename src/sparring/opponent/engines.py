"""The recipe's sampling engine for one player, single prompts to it, and engines for several ranks that compute a stage together."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from sparring.config import Recipe, SamplerSettings, SamplingSection
from sparring.config.specs import DEFAULT, ENGINES, ON_GPU
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Message, Reply
from sparring.errors import is_installed, require_package
from sparring.opponent.agreement import check_agreement
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.policy.batches import assign_to_ranks
from sparring.policy.compute import free_memory, make_accelerator, model_on, release_memory
from sparring.policy.load import DTYPES, load_model, model_shape
from sparring.policy.ranks import accelerator_of_rank, from_main, gathered, rank, rank_count, rank_names_hidden
from sparring.policy.score import Scorer
from sparring.rundir import RunDir
from sparring.stage_names import START

# in the facts of a check: every reply computed its prompt again
PADDED = "padded"


def load_sampler(settings: SamplerSettings, folder: Path, device: torch.device | None = None) -> PreTrainedModel:
    """The model that samples: the weights of `folder` in the number format of the settings, on this process's device or another."""
    model = load_model(folder, DTYPES[settings.dtype], settings.four_bit)
    return model_on(device or make_accelerator().device, model)


def make_engine(settings: SamplerSettings, chat: Chat, folder: Path, temperature: float) -> Engine:
    """The sampling engine of the settings for the player in `folder`."""
    require_engine(settings.sampling)
    module, _, function = settings.sampling.spec.factory.partition(":")
    make = getattr(importlib.import_module(f"sparring.opponent.{module}"), function)
    return make(settings.with_sampling(temperature=temperature), chat, folder)


def make_transformers(settings: SamplerSettings, chat: Chat, folder: Path) -> TransformersEngine:
    """The transformers engine, with the model loaded on this process's device."""
    return TransformersEngine(load_sampler(settings, folder), settings.sampling, chat.stop_ids)


def with_engine(recipe: Recipe, *runs: Path) -> Recipe:
    """The recipe with its engine chosen where `sampling.engine` is null: the one that a game in `runs` began with, else this machine's."""
    if recipe.sampling.engine is not None:
        return recipe
    name = next(filter(None, (_engine_of_run(recipe, root) for root in runs)), None)
    if name is None and recipe.may_use_vllm and is_installed(str(ENGINES[ON_GPU].package)) and torch.cuda.is_available():
        name = ON_GPU
        log.info(f"sampling.engine: {name}, the default on a GPU where it is installed; {DEFAULT} samples with the model's own code")
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"engine": name or DEFAULT})})


def _engine_of_run(recipe: Recipe, root: Path) -> str | None:
    """What sampled the start's replies, if it can be chosen for a recipe that names none: other engines have options of their own."""
    measured = RunDir(root).finished(f"{START}/measure")
    name = None if measured is None else measured.inputs.get("sampling", {}).get("engine")
    return name if name in (DEFAULT, ON_GPU) and not any(ENGINES[name].refusals(recipe.train.lora)) else None


def require_engine(sampling: SamplingSection) -> None:
    """Raise UserError if the engine is not installed or lacks its key."""
    spec = sampling.spec
    if spec.package is not None:
        what, otherwise = f"the engine {spec.name} needs the package {spec.package}, which", f", or set sampling.engine to {DEFAULT}"
        require_package(spec.package, what, "sampling.engine", str(spec.extra), otherwise)
    if spec.urls is not None:
        from sparring.opponent.endpoints import read_key

        read_key(sampling.server)


class Sampler:
    """The recipe's engine for one player: created on first use, shared by several temperatures, closed at the end."""

    def __init__(self, settings: SamplerSettings, chat: Chat, folder: Path) -> None:
        self.settings, self.chat, self.folder = settings, chat, folder
        self._engine: Engine | None = None

    def engine(self, temperature: float) -> Engine:
        """The engine; if several ranks compute a stage together, the engine of all ranks."""
        if self._engine is None:
            make = partial(make_engine, self.settings, self.chat, self.folder, temperature)
            alone = accelerator_of_rank() is not None and not self.settings.sampling.spec.on_ranks
            self._engine = OfRankZero(make) if alone else make()
        engine = self._engine.at(temperature)
        return OfAllRanks(engine) if self.settings.sampling.spec.on_ranks and rank_count() > 1 else engine

    def check(self, temperature: float, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> dict[str, Any]:
        """Compare the engine's log-probs with those of our scorer (agreement.py); raises UserError if they differ."""
        sampling = self.settings.with_sampling(temperature=temperature).sampling
        with self._model_to_score() as model:
            found = check_agreement(Scorer(model), sampling, prompts, replies)
        is_padded = isinstance(self._engine, TransformersEngine) and self._engine.reads_prompts_again
        return {**found, **({PADDED: True} if is_padded else {})}

    @contextlib.contextmanager
    def _model_to_score(self) -> Iterator[PreTrainedModel]:
        """The player for the scorer, in the sampling format: the engine's model if it is in this process, else loaded."""
        if isinstance(self._engine, TransformersEngine):
            with self._engine.model_with_own_attention() as model:
                yield model
        else:
            yield load_sampler(self.settings, self.folder, self._checking_device())

    def _checking_device(self) -> torch.device:
        """This process's device if a second copy of the model fits next to the engine, else the CPU: only a few replies are scored."""
        device = make_accelerator().device
        if device.type == "cpu":
            return device
        size = model_shape(self.folder).num_parameters() * DTYPES[self.settings.dtype].itemsize
        if free_memory(device) > 1.5 * size + 2**30:
            return device
        log.info("sampling: the check of the engine's log-probs runs on the CPU, since its device is full")
        return torch.device("cpu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine, if it was created, and release its memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            release_memory()


def answer(engine: Engine, chat: Chat, prompts: Sequence[Sequence[Message]], seed: int) -> list[str]:
    """One reply to each prompt (its turns); the random stream depends only on the seed and the index in the list."""
    asked = [Prompt(f"showcase-{place}", 0, chat.prompt_ids(turns)) for place, turns in enumerate(prompts)]
    return [chat.decode(reply.token_ids) for reply in engine.sample(asked, Stream(seed, 0))]


class OfAllRanks(Engine):
    """The engines of all ranks as one `Engine`: prompts are shared by tokens. A reply depends only on its own random stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def at(self, temperature: float) -> OfAllRanks:
        return OfAllRanks(self.engine.at(temperature))

    def close(self) -> None:
        self.engine.close()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """As `Engine.sample`, on every rank: each samples its share of the prompts, then the replies are gathered."""
        shares = assign_to_ranks([len(prompt.token_ids) for prompt in prompts], rank_count())
        places = sorted(shares[rank()])
        replies = self.engine.sample([prompts[place] for place in places], stream, logps)
        found = {place: reply for part in gathered(list(zip(places, replies, strict=True))) for place, reply in part}
        return [found[place] for place in range(len(prompts))]


class OfRankZero(Engine):
    """An `Engine` with its own processes or servers: only rank 0 has it, and broadcasts the replies part by part."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Raises, on every rank, the UserError of `make`, which only rank 0 calls."""
        self._engine: Engine | None = None
        from_main(partial(self._start, make))

    def _start(self, make: Callable[[], Engine]) -> None:
        with rank_names_hidden():
            self._engine = make()

    def at(self, temperature: float) -> OfRankZero:
        other = copy.copy(self)
        other._engine = self._engine and self._engine.at(temperature)
        return other

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        return [reply for _, replies in self.sample_parts([prompts], stream, logps) for reply in replies]

    def sample_parts(self, parts: Sequence[Sequence[Prompt]], stream: Stream, logps: bool = False) -> Iterator[tuple[int, list[Reply]]]:
        """The numbers and replies of finished parts, on every rank. All ranks must iterate together."""
        own = self._engine.sample_parts(parts, stream, logps) if self._engine else iter(())
        for _ in parts:
            yield from_main(partial(next, own))
        from_main(partial(next, own, None))  # lets the engine finish after the last part
