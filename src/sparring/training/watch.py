"""Detects the most common failure of SPIN: the margin grows while the human replies themselves become less likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from sparring.console import log

WINDOW = 10
FEWEST, FEWEST_AT_END = 4, 2
STDERRS = 2.0  # batches differ by chance: a mean reward must be this many standard errors below 0 to count as a fall


class HumanLogpWatch:
    """Warns once when the human replies' mean reward is negative while the margin is above that of the steps before.

    Judged at every step, the newest steps against as many before them: ten, or half of what was seen while that is less, from eight steps
    on. At the end the second half of the phase is compared with its first half; two steps each are enough then.
    """

    def __init__(self, phase: str, preferred: str = "human replies") -> None:
        """preferred: what the log calls the replies that should not become less likely."""
        self.phase, self.preferred = phase, preferred
        self.rows: list[dict[str, Any]] = []
        self.warned_at: int | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add the log row of a step and judge the newest steps."""
        if "reward_real" in row:  # without an opponent's log-probs nothing says what the replies had at the start
            self.rows.append(row)
            self._judge(min(WINDOW, len(self.rows) // 2), FEWEST)

    def end(self) -> None:
        """The last judgement, over the whole phase."""
        self._judge(len(self.rows) // 2, FEWEST_AT_END)

    def facts(self) -> dict[str, Any]:
        """The step of the warning, for the stage's facts; empty without a warning."""
        return {} if self.warned_at is None else {"human_logp_warning_at_step": self.warned_at}

    def _judge(self, width: int, fewest: int) -> None:
        if self.warned_at is not None or width < fewest:
            return
        before, newest = self.rows[-2 * width : -width], self.rows[-width:]
        rewards = [row["reward_real"] for row in newest]
        falls = fmean(rewards) < -STDERRS * stdev(rewards) / math.sqrt(width)
        if falls and _margin(newest) > max(0.0, _margin(before)):
            self.warned_at = newest[-1]["step"]
            log.warning(
                f"{self.phase}: the margin grows but the {self.preferred} lose log-prob (mean reward {fmean(rewards):.3f} "
                f"over the last {width} steps): a larger objective.beta or a smaller train.lr holds them"
            )


def _margin(rows: Sequence[dict[str, Any]]) -> float:
    return fmean(row["margin"] for row in rows)
