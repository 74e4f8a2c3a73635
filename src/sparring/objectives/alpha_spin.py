"""alpha-SPIN (arXiv 2404.04291): SPIN against a mixture of the opponent and the start of the game.

Implemented from a partial reading of the paper: docs/theory.md says of which parts, what the mixture implies, and which tests prove it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from sparring.objectives.shared import READ_IN_PART, Logps
from sparring.objectives.spin import LossName, Spin

if TYPE_CHECKING:
    from torch import Tensor

Number = TypeVar("Number", "float", "Tensor")


def mixed_logp(opponent: Number, start: Number, alpha: float) -> Number:
    """alpha * log p_opponent + (1 - alpha) * log p_start of a reply: alpha-SPIN's opponent (in the paper the start is the base policy).

    The geometric mixture of the two policies, without its normaliser, which is one number per prompt and cancels in a margin.
    """
    return start + alpha * (opponent - start)  # this form is exact where both are equal


@dataclass(frozen=True, kw_only=True)
class AlphaSpin(Spin):
    """SPIN whose opponent log-probs are mixed with those of the start; `alpha` is the opponent's weight."""

    names = ("alpha-spin",)
    about = f"plays against a mixture of the opponent and the start (alpha-SPIN, arXiv 2404.04291; {READ_IN_PART})"
    uses_start = True

    alpha: float
    ell: ClassVar[LossName] = "logistic"

    def against(self, opponent: Logps, start: Logps) -> Logps:
        return {
            name: [mixed_logp(ours, theirs, self.alpha) for ours, theirs in zip(row, start[name], strict=True)]
            for name, row in opponent.items()
        }
