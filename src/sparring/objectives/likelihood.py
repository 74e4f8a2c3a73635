"""The likelihood of winners alone, without a comparison; and the same as an NLL term added to an objective on margins.

Shapes as in shared.py. What it implies for verified and majority targets, and the tests that prove it: docs/theory.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparring.objectives.shared import Objective

if TYPE_CHECKING:
    from torch import Tensor


def nll_anchor(real_D: Tensor, tokens_D: Tensor) -> Tensor:
    """Negative log-likelihood [D] of the human replies per token, -log p(y|x) / |y|: added to a loss with a weight.

    real_D: log p(y|x) [D]; tokens_D: |y| [D], the end-of-turn token included where the reply has one.
    """
    return -real_D / tokens_D


@dataclass(frozen=True, kw_only=True)
class Likelihood(Objective):
    """-log p(y|x) of every winner y, a mean over the winners' tokens of a step, computed by `training.tasks.WinnersTask`."""

    names = ("sft",)
    about = (
        "is the plain likelihood of the winners of `target` verified or majority, without a comparison (rejection-sampling "
        "fine-tuning, self-training)"
    )
