"""The controls of a game."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sparring.config.option_types import FloatList, FolderName, PositiveFloat, PositiveInt, Section
from sparring.config.sections.data import PairsSection, path_alone

# names in a run directory that a control must not use
TAKEN_NAMES = ("base", "base-model", "baseline", "best", "data", "evaluations", "iterations", "probe", "sft", "start", "trackers")

# folder -> name in tables, logs and plots, for controls without a name
CONTROL_TITLES = {"continued-sft": "continued SFT", "dpo": "DPO", "rft": "RFT", "spin-dpo": "SPIN, then DPO"}


class SearchSection(Section):
    """Values to try for a control."""

    lr: Annotated[FloatList, Field(min_length=2)]
    """Peak learning rates, two or more."""


def scientific(value: float) -> str:
    """1e-5, 25e-7: a number as a part of a folder's name."""
    _, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    return f"{''.join(map(str, digits))}e{exponent}"


class ControlSection(Section):
    """One control: another method, trained from the same start at the same cost."""

    kind: Literal["continued-sft", "dpo", "rft"] = "continued-sft"
    """How it is trained: `continued-sft`, the start trained further on the human replies; `dpo`, trained on labelled pairs (arXiv
    2305.18290) with its start as the reference; `rft`, rejection-sampling fine-tuning (arXiv 2308.01825): the start trained on the human
    replies and on those of its own replies that `target.checker` passes."""
    name: FolderName | None = None
    """Its folder in the run, needed if there are several of a kind; when null, its kind, or `spin-dpo` for `start: best`."""
    start: Literal["start", "best"] = "start"
    """What it starts from; `best` is the game's best iteration, so that DPO follows SPIN. For `dpo` only."""
    pairs: Annotated[PairsSection | None, BeforeValidator(path_alone)] = None
    """The pairs of `dpo`; `pairs: PATH` is short for its `path`."""
    beta: PositiveFloat = 0.1
    """For `dpo`: strength of the constraint to its reference; 0.1 is the usual value."""
    epochs: PositiveFloat | None = None
    """Passes over its rows, rounded up to whole steps. When null, it costs as many floating-point operations as all self-play iterations
    together."""
    lr: PositiveFloat | None = None
    """Peak learning rate. When null, the SFT stage's (or 1e-5 without one), and for `dpo` and `rft` train's in iteration 0."""
    search: SearchSection | None = None
    """Tries several values for a fair comparison: `search: {lr: [1e-6, 1e-5]}` is short for two controls with these learning rates, each at
    the full cost and each with its own place in tables and verdict."""
    batch_size: PositiveInt | None = None
    """Rows per optimizer step. When null, the SFT stage's (or train's without one), and train's for `dpo` and `rft`."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        kind = given.get("kind")
        if option == "search" and value is not None and given.get("lr") is not None:
            yield f"lr is given as {given['lr']:g}; set one of the two"
        if option == "name" and value in TAKEN_NAMES:
            yield "a run keeps something else under this name"
        if option == "name" and value in CONTROL_TITLES and value != kind:
            yield f"is the name of the control {CONTROL_TITLES[value]}; choose another name"
        if option in ("start", "pairs", "beta") and kind in ("continued-sft", "rft") and cls.is_set(option, value):
            yield f"has no effect on {kind}"
        if option == "pairs" and kind == "dpo" and value is None:
            yield "dpo needs labelled pairs; set pairs to a file or a Hub id"

    def each(self) -> tuple[ControlSection, ...]:
        """Itself, or one control for every value of `search`, with that value in its name."""
        if self.search is None:
            return (self,)
        return tuple(self.model_copy(update={"search": None, "lr": lr, "name": f"{self.folder}-{scientific(lr)}"}) for lr in self.search.lr)

    @property
    def folder(self) -> str:
        """Its name in the run directory and on the command line."""
        return self.name or ("spin-dpo" if self.start == "best" else self.kind)

    @property
    def title(self) -> str:
        """Its name in tables, logs and plots."""
        return CONTROL_TITLES.get(self.folder, self.folder)
