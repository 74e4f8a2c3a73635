"""What the player minimises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from sparring.config.option_types import (
    FractionPerIteration,
    PerIteration,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
    WeightPerIteration,
    at_iteration,
)
from sparring.errors import suggestion
from sparring.objectives import OBJECTIVES, in_words, kind_of, names_taking
from sparring.objectives.shared import Objective
from sparring.own_code import is_own_code

# Defaults of verified and majority targets (docs/evidence.md): without an NLL term their duels degrade the model, at any beta
WITH_GRADES = {"beta": 0.5, "nll_weight": 1.0}


def defaults_with_grades(loss: str) -> dict[str, float]:
    """The defaults that apply to an objective; none for an unknown one."""
    kind = kind_of(loss)
    return {option: value for option, value in WITH_GRADES.items() if kind is not None and kind.takes(option)}


class ObjectiveSection(Section):
    """The loss and its options."""

    loss: Text = Field("logistic", description=f"What is minimised, see docs/theory.md. {in_words()}.")
    beta: PerIteration = 1.0
    """The lambda of equation 4.7 (the alpha of T-SPIN, which scales its margins), one value or one per iteration. The paper uses 0.1, then
    5.0 in its last iteration; 1.0 is the default because smaller values overshoot (docs/theory.md), and 0.5 where `target` is verified or
    majority. Not for `space`."""
    nll_weight: WeightPerIteration = 0.0
    """Weight of a term added to the loss: the negative log-likelihood of the human reply (of the winners) per token. 0, the default, is
    SPIN; larger ones keep these replies likely. The default is 1 where `target` is verified or majority, because without it such duels
    collapsed (docs/evidence.md). One value or one per iteration."""
    mu: PositiveFloat | None = None
    """Noise ratio of `loss: space`: the weight of the opponent's replies relative to the human one. When null,
    `sampling.replies_per_prompt`, so that every reply has the same weight (1 for pairs of winner and loser)."""
    history_weight: WeightPerIteration = 0.1
    """Weight of T-SPIN's preference of the newest replies over those of the start (the paper's beta), one value or one per iteration. In
    iteration 0 it is 0, as in the paper, because its replies are those of the start."""
    alpha: FractionPerIteration = 0.9
    """Share of the opponent in the mixture of `loss: alpha-spin`, one value or one per iteration: 1 is SPIN, 0 compares with the start of
    the game alone. See docs/theory.md for the effect of 0.9 with exact minimisation. Set `window` to `iterations` for replies of all
    opponents."""
    window: PositiveInt = 2
    """Iterations whose replies are trained on, the newest first; the paper uses 2."""

    @classmethod
    def faults(cls, option: str, value: Any, given: Mapping[str, Any]) -> Iterator[str]:
        loss = value if option == "loss" else given.get("loss", "")
        kind, others = kind_of(loss), names_taking(option)
        if option == "loss" and kind is None:
            yield f"not an objective; there are {', '.join(OBJECTIVES)}" + suggestion(loss, OBJECTIVES, before="; ")
        if kind is not None and others and not kind.takes(option) and cls.is_set(option, value):
            yield f"has no effect while objective.loss is {loss}; it is for {others}"

    @property
    def kind(self) -> type[Objective]:
        """The class of the objective, with its requirements and options."""
        kind = kind_of(self.loss)
        assert kind is not None, self.loss
        return kind

    @property
    def name(self) -> str:
        """Its name in logs and reports; only the file name of a path."""
        return Path(self.loss).name if is_own_code(self.loss) else self.loss

    def uses_likelihood(self, iteration: int) -> bool:
        """Whether the loss raises the winners' own likelihood."""
        return not self.kind.uses_margins or at_iteration(self.nll_weight, iteration) > 0

    def learns_from_identical(self, iteration: int) -> bool:
        """Whether a duel has a gradient although all its replies equal the human one: true unless the loss is on margins only."""
        return self.kind.learns_from_identical or at_iteration(self.nll_weight, iteration) > 0

    def at(self, iteration: int, replies_per_prompt: int) -> Objective:
        """The objective with the values of its options in an iteration (from 0)."""
        values = {option: at_iteration(getattr(self, option), iteration) for option in type(self).model_fields if self.kind.takes(option)}
        return self.kind(**values).in_iteration(iteration, replies_per_prompt)
