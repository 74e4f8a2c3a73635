"""Computing a stage: in this process, in the ranks of the recipe's launcher, or in this process as one of those ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparring.config import Recipe
from sparring.console import log
from sparring.launch import launch
from sparring.policy.compute import release_memory
from sparring.policy.ranks import AgreedError, from_main, require_equal
from sparring.progress import at_stage
from sparring.rundir import RunDir, StageRecord
from sparring.stage_names import stage_of
from sparring.stages.inputs import Work, fingerprint


class TargetReached(Exception):
    """Raised on all ranks after their stage is committed: they do not play the rest of the game."""


class StageRunner:
    """Computes the stages of one run."""

    def __init__(self, recipe: Recipe, run: RunDir, target: str | None) -> None:
        """target: the one stage that this process computes as one of several ranks; None if it plays the game."""
        self.recipe, self.run, self.target = recipe, run, target

    def run_stage(self, name: str, work: Work, alone: Callable[[Path], object] | None = None) -> StageRecord:
        """Compute a stage, or return it from the run directory if it is finished with equal inputs; its memory is freed on return.

        work: computes the stage in its folder; what it is made from follows from its arguments (`Work`). alone: if ranks compute it, the
        part of the work that this process does before they start.
        """
        stage, inputs = stage_of(name), fingerprint(work)
        assert stage is not None, f"{name} is not in the table of stages"
        if stage.derived and self.target in (None, name):
            self._clear(name, inputs)
        with at_stage(name):
            if self.target is not None:
                record = self._of_rank(name, inputs, work)
            elif stage.on_ranks(self.recipe) and self.recipe.launcher.kind != "inline":
                record = self._launched(name, inputs, alone)
            else:
                record = self.run.stage(name, inputs, work)
        release_memory()
        return record

    def computed(self, name: str) -> StageRecord:
        """On a rank, a stage that the process that plays has computed: its checker or its benchmarks need not be here. Raises UserError."""
        record = self.run.finished(name)
        if record is None:
            raise self._too_early(name)
        return record

    def _too_early(self, name: str) -> AgreedError:
        return AgreedError(f"{name} comes before {self.target} and is not finished", remedy="`sparring run` plays up to it")

    def _clear(self, name: str, inputs: dict[str, Any]) -> None:
        def clear() -> None:
            if changes := self.run.remove_changed(name, inputs):
                log.info(f"recomputing {name}: {'; '.join(changes)}")

        from_main(clear)

    def _launched(self, name: str, inputs: dict[str, Any], alone: Callable[[Path], object] | None) -> StageRecord:
        begun = self.run.begin(name, inputs)
        if isinstance(begun, StageRecord):
            return begun
        if alone is not None:
            alone(begun)
            release_memory()
        with at_stage(name, in_ranks=True):
            launch(self.recipe, self.run.root, name)
        record = self.run.finished(name)
        assert record is not None, f"the ranks of {name} have left it unfinished"
        return record

    def _of_rank(self, name: str, inputs: dict[str, Any], work: Work) -> StageRecord:
        """All ranks compute the target stage; only rank 0 starts and commits it."""
        require_equal(inputs, f"would make {name} from other inputs", "the ranks must see the same model, data and run directory")

        def begin() -> StageRecord | Path:
            if name != self.target and not self.run.finished(name):
                raise self._too_early(name)
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
