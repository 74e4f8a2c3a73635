"""A watch on the commonest failure of SPIN: the margin grows while the human replies themselves become less likely."""

from __future__ import annotations

from collections import deque
from typing import Any

from sparring.console import log

WINDOW = 10


class HumanLogpWatch:
    """Warns once when, over the last ten steps, the human replies' reward is negative while the margin is above that of the ten before."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.rows: deque[dict[str, Any]] = deque(maxlen=2 * WINDOW)
        self.warned_at: int | None = None

    def see(self, row: dict[str, Any]) -> None:
        if "margin" not in row:
            return
        self.rows.append(row)
        if self.warned_at is None and len(self.rows) == 2 * WINDOW and self._falling():
            self.warned_at = row["step"]
            log.warning(
                f"{self.phase}: the margin grows but the human replies lose log-prob (mean reward {self._mean('reward_real', WINDOW):.3f} "
                f"over the last {WINDOW} steps): a larger objective.beta or a smaller train.lr holds them"
            )

    def facts(self) -> dict[str, Any]:
        return {} if self.warned_at is None else {"human_logp_warning_at_step": self.warned_at}

    def _falling(self) -> bool:
        return self._mean("reward_real", WINDOW) < 0 and self._mean("margin", WINDOW) > max(0.0, self._mean("margin", 0))

    def _mean(self, name: str, start: int) -> float:
        rows = list(self.rows)[start : start + WINDOW]
        return sum(row[name] for row in rows) / len(rows)
