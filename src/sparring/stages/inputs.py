"""The fingerprint of a stage: it is made from the arguments that the work of the stage gets, but for what an earlier stage pins already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, Protocol, Self, runtime_checkable

from sparring.checkers.grades import Checker
from sparring.config import BenchmarksSection, DataSection, OptimSection, PairsSection, SamplerSettings, Section
from sparring.data.chat import Chat
from sparring.data.fingerprint import chat_fingerprint, data_inputs, rows_inputs
from sparring.data.records import Contest, Duel, Example
from sparring.evaluation.harness import benchmark_inputs
from sparring.objectives.shared import Objective
from sparring.opponent.protocol import Stream
from sparring.policy.load import ModelSource
from sparring.policy.player import Player
from sparring.rundir import StageRecord, digest

# The work of a stage: a function of a module with all its arguments but the last positional one, the stage's folder; it returns the
# stage's facts. Keyword arguments decide the result and make the fingerprint. Positional ones do not: names for the log and for lines of
# metrics, and what an earlier stage was made from.
Work = partial[dict[str, Any]]

# of training: these change speed, memory or the cost of a kill, and results only by rounding
NOT_FINGERPRINTED = {"checkpoint_every", "micro_batch_tokens", "gradient_checkpointing"}
# of sampling: the same, what other engines need, and what `generate` alone depends on
NOT_OF_SAMPLER = {"batch_tokens", "shard_rows", "vllm", "server", "ray", "replies_per_prompt"}
# newer than the first runs, or of some stages only: an input is left out at this value, so that earlier runs remain valid
LEFT_OUT = {"samples": 1, "prompts": None, "steps": None, "iterations": None}


@runtime_checkable
class Inputs(Protocol):
    """A value that is several inputs of a stage."""

    def inputs(self) -> dict[str, Any]:
        """name -> JSON."""


class Examples(list[Example]):
    """Rows of the data stage, with the hash of their file; None where there are none."""

    def __init__(self, rows: Iterable[Example] = (), hash: str | None = None) -> None:
        super().__init__(rows)
        self.hash = hash


class Played(list[Example]):
    """The rows that the opponent replies to: those with a human reply, then those of data.prompts, if there are any."""

    def __init__(self, data: Examples, prompts: Examples) -> None:
        super().__init__([*data, *prompts])
        self.hashes = {"data": data.hash, "prompts": prompts.hash}

    def inputs(self) -> dict[str, Any]:
        """The files of the rows."""
        return self.hashes


@dataclass(frozen=True)
class Replying:
    """Everything that replies depend on besides their prompts: the player, how it replies, and seed and round of the random streams."""

    settings: SamplerSettings
    model: Player
    round: int
    seed: int

    @property
    def stream(self) -> Stream:
        """The random numbers."""
        return Stream(self.seed, self.round)

    def inputs(self) -> dict[str, Any]:
        """The batch size is not part of it."""
        sampling, four_bit = self.settings.sampling, self.settings.four_bit
        options = {**sampling.model_dump(exclude=NOT_OF_SAMPLER), "engine": sampling.engines}
        of_player = {"dtype": self.settings.dtype, **_base_format(four_bit), "model": self.model.hash}
        return {"sampling": options, **of_player, "round": self.round, "seed": self.seed}


@dataclass(frozen=True)
class Scoring:
    """How log-probs are computed: `settings` has the options that they depend on and the size of micro-batches; others are at defaults."""

    settings: OptimSection

    @classmethod
    def of(cls, training: OptimSection) -> Self:
        """As a training with these settings computes them."""
        return cls(OptimSection(**{name: getattr(training, name) for name in ("precision", "lora", "micro_batch_tokens")}))

    def inputs(self) -> dict[str, Any]:
        """The adapter itself is part of the model."""
        return {"precision": self.settings.precision, **_base_format(self.settings.four_bit)}


def fingerprint(work: Work) -> dict[str, Any]:
    """Everything that the result of a stage depends on, as JSON: the keyword arguments of its work."""
    assert isinstance(work.func, FunctionType) and not work.func.__closure__, "the work of a stage reads nothing but its arguments"
    whole = [value for value in work.args if isinstance(value, Section) or hasattr(value, "recipe")]
    assert not whole, "the work of a stage gets options as keyword arguments"
    inputs = {name: value for given in work.keywords.items() for name, value in _inputs(*given).items()}
    return {name: value for name, value in inputs.items() if name not in LEFT_OUT or value != LEFT_OUT[name]}


def _inputs(name: str, value: Any) -> dict[str, Any]:
    match value:
        case BenchmarksSection():
            return benchmark_inputs(value)
        case StageRecord():
            return {name: value.digest}
        case Inputs():
            return value.inputs()
    return {name: _input(value)}


def _input(value: Any) -> Any:
    match value:
        case Player() | Examples():
            return value.hash
        case Chat():
            return chat_fingerprint(value)
        case DataSection():
            return data_inputs(value)
        case PairsSection():
            return rows_inputs(value)
        case OptimSection():
            return value.model_dump(exclude=NOT_FINGERPRINTED, warnings=False)  # a control with steps has no epochs
        case Objective():
            return value.fingerprint()
        case Checker() | ModelSource():
            return value.fingerprint
        case [Duel() | Contest(), *_]:
            return duels_digest(value)
        case None | bool() | int() | float() | str() | [*_]:
            return value
    raise TypeError(f"nothing says which input of a stage a {type(value).__name__} is")


def _base_format(four_bit: bool) -> dict[str, str]:
    """The format of a quantised base; empty without one, as in runs from before quantisation."""
    return {"quantize": "4bit"} if four_bit else {}


def duels_digest(duels: Sequence[Duel | Contest]) -> str:
    """Hash of the whole content of the duels, in their order."""
    return digest([vars(duel) for duel in duels])
