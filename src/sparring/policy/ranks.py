"""Communication between the ranks of a stage: own rank, broadcast from rank 0, gather from all, sum. Uses only Accelerate.

A process without a launcher is the only rank, and no function here communicates in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor

from sparring.errors import UserError
from sparring.rundir import differences

# Numbers that one collective sums: 25 MB of float32, as in torch's DistributedDataParallel. Smaller buckets would pay the network's latency
# for every small parameter; larger ones need more memory for the copy that is sent.
BUCKET = 25 * 2**20 // 4

T = TypeVar("T")


def rank_count() -> int:
    """Number of ranks that compute the stage together; 1 without a launcher."""
    return PartialState().num_processes if PartialState._shared_state else 1


def rank() -> int:
    """This rank's index from 0; 0 without a launcher."""
    return PartialState().process_index if PartialState._shared_state else 0


def is_main() -> bool:
    """Whether this rank writes: files, the log, the progress."""
    return rank() == 0


def gathered(value: T) -> list[T]:
    """The values of all ranks, in the order of the ranks, on every rank."""
    return gather_object([value]) if rank_count() > 1 else [value]


def from_main(work: Callable[[], T]) -> T:
    """Broadcast the result of `work`, which only rank 0 calls; its UserError is raised on every rank."""
    if rank_count() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = (error.what, error.where, error.remedy)
    result, problem = broadcast_object_list(outcome)
    if problem is not None:
        what, where, remedy = problem
        raise AgreedError(what, where=where, remedy=remedy)
    return result


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace the contiguous `tensors`, of equal shapes and one number format on all ranks, by their sums over the ranks."""
    for parts in _buckets(tensors):
        total = reduce(torch.cat(parts), "sum")
        for part, summed in zip(parts, total.split([len(part) for part in parts]), strict=True):
            part.copy_(summed)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Flat views of the tensors, split and grouped in order so that every group but the last has exactly `BUCKET` numbers."""
    parts: list[Tensor] = []
    room = BUCKET
    for tensor in tensors:
        rest = tensor.view(-1)
        while len(rest):
            part, rest = rest[:room], rest[room:]
            parts.append(part)
            room -= len(part)
            if room == 0:
                yield parts
                parts, room = [], BUCKET
    if parts:
        yield parts


class AgreedError(UserError):
    """An error that every rank raises at the same place, so that rank 0 may report it for all of them."""


def require_equal(values: dict[str, Any], what: str, remedy: str) -> None:
    """Raise UserError on every rank if a rank has other `values` (JSON) than rank 0, with the rank and the differences."""
    found: Sequence[dict[str, Any]] = gathered(values)
    for number, other in enumerate(found):
        if other != found[0]:
            lines = "\n  ".join(differences(found[0], other))
            raise AgreedError(f"rank {number} {what} than rank 0:\n  {lines}", remedy=remedy)
