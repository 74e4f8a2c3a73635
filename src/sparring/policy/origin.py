"""The base model of an adapter: a few of its numbers, stored in the adapter's file, distinguish it from others of the same shape.

They are the first ones of some matrices, in bfloat16, so that neither another number format nor other files of the same weights look like
another model. Adapters of other programs have none and are not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

KEY = "base"
MATRICES, ROWS = 8, 2


def marks_of(base: Path) -> dict[str, str]:
    """Name of a matrix -> its first numbers, for some matrices spread over the model in `base`."""
    places = {name: file for file in sorted(base.glob("*.safetensors")) for name in _matrices(file)}
    names = sorted(places)
    return {name: _mark(places[name], name) for name in names[:: -(-len(names) // MATRICES) or 1]}


def require_marks(file: Path, base: Path) -> None:
    """Raise ValueError if the adapter in `file` has the numbers of another base."""
    stored = json.loads(stored_marks(file))
    places = {name: where for where in sorted(base.glob("*.safetensors")) for name in _matrices(where)}
    for name in sorted(stored.keys() & places.keys()):  # a base in another layout has other names
        if _mark(places[name], name) != stored[name]:
            raise ValueError(f"its base has other weights than the one that it was trained on, {name} for one")


def save_with_marks(tensors: dict[str, torch.Tensor], file: Path, marks: str) -> None:
    """Write an adapter's file. Equal adapters give equal files: safetensors leaves the order of the metadata to chance."""
    save_file(tensors, file, metadata={"format": "pt", KEY: marks})
    with open(file, "r+b") as found:
        length = int.from_bytes(found.read(8), "little")
        header = json.loads(found.read(length))
        header = {**header, "__metadata__": dict(sorted(header["__metadata__"].items()))}
        found.seek(8)
        again = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(again) <= length, "the numbers come right after it"
        found.write(again.ljust(length))


def stored_marks(file: Path) -> str:
    """As JSON; an empty mapping in files of other programs."""
    with safe_open(file, "pt") as stored:
        return (stored.metadata() or {}).get(KEY, "{}")


def _matrices(file: Path) -> Iterable[str]:
    with safe_open(file, "pt") as tensors:
        return [name for name in tensors.keys() if len(tensors.get_slice(name).get_shape()) == 2]  # noqa: SIM118  no mapping


def _mark(file: Path, name: str) -> str:
    with safe_open(file, "pt") as tensors:
        rows = tensors.get_slice(name)[:ROWS].to(torch.bfloat16).view(torch.int16)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
