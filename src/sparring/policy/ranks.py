"""The ranks of a stage: their communication, by Accelerate, and how they share a model: replicas or FSDP2's shards.

A process without a launcher is the only rank, and no function here communicates in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object, reduce
from torch import Tensor
from torch.distributed import DistNetworkError

from sparring.config.sections import INSTEAD_OF_DEEPSPEED, NO_DEEPSPEED
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


# Rank 0 loads, checks and writes for all, while the others wait in a collective
WAIT_FOR_OTHERS = timedelta(hours=2)

# Variables that torchrun and accelerate set in a rank's environment
NAMES_OF_RANK = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
PREFIXES_OF_LAUNCHERS = ("TORCHELASTIC_", "ROLE_", "ACCELERATE_")

_joined: Accelerator | None = None


def accelerator_of_rank() -> Accelerator | None:
    """The one Accelerator of a rank; None in a process without a launcher."""
    return _joined


def join(strategy: str, cpu: bool) -> Accelerator:
    """Join the ranks that the launcher has started, with the launcher's own plugin or else with the recipe's `strategy`.

    A single process is a rank too, the only one.
    """
    global _joined
    use_slurm_names()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UserError(NO_DEEPSPEED, where="ACCELERATE_USE_DEEPSPEED", remedy=f"start the ranks without it; {INSTEAD_OF_DEEPSPEED}")
    single = int(os.environ.get("WORLD_SIZE", "1")) == 1
    plugin: FullyShardedDataParallelPlugin | None = None
    if strategy == "fsdp2" and not single and "ACCELERATE_USE_FSDP" not in os.environ:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=True, auto_wrap_policy="transformer_based_wrap")
    group = InitProcessGroupKwargs(timeout=WAIT_FOR_OTHERS)
    with _port_is_free():
        _joined = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=[group], fsdp_plugin=plugin)
    if cpu and os.environ.get("ACCELERATE_USE_FSDP") == "true" and not single:
        # torch supports FSDP on a CPU, but Accelerate does not set it up
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin or FullyShardedDataParallelPlugin()
    _joined.gradient_accumulation_steps = 1  # a config file's own would divide the loss
    if _joined.distributed_type == DistributedType.FSDP and not _joined.is_fsdp2:
        raise UserError("FSDP of version 1 is not supported", where="launcher.config_file", remedy="set fsdp_version: 2 in it")
    if is_sharded():
        _joined.state.fsdp_plugin.cpu_ram_efficient_loading = False  # weights are distributed by training/ranked.py
    return _joined


@contextlib.contextmanager
def _port_is_free() -> Iterator[None]:
    """Raise UserError if the port of ranks that were started by hand is in use."""
    try:
        yield
    except DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        where = f"MASTER_ADDR, MASTER_PORT ({os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')})"
        raise UserError("another program has this port", where=where, remedy="export another MASTER_PORT, the same for all ranks") from None


def is_sharded() -> bool:
    """Whether this rank holds only a part of the weights (FSDP2), so that every pass needs all ranks."""
    return _joined is not None and _joined.distributed_type == DistributedType.FSDP


def load_unsharded() -> None:
    """Make transformers load whole models on all ranks.

    With this variable, which files of `accelerate config` set, it would leave the weights uninitialised on all ranks but 0, also for
    sampling.
    """
    os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)


def use_slurm_names() -> None:
    """Under `srun`, set the variables that torch and Accelerate read from those of Slurm."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")  # of the step that srun started, not of the allocation around it
    if tasks is None or "RANK" in os.environ or int(tasks) == 1:
        return
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
    os.environ.update({"WORLD_SIZE": tasks, **{ours: os.environ[theirs] for ours, theirs in names.items()}})
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        if int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) > 1:
            raise UserError("MASTER_ADDR is not set, the address of the first node", where="sparring stage under srun")
        os.environ["MASTER_ADDR"] = "127.0.0.1"


@contextlib.contextmanager
def rank_names_hidden() -> Iterator[None]:
    """Hide a rank's variables from processes that are started in this context and are not ranks: with them, torch in these processes would
    wait for the ranks' store."""
    hidden = {name: value for name, value in os.environ.items() if name in NAMES_OF_RANK or name.startswith(PREFIXES_OF_LAUNCHERS)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
