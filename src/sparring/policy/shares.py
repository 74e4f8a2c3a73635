"""How ranks share what a training holds: every rank has all of it, or its part. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parallel:
    """`devices` that work on one stage, and how they share it."""

    devices: int = 1
    strategy: str = "single"

    @property
    def is_sharded(self) -> bool:
        """Whether each device holds a part of the float32 weights, the gradients and the optimizer states.

        A layer's weights are then gathered, in the format that computes, when it is their turn, so that there is no copy in it.
        """
        return self.strategy == "fsdp2"

    @property
    def part(self) -> float:
        """The share of weights, gradients and optimizer states that one device holds."""
        return 1 / self.devices if self.is_sharded else 1.0
