"""Computes and commits a stage, in this process or on the recipe's ranks; its fingerprint is made from the arguments of its work."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol, Self, runtime_checkable

from sparring.calls import Calls
from sparring.checkers.grades import Checker
from sparring.config import BenchmarksSection, DataSection, OptimSection, PairsSection, Recipe, SamplerSettings, Section
from sparring.config.sections import ENGINE_SECTIONS
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.prepare import chat_fingerprint, data_inputs, rows_inputs
from sparring.data.records import Contest, Duel, Example
from sparring.evaluation.harness import benchmark_inputs
from sparring.launch import launch
from sparring.objectives.shared import Objective
from sparring.opponent.protocol import Stream
from sparring.policy.compute import release_memory
from sparring.policy.load import ModelSource
from sparring.policy.player import Player
from sparring.policy.ranks import AgreedError, from_main, require_equal
from sparring.progress import at_stage
from sparring.rundir import RunDir, StageRecord, digest
from sparring.stage_names import stage_of

# The work of a stage: a function of a module with all its arguments but the last positional one, the stage's folder; it returns the
# stage's facts. Keyword arguments decide the result and make the fingerprint. Positional ones do not: names for the log and for lines of
# metrics, and what an earlier stage was made from.
StageWork = partial[dict[str, Any]]

# of training: these change speed, memory or the cost of a kill, and results only by rounding
NOT_FINGERPRINTED = {"checkpoint_every", "micro_batch_tokens", "gradient_checkpointing"}
# of sampling: the same, the options of other engines, and an option that only `generate` depends on
NOT_OF_SAMPLER = {"batch_tokens", "shard_rows", *ENGINE_SECTIONS, "replies_per_prompt"}
# inputs that are newer than the first runs, or belong to some stages only: left out at this value, so that earlier runs remain valid
LEFT_OUT = {"samples": 1, "prompts": None, "steps": None, "iterations": None}


@runtime_checkable
class Inputs(Protocol):
    """A value that gives several inputs of a stage's fingerprint."""

    def inputs(self) -> dict[str, Any]:
        """Input's name -> its value, as JSON."""


class Examples(list[Example]):
    """Rows of the data stage, with the hash of their file; the hash is None if there are no rows."""

    def __init__(self, rows: Iterable[Example] = (), hash: str | None = None) -> None:
        super().__init__(rows)
        self.hash = hash


class PromptRows(list[Example]):
    """The rows that the opponent replies to: those with a human reply, then those of data.prompts, if there are any."""

    def __init__(self, data: Examples, prompts: Examples) -> None:
        super().__init__([*data, *prompts])
        self.hashes = {"data": data.hash, "prompts": prompts.hash}

    def inputs(self) -> dict[str, Any]:
        """The hashes of the files with the rows."""
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
        """The random stream of the replies."""
        return Stream(self.seed, self.round)

    def inputs(self) -> dict[str, Any]:
        """Everything that the replies depend on; the batch size is not included."""
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
        """How training with these settings computes log-probs."""
        return cls(OptimSection(**{name: getattr(training, name) for name in ("precision", "lora", "micro_batch_tokens")}))

    def inputs(self) -> dict[str, Any]:
        """The precision, and the format of a quantised base; an adapter is part of the model's hash."""
        return {"precision": self.settings.number_format, **_base_format(self.settings.four_bit)}


def fingerprint(work: StageWork) -> dict[str, Any]:
    """Everything that the result of a stage depends on, as JSON: the keyword arguments of its work."""
    assert isinstance(work.func, FunctionType) and not work.func.__closure__, "the work of a stage reads nothing but its arguments"
    whole = [value for value in work.args if isinstance(value, Section) or hasattr(value, "recipe")]
    assert not whole, "the work of a stage gets options as keyword arguments"
    inputs: dict[str, Any] = {}
    for name, value in work.keywords.items():
        match value:
            case BenchmarksSection():
                inputs |= benchmark_inputs(value)
            case StageRecord():  # before Inputs: its `inputs` are no method
                inputs[name] = value.digest
            case Inputs():
                inputs |= value.inputs()
            case _:
                inputs[name] = _input(value)
    return {name: value for name, value in inputs.items() if name not in LEFT_OUT or value != LEFT_OUT[name]}


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
    raise TypeError(f"no rule for a {type(value).__name__} as an input of a stage")


def _base_format(four_bit: bool) -> dict[str, str]:
    """The format of a quantised base; empty without one, as in runs from before quantisation."""
    return {"quantize": "4bit"} if four_bit else {}


def duels_digest(duels: Sequence[Duel | Contest]) -> str:
    """Hash of the whole content of the duels, in their order."""
    return digest([vars(duel) for duel in duels])


class TargetReached(Exception):
    """Raised on all ranks after their stage is committed: they do not play the rest of the game."""


class StageRunner:
    """Computes the stages of one run."""

    def __init__(self, recipe: Recipe, run: RunDir, target: str | None = None, calls: Calls | None = None) -> None:
        """target: the one stage that this process computes as one of several ranks; None if it plays. calls: for remote ranks."""
        self.recipe, self.run, self.target, self.calls = recipe, run, target, calls
        self.on_redo: Callable[[], object] = self.run.delete_redone  # called when the game gets to the first stage to redo

    @property
    def is_rank(self) -> bool:
        """Whether this process is one of several that compute a stage; the one that started them has checked the recipe and reports."""
        return self.target is not None

    def run_stage(self, name: str, work: StageWork, alone: Callable[[Path], object] | None = None) -> StageRecord:
        """Compute a stage, or return it from the run directory if it is finished with equal inputs; its memory is freed on return.

        work: computes the stage in its folder; its arguments decide the fingerprint (`StageWork`). alone: if ranks compute the stage, the
        part of the work that this process does before they start.
        """
        stage, inputs = stage_of(name), fingerprint(work)
        assert stage is not None, f"{name} is not in the table of stages"
        if name in self.run.redone:
            self.on_redo()
        update = self.run.changes if stage.replaced else self.run.remove_changed
        if stage.derived and self.target in (None, name) and (changes := from_main(partial(update, name, inputs))):
            log.info(f"recomputing {name}: {'; '.join(changes)}")
        with at_stage(name):
            if self.target is not None:
                record = self._of_rank(name, inputs, work)
            elif stage.on_ranks is not None and stage.on_ranks(self.recipe) and self.recipe.launcher.kind != "inline":
                record = self._launched(name, inputs, alone)
            else:
                record = self.run.stage(name, inputs, work, replaces=stage.replaced)
        release_memory()
        return record

    def computed(self, name: str) -> StageRecord:
        """On a rank, the record of a finished stage that ranks do not compute, such as grades. Raises UserError if it is not finished."""
        record = self.run.finished(name)
        if record is None:
            raise self._too_early(name)
        return record

    def _too_early(self, name: str) -> AgreedError:
        return AgreedError(f"{name} comes before {self.target} and is not finished", remedy="`sparring run` plays up to it")

    def _launched(self, name: str, inputs: dict[str, Any], alone: Callable[[Path], object] | None) -> StageRecord:
        begun = self.run.begin(name, inputs)
        if isinstance(begun, StageRecord):
            return begun
        if alone is not None:
            alone(begun)
            release_memory()
        with at_stage(name, in_ranks=True):
            launch(self.recipe, self.run.root, name, self.calls)
        record = self.run.finished(name)
        assert record is not None, f"the ranks of {name} have ended without finishing it"
        return record

    def _of_rank(self, name: str, inputs: dict[str, Any], work: StageWork) -> StageRecord:
        """All ranks compute the target stage; only rank 0 starts and commits it."""
        require_equal(inputs, f"would compute {name} from different inputs", "the ranks must see the same model, data and run directory")

        def begin() -> StageRecord | Path:
            if name != self.target and not self.run.finished(name):
                raise self._too_early(name)
            return self.run.begin(name, inputs)

        begun = from_main(begin)
        if name != self.target:
            assert isinstance(begun, StageRecord), f"{name} is finished"
            return begun
        log.setLevel(logging.DEBUG)
        if isinstance(begun, Path):
            facts = work(begun)
            from_main(lambda: self.run.commit(name, inputs, facts))
        raise TargetReached
