"""How ranks share what a training holds: which part of weights, gradients and optimizer states each of them has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

# What of a training's state each strategy cuts into one part per device; what it does not cut, every device holds whole.
CUT = {
    "single": frozenset(),
    "ddp": frozenset(),
    "deepspeed-zero2": frozenset({"masters", "gradients", "optimizer"}),
    "deepspeed-zero3": frozenset({"weights", "masters", "gradients", "optimizer"}),
    "fsdp2": frozenset({"weights", "masters", "gradients", "optimizer"}),
}
# FSDP2 keeps float32 shards alone and gathers them in the format that computes; DeepSpeed has shards of both.
WITHOUT_COPY = frozenset({"fsdp2"})


@dataclass(frozen=True)
class Parallel:
    """`devices` that work on one stage, and how they share it."""

    devices: int = 1
    strategy: str = "single"

    def part(self, what: str) -> float:
        """The share of `what` that one device holds."""
        return 1 / self.devices if what in CUT[self.strategy] else 1.0

    @property
    def keeps_copy(self) -> bool:
        """Whether there are shards in the compute format in addition to those of the float32 weights."""
        return self.strategy not in WITHOUT_COPY

    @property
    def cuts(self) -> bool:
        """Whether the strategy shards anything over the devices."""
        return bool(CUT[self.strategy])

    @property
    def gathers(self) -> bool:
        """Whether a layer's weights are put together when it is their turn."""
        return "weights" in CUT[self.strategy]
