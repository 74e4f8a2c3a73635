"""A model in a run: its folder, pinned by a content hash, and its results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sparring.rundir import StageRecord, digest


@dataclass(frozen=True)
class Policy:
    """A model folder with the content hash of its weights; the other fields are the folders of its results, if there are any."""

    folder: Path
    hash: str
    measured: Path | None = None
    evaluated: Path | None = None
    benchmarks: Path | None = None

    @classmethod
    def of_stage(cls, record: StageRecord) -> Policy:
        """The model that a stage committed. Its hash comes from the commit, not from reading the weights again."""
        files = {name.removeprefix("model/"): hash for name, hash in record.outputs.items() if name.startswith("model/")}
        configs = ("config.json", "adapter_config.json")
        pinned = {name: hash for name, hash in files.items() if name.endswith(".safetensors") or name in configs}
        return cls(record.path / "model", digest(pinned))

    def with_results(self, measured: Path, evaluated: Path, benchmarks: Path | None = None) -> Policy:
        """A copy with the folders of its finished measurements."""
        return replace(self, measured=measured, evaluated=evaluated, benchmarks=benchmarks)


def adapter_hash(record: StageRecord, base: str) -> str | None:
    """The `weights_hash` of the adapter that a stage committed over the model with the hash `base`; None for a full model."""
    own = {name: record.outputs.get(f"model/{name}") for name in ("adapter_config.json", "adapter_model.safetensors")}
    return None if None in own.values() else digest({**own, "base": base})
