"""What every sampling engine offers, and the random streams that make replies independent of batches and restarts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparring.data.records import Reply, TokenIds


@dataclass(frozen=True)
class Prompt:
    """One reply to draw. `replica` counts the replies to the same row from 0."""

    row_id: str
    replica: int
    token_ids: TokenIds


@dataclass(frozen=True)
class Stream:
    """Names the random numbers of one sampling round: (run seed, iteration)."""

    seed: int
    iteration: int

    def uniforms(self, prompt: Prompt, count: int) -> np.ndarray:
        """`count` uniforms in [0, 1) that depend on (seed, iteration, row id, replica) alone, one per token of the reply."""
        name = f"{self.seed}/{self.iteration}/{prompt.row_id}/{prompt.replica}"
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        return np.random.Generator(np.random.Philox(key=key)).random(count)


class Engine(Protocol):
    """Draws replies: token ids in, token ids out, in the order of the prompts."""

    def sample(self, prompts: Sequence[Prompt], stream: Stream) -> list[Reply]: ...
