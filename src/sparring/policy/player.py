"""A player: the model of an iteration, the start or a control, or a model without a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sparring.rundir import StageRecord, digest
from sparring.stage_names import owner_of, player_of, title_of


@dataclass(frozen=True)
class Player:
    """Its name as commands take it ("start", an iteration's number, a control's folder), its model folder, and the content hash of its
    weights; the other fields are the folders of its results, if there are any."""

    name: str
    folder: Path
    hash: str
    measured: Path | None = None
    evaluated: Path | None = None
    benchmarks: Path | None = None

    @classmethod
    def of_stage(cls, record: StageRecord) -> Player:
        """The model that a stage committed. Its hash comes from the commit, not from reading the weights again."""
        files = {name.removeprefix("model/"): hash for name, hash in record.outputs.items() if name.startswith("model/")}
        configs = ("config.json", "adapter_config.json")
        pinned = {name: hash for name, hash in files.items() if name.endswith(".safetensors") or name in configs}
        return cls(player_of(record.name), record.path / "model", digest(pinned))

    @property
    def owner(self) -> str:
        """The folder of its stages in the run directory."""
        return owner_of(self.name)

    @property
    def title(self) -> str:
        """The name for people, as in tables and logs."""
        return title_of(self.owner)

    def with_results(self, measured: Path, evaluated: Path, benchmarks: Path | None = None) -> Player:
        """A copy with the folders of its finished measurements."""
        return replace(self, measured=measured, evaluated=evaluated, benchmarks=benchmarks)


def adapter_hash(record: StageRecord, base: str) -> str | None:
    """The `weights_hash` of the adapter that a stage committed, on the model with the hash `base`; None for a full model."""
    own = {name: record.outputs.get(f"model/{name}") for name in ("adapter_config.json", "adapter_model.safetensors")}
    return None if None in own.values() else digest({**own, "base": base})
