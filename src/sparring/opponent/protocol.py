"""The base class of sampling engines, and the random streams that make replies independent of batches and restarts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sparring.config import SamplingSection
from sparring.data.records import FinishReason, Reply, TokenIds


@dataclass(frozen=True)
class Prompt:
    """One reply to sample. `replica` counts the replies to the same row from 0."""

    row_id: str
    replica: int
    token_ids: TokenIds


@dataclass(frozen=True)
class Stream:
    """The random numbers of one sampling round, identified by (run seed, iteration)."""

    seed: int
    iteration: int

    def uniforms(self, prompt: Prompt, count: int) -> np.ndarray:
        """`count` uniforms in [0, 1) that depend only on (seed, iteration, row id, replica), one per token of the reply."""
        key = int.from_bytes(self._name(prompt)[:16], "little")
        return np.random.Generator(np.random.Philox(key=key)).random(count)

    def seed_of(self, prompt: Prompt) -> int:
        """The seed of a reply for engines with their own random generator: 31 bits, which all of them accept."""
        return int.from_bytes(self._name(prompt)[:4], "little") >> 1

    def _name(self, prompt: Prompt) -> bytes:
        return hashlib.sha256(f"{self.seed}/{self.iteration}/{prompt.row_id}/{prompt.replica}".encode()).digest()


def make_reply(prompt: Prompt, tokens: Sequence[int], stop_ids: Collection[int], logps: Sequence[float] | None = None) -> Reply:
    """The tokens up to the first that ends a turn; the finish reason is then "stop", whatever the engine reports."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    length = len(tokens) if end is None else end + 1
    reason: FinishReason = "length" if end is None else "stop"
    return Reply(prompt.row_id, prompt.replica, tuple(tokens[:length]), reason, None if logps is None else tuple(logps[:length]))


class Engine:
    """Samples replies: token ids in, token ids out, in the order of the prompts.

    An engine belongs to one player and to the temperature of its `sampling`. `sample_examples` (replies.py) handles shards, resuming and
    the check of the log-probs; an engine does not touch files.
    """

    sampling: SamplingSection

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """One reply per prompt; with `logps` each with the log-probs of its tokens (see Reply)."""
        raise NotImplementedError

    def sample_parts(self, parts: Sequence[Sequence[Prompt]], stream: Stream, logps: bool = False) -> Iterator[tuple[int, list[Reply]]]:
        """(number of the part, its replies) of every part, the first one first, with log-probs if `logps`.

        An engine that distributes work over machines may work ahead and change the order of the other parts.
        """
        for number, part in enumerate(parts):
            yield number, self.sample(part, stream, logps and number == 0)

    def at(self, temperature: float) -> Self:
        """The same player at another temperature, without loading it again. Closing one closes both."""
        other = copy.copy(self)
        other.sampling = self.sampling.model_copy(update={"temperature": temperature})
        return other

    def close(self) -> None:
        """Free memory, processes and connections."""
