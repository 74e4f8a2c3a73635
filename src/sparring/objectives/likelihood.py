"""The plain likelihood of winners, which compares them with nothing; and the same as an anchor beside an objective that compares.

Shapes as in shared.py. What it implies for targets that move, and the tests that prove it: docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparring.objectives.shared import Objective

if TYPE_CHECKING:
    from torch import Tensor


def nll_anchor(real_D: Tensor, tokens_D: Tensor) -> Tensor:
    """Negative log-likelihood [D] of the human replies per token, -log p(y|x) / |y|: to be added to a loss with a weight.

    real_D: log p(y|x) [D]; tokens_D: |y| [D], the end-of-turn token included where the reply has one.
    """
    return -real_D / tokens_D


@dataclass(frozen=True, kw_only=True)
class Likelihood(Objective):
    """-log p(y|x) of every winner y, a mean over the winners' tokens of a step: `training.contests.WinnersTask`."""

    names = ("sft",)
    about = (
        "is the plain likelihood of the winners of `target` verified or majority, without a comparison (rejection-sampling "
        "fine-tuning, self-training)"
    )
