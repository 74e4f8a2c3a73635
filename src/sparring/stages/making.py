"""How a stage is made: by this process, by the ranks of the recipe's launcher, or by this process as one of those ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.console import log
from sparring.errors import UserError
from sparring.launch import launch
from sparring.policy.compute import release_memory
from sparring.policy.ranks import from_main, require_equal
from sparring.progress import at_stage
from sparring.rundir import RunDir, StageRecord

# What makes a stage in its folder and returns its facts; and what does a part of that
Work = Callable[[Path], dict[str, Any]]
Part = Callable[[Path], None]


class TargetReached(Exception):
    """Raised on all ranks once their stage is committed: the rest of the game is not theirs."""


class StageRunner:
    """Makes the stages of one run."""

    def __init__(self, recipe: Recipe, run: RunDir, target: str | None) -> None:
        """target: the one stage that this process computes as one of several ranks; None where it plays the game."""
        self.recipe, self.run, self.target = recipe, run, target

    def run_stage(
        self, name: str, inputs: dict[str, Any], work: Work, shared: bool = False, alone: Part | None = None, derived: bool = False
    ) -> StageRecord:
        """A stage of the run directory, found there when it is finished with equal inputs; what it held in memory is gone on return.

        shared: the recipe's launcher may start it; alone: the part of the work that this process then does before, where not all of it
        is the ranks'; derived: it follows from others and from the recipe, cheaply or by its nature, and with other inputs it is simply
        made anew.
        """
        if derived:
            self._clear(name, inputs)
        with at_stage(name):
            if self.target is not None:
                record = self._of_rank(name, inputs, work)
            elif shared and self.recipe.launcher.kind == "accelerate":
                record = self._launched(name, inputs, alone)
            else:
                record = self.run.stage(name, inputs, work)
        release_memory()
        return record

    def _clear(self, name: str, inputs: dict[str, Any]) -> None:
        def clear() -> None:
            if changes := self.run.remove_changed(name, inputs):
                log.info(f"{name} is made anew: {'; '.join(changes)}")

        from_main(clear)

    def _launched(self, name: str, inputs: dict[str, Any], alone: Part | None) -> StageRecord:
        begun = self.run.begin(name, inputs)
        if isinstance(begun, StageRecord):
            return begun
        if alone is not None:
            alone(begun)
            release_memory()
        with at_stage(name, lent=True):
            launch(self.recipe, self.run.root, name)
        record = self.run.finished(name)
        assert record is not None, f"the ranks of {name} have left it unfinished"
        return record

    def _of_rank(self, name: str, inputs: dict[str, Any], work: Work) -> StageRecord:
        """All ranks do the work of the target stage, and rank 0 alone begins and commits it."""
        require_equal(inputs, f"would make {name} from other inputs", "the ranks must see the same model, data and run directory")

        def begin() -> StageRecord | Path:
            if name != self.target and not self.run.finished(name):
                raise UserError(f"{name} comes before {self.target} and is not finished", remedy="`sparring run` plays up to it")
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
