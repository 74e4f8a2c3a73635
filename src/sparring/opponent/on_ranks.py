"""Sampling engines for several ranks that compute a stage together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from sparring.data.records import Reply
from sparring.opponent.protocol import Engine, Prompt, Stream, sample_parts
from sparring.policy.batches import assign_to_ranks
from sparring.policy.ranks import from_main, gathered, rank, rank_count
from sparring.policy.strategies import rank_names_hidden


class OfAllRanks:
    """The engines of all ranks as one: prompts are shared by tokens. A reply depends only on its own random stream."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def at(self, temperature: float) -> OfAllRanks:
        return OfAllRanks(self.engine.at(temperature))

    def close(self) -> None:
        self.engine.close()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """As `Engine.sample`, on every rank: each samples its share of the prompts, then the replies are gathered."""
        shares = assign_to_ranks([len(prompt.token_ids) for prompt in prompts], rank_count())
        places = sorted(shares[rank()])
        replies = self.engine.sample([prompts[place] for place in places], stream, logps)
        found = {place: reply for part in gathered(list(zip(places, replies, strict=True))) for place, reply in part}
        return [found[place] for place in range(len(prompts))]


class OfRankZero:
    """An engine with its own processes or servers: only rank 0 has it, and broadcasts the replies part by part."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        """Raises, on every rank, the UserError of `make`, which only rank 0 calls."""
        self._engine: Engine | None = None
        from_main(partial(self._start, make))

    def _start(self, make: Callable[[], Engine]) -> None:
        with rank_names_hidden():
            self._engine = make()

    def at(self, temperature: float) -> OfRankZero:
        other = copy.copy(self)
        other._engine = self._engine and self._engine.at(temperature)
        return other

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        return [reply for _, replies in self.sample_parts([prompts], stream, logps) for reply in replies]

    def sample_parts(self, parts: Sequence[Sequence[Prompt]], stream: Stream, logps: bool = False) -> Iterator[tuple[int, list[Reply]]]:
        """The numbers and replies of finished parts, on every rank. All ranks must iterate together."""
        own = sample_parts(self._engine, parts, stream, logps) if self._engine else iter(())
        for _ in parts:
            yield from_main(partial(next, own))
        from_main(partial(next, own, None))  # lets the engine finish after the last part
