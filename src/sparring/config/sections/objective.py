"""What the player minimises."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from sparring.config.option_types import (
    FractionPerIteration,
    PerIteration,
    PositiveFloat,
    PositiveInt,
    Section,
    WeightPerIteration,
    at_iteration,
)

T = TypeVar("T")
# The losses that an option has an effect on; the others refuse it.
SPIN_LOSSES = ("logistic", "hinge", "exponential", "correlation")
TAKEN_BY = {"beta": (*SPIN_LOSSES, "t-spin", "alpha-spin"), "mu": ("space",), "history_weight": ("t-spin",), "alpha": ("alpha-spin",)}
# Defaults where the target moves (docs/evidence.md): without likelihood beside them such duels lose what the model can do, at any beta
OF_MOVING_TARGETS = {"beta": 0.5, "nll_weight": 1.0}


class ObjectiveSection(Section):
    loss: Literal["logistic", "hinge", "exponential", "correlation", "space", "t-spin", "alpha-spin", "sft"] = Field(
        "logistic",
        description="The decreasing convex function ell of equation 4.7; or a successor of SPIN (docs/theory.md): `space` tells each reply "
        "from the opponent's by itself (arXiv 2512.07175), `t-spin` needs no opponent log-probs and also prefers the newest replies to "
        "those of the start (arXiv 2601.08198), `alpha-spin` plays against a mixture of the opponent and the start (arXiv 2404.04291). "
        "The last two with the logistic ell. `sft` is the plain likelihood of the winners of `target` verified or majority, and compares "
        "them with nothing (rejection-sampling fine-tuning, self-training).",
    )
    beta: PerIteration = Field(
        1.0,
        description="The lambda of equation 4.7 (the alpha of T-SPIN, which scales its gaps), one value or one per iteration. The paper "
        "uses 0.1, then 5.0 in its last iteration; 1.0 is the default because smaller values overshoot (docs/theory.md), and 0.5 where "
        "`target` is verified or majority. Not for `space`.",
    )
    nll_weight: WeightPerIteration = Field(
        0.0,
        description="Weight of an anchor beside the loss: the negative log-likelihood of the human reply (of the winners) per token. 0, "
        "the default, is SPIN; larger ones keep these replies likely: 1 where `target` is verified or majority, as without it such duels "
        "were seen to collapse (docs/evidence.md). One value or one per iteration.",
    )
    mu: PositiveFloat | None = Field(
        None,
        description="Noise ratio of `loss: space`, how much the opponent's replies weigh against the human one; "
        "`sampling.replies_per_prompt`, so that every reply weighs the same, when null (1 where winners meet losers in pairs).",
    )
    history_weight: WeightPerIteration = Field(
        0.1,
        description="Weight of T-SPIN's preference of the newest replies to those of the start (the paper's beta), one value or one per "
        "iteration. Iteration 0 takes 0, as the paper does: its replies are those of the start.",
    )
    alpha: FractionPerIteration = Field(
        0.9,
        description="Share of the opponent in the mixture of `loss: alpha-spin`, one value or one per iteration: 1 is SPIN, 0 compares "
        "with the start of the game alone. See docs/theory.md for what 0.9 means in exact play. Set `window` to `iterations` for replies "
        "of all opponents.",
    )
    window: PositiveInt = Field(2, description="Iterations whose replies are trained on, the newest first; the paper uses 2.")

    @field_validator(*TAKEN_BY)
    @classmethod
    def _has_an_effect(cls, value: T, info: ValidationInfo) -> T:
        name, loss = info.field_name or "", info.data.get("loss")
        if loss is not None and loss not in TAKEN_BY[name] and value != cls.model_fields[name].default:
            raise ValueError(f"has no effect while objective.loss is {loss}; it is for {', '.join(TAKEN_BY[name])}")
        return value

    @field_validator("nll_weight")
    @classmethod
    def _sft_is_likelihood(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("loss") == "sft" and value != 0.0:
            raise ValueError("has no effect while objective.loss is sft, which is that likelihood")
        return value

    @property
    def uses_opponent_logps(self) -> bool:
        return self.loss not in ("t-spin", "sft")

    @property
    def uses_gaps(self) -> bool:
        """Whether winners are compared with losers."""
        return self.loss != "sft"

    def uses_likelihood(self, iteration: int) -> bool:
        """Whether the winners' own likelihood is raised."""
        return self.loss == "sft" or at_iteration(self.nll_weight, iteration) > 0

    @property
    def uses_start(self) -> bool:
        """Whether log-probs under the start of the game are needed."""
        return self.loss == "alpha-spin"

    @property
    def uses_start_replies(self) -> bool:
        return self.loss == "t-spin"

    def learns_from_identical(self, iteration: int) -> bool:
        """Whether a duel has a gradient though all its replies equal the human one: where not only gaps between replies count."""
        return self.loss == "space" or at_iteration(self.nll_weight, iteration) > 0

    def at(self, iteration: int, replies_per_prompt: int) -> dict[str, Any]:
        """What has an effect in an iteration (from 0), with its value there; nothing else."""
        found: dict[str, Any] = {"loss": self.loss}
        found |= {name: at_iteration(getattr(self, name), iteration) for name, losses in TAKEN_BY.items() if self.loss in losses}
        if self.loss == "space":
            found["mu"] = self.mu or float(replies_per_prompt)
        if self.loss == "t-spin" and iteration == 0:
            found["history_weight"] = 0.0
        nll_weight = at_iteration(self.nll_weight, iteration)
        return {**found, "nll_weight": nll_weight} if nll_weight else found
