"""A user's function as an objective, `path/to/file.py:function`. It runs in this process, because its gradient is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparring.errors import UserError
from sparring.objectives.shared import Compared, Comparison, DuelLogps, ItemLosses
from sparring.objectives.spin import with_spin_metrics
from sparring.own_code import OWN_CODE, OwnCode

if TYPE_CHECKING:
    from torch import Tensor

WANTED = "an objective is f(player: DuelLogps, opponent: DuelLogps, mask_DK: Tensor, *, beta: float) -> Tensor, a loss for every duel, [D]"


@dataclass(frozen=True, kw_only=True)
class OwnObjective(Comparison):
    """A user's loss function; its code is hashed into the fingerprint."""

    names = (OWN_CODE,)
    about = "is a function of your own, a loss of the log-probs of replies (docs/contributing.md)"
    learns_from_identical = True  # assumed, since nothing is known about it

    beta: float

    @cached_property
    def code(self) -> OwnCode:
        """The text and hash of the user's file. Raises UserError if it cannot be read."""
        return OwnCode.read(self.loss, "objective.loss")

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The loaded function. Raises UserError if the file cannot be imported or the signature does not fit."""
        return self.code.load(WANTED, None, None, None, beta=self.beta)

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "sha256": self.code.sha256}

    def losses(self, given: Compared) -> ItemLosses:
        assert given.opponent is not None
        return with_spin_metrics(self._computed(given.player, given.opponent, given.mask_DK), given, self.beta)

    def _computed(self, player: DuelLogps, opponent: DuelLogps, mask_DK: Tensor) -> Tensor:
        """Raises UserError if the function raises, or does not return a tensor with one loss per duel."""
        import torch

        try:
            loss_D = self.function(player, opponent, mask_DK, beta=self.beta)
        except (UserError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise self._error(self.code.error_text(error)) from error
        if not isinstance(loss_D, torch.Tensor):
            raise self._error(f"it returned {type(loss_D).__name__} instead of a tensor")
        if loss_D.shape != player.real_D.shape:
            wanted, found = list(player.real_D.shape), list(loss_D.shape)
            raise self._error(f"it returned a tensor of shape {found} instead of one loss per duel, {wanted}")
        return loss_D

    def check(self) -> None:
        """Try the function on two duels: a tie, as all duels are in an iteration's first step, and one with a missing reply."""
        import torch

        def logps(real: Sequence[float], generated: Sequence[Sequence[float]]) -> DuelLogps:
            return DuelLogps(*(torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (real, generated)))

        player, opponent = logps([-9.0, -7.0], [[-8.0, -5.0], [-6.5, -9.0]]), logps([-9.0, -7.5], [[-8.0, -5.0], [-6.0, -3.0]])
        mask_DK = torch.tensor([[True, True], [True, False]])
        loss_D = self._computed(player, DuelLogps(opponent.real_D.detach(), opponent.generated_DK.detach()), mask_DK)
        if not loss_D.requires_grad:
            raise self._error("its losses have no gradient: compute them from the player's log-probs with torch operations")
        leaves = (player.real_D, player.generated_DK)
        slopes = torch.autograd.grad(loss_D.sum(), leaves, allow_unused=True, materialize_grads=True)
        if not all(found.isfinite().all() for found in (loss_D, *slopes)):
            shown = ", ".join(f"{value:g}" for value in loss_D.tolist())
            raise self._error(f"for log-probs that are finite its losses are {shown}, and they or their gradient are not finite")
        if not any(slope.any() for slope in slopes):
            raise self._error("its losses have no gradient: it is 0 in all log-probs of the player")
        if slopes[1][~mask_DK].any():
            raise self._error("it counts padding: leave out the replies for which mask_DK is false, as mean_over_replies does")

    def _error(self, what: str) -> UserError:
        where = f"{self.code.where}: {self.code.function} in {self.code.path}"
        return UserError(what, where=where, remedy=f"{WANTED}; `sparring docs contributing` shows one")
