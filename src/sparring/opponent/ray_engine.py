"""The ray engine: the same sampling on many machines. Ray Data passes batches of prompts to workers that hold the player.

Ray itself starts workers, restarts lost ones, repeats their batches and uses nodes that join. Every row has its own random stream, so it
does not matter which worker samples it, or how often.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
import socket
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from sparring.config import RaySection, SamplerSettings
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent.engines import make_engine
from sparring.opponent.protocol import Engine, Prompt, Stream
from sparring.opponent.replies import as_columns
from sparring.policy.compute import memory_error

CONNECT_SECONDS = 10.0


def import_ray() -> ModuleType:
    """Ray with Ray Data."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    import ray
    import ray.data

    return ray


def address_of(asked: str | None) -> str:
    """The address for the option `address`; "local" starts our own Ray."""
    return asked or os.environ.get("RAY_ADDRESS") or "local"


def join(ray: ModuleType, asked: str | None) -> None:
    """Connect this process to the cluster at `asked`. Raises UserError if none answers."""
    address = address_of(asked)
    here = {"include_dashboard": False} if address == "local" else {}
    sigterm = signal.getsignal(signal.SIGTERM)
    _quieten(ray)
    try:
        _require_listener(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (OSError, RuntimeError, ValueError) as error:  # also for a cluster with another version of Ray or Python
        raise UserError(
            f"cannot join the Ray cluster at {address!r}: {last_line(error)}",
            where="sampling.ray.address",
            remedy="start Ray on this machine (`ray start`, or `ray start --address=HEAD`) and set `auto`; null needs no cluster",
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)  # Ray replaces the handler
    nodes = [node for node in ray.nodes() if node["Alive"]]
    size = ray.cluster_resources()
    log.info(f"sampling: Ray {ray.__version__} at {address}, {len(nodes)} nodes, {size.get('CPU', 0):g} CPUs, {size.get('GPU', 0):g} GPUs")


def _require_listener(address: str) -> None:
    """Raise OSError within seconds if nothing listens at host:port; Ray itself would retry for a long time."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _quieten(ray: ModuleType) -> None:
    """Send Ray's output to its log folder, and its messages to the driver (such as lost workers) to the run's log, not the terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):  # not those that others added
            handler.setLevel(logging.CRITICAL)
    ray._private.worker.print_to_stdstream = _to_run_log  # there is no option for it


def _to_run_log(batch: dict[str, Any], *_: Any, **__: Any) -> None:
    for line in batch["lines"]:
        log.debug(f"ray: {line.strip().splitlines()[0] if line.strip() else ''}")


def last_line(error: BaseException) -> str:
    """The last line of an error of Ray, below its traces."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


PROMPTS = pa.schema({"row_id": pa.string(), "replica": pa.int32(), "token_ids": pa.list_(pa.int32()), "logps": pa.bool_()})
REPLIES = pa.schema(
    {
        "row_id": pa.string(),
        "replica": pa.int32(),
        "token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
        "logps": pa.list_(pa.float64()),
        "worker": pa.string(),
        "restarted": pa.bool_(),
    }
)
Part = Sequence[Prompt]


def make_ray(settings: SamplerSettings, chat: Chat, folder: Path) -> RayEngine:
    """The Ray engine, whose workers run the recipe's inner engine."""
    sampling = settings.sampling
    inside = settings.with_sampling(engine=sampling.inner.name)
    return RayEngine(sampling.ray, folder, partial(make_engine, inside, chat, folder.resolve()), sampling.temperature)


class RayEngine(Engine):
    """Samples with the engine that `make(temperature)` gives, one in every worker. `folder`: the player, visible on every node."""

    def __init__(self, section: RaySection, folder: Path, make: Callable[[float], Engine], temperature: float) -> None:
        """Joins the cluster, or starts one. `make` is pickled. Raises UserError if no cluster answers."""
        self.section, self.folder, self.make, self.temperature = section, folder.resolve(), make, temperature
        self._ray = import_ray()
        self._joined_here = not self._ray.is_initialized()
        if self._joined_here:
            join(self._ray, section.address)

    def at(self, temperature: float) -> RayEngine:
        other = copy.copy(self)
        other.temperature = temperature
        return other

    def close(self) -> None:
        """Leave the cluster, or stop it if it was started here."""
        if self._joined_here:
            self._ray.shutdown()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """One reply per prompt, in the order of the prompts."""
        return [reply for _, replies in self.sample_parts([prompts], stream, logps) for reply in replies]

    def sample_parts(self, parts: Sequence[Part], stream: Stream, logps: bool = False) -> Iterator[tuple[int, list[Reply]]]:
        """(number of the part, its replies): the first part first, with log-probs if `logps`, then the others as they are completed.

        No worker waits for the end of a part. Raises the UserError of a worker, and UserError if no reply arrived for `stall_minutes`.
        """
        inbox, workers, size = Inbox(parts), Counter[tuple[str, bool]](), self.section.batch_rows
        tables = [
            _as_table(part[first : first + size], logps and number == 0)
            for number, part in enumerate(parts)
            for first in range(0, len(part), size)
        ]
        for table in self._sampled(tables, stream):
            _raise_error_of(table)
            workers.update(zip(table["worker"].to_pylist(), table["restarted"].to_pylist(), strict=True))
            yield from inbox.put([_as_reply(row) for row in table.to_pylist()])
        inbox.check_complete()
        _report(workers)

    def _sampled(self, tables: list[pa.Table], stream: Stream) -> Iterator[pa.Table]:
        """The workers' replies to the tables, one call per table, as they arrive."""
        data, gpus = self._ray.data, self._gpus()
        data.DataContext.get_current().execution_no_progress_timeout_s = self.section.stall_minutes * 60  # a data set takes a copy
        most = min(len(tables), self.section.max_workers or len(tables))
        now = max(1, min(most, self._room(gpus)))
        replies = data.from_arrow(tables).map_batches(
            Worker,
            fn_constructor_args=(partial(self.make, self.temperature), self.folder, stamp(self.folder), stream),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self.section.cpus_per_worker,
            num_gpus=gpus,
            compute=data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=now),
        )
        with self._as_user_errors(data):
            yield from replies.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def _gpus(self) -> float:
        """GPUs of a worker: the recipe's, or one if the cluster has any."""
        if self.section.gpus_per_worker is not None:
            return self.section.gpus_per_worker
        return 1.0 if self._ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def _room(self, gpus: float) -> int:
        """How many workers fit on the current nodes."""
        wanted = {"CPU": self.section.cpus_per_worker, "GPU": gpus}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = sum(min(int(node.get(kind, 0) / count) for kind, count in wanted.items() if count) for node in nodes)
        if room == 0:
            what = f"no node of the Ray cluster has the {wanted['CPU']:g} CPUs and {gpus:g} GPUs that a worker needs"
            if address_of(self.section.address) == "local":
                raise UserError(what, where="sampling.ray.cpus_per_worker, sampling.ray.gpus_per_worker", remedy="lower them")
            log.warning(f"sampling: {what}; waiting for one to join")
        return room

    @contextmanager
    def _as_user_errors(self, data: ModuleType) -> Iterator[None]:
        """Convert Ray's errors to UserError."""
        try:
            yield
        except data.exceptions.ExecutionTimeoutError:
            raise UserError(
                f"no reply came in for {self.section.stall_minutes:g} minutes: no node has room for a worker, or the workers crash "
                "repeatedly (usually out of memory), or one batch takes longer than that",
                where="sampling.ray",
                remedy="see `ray status` and Ray's logs; lower sampling.batch_tokens or sampling.ray.batch_rows, or give more "
                "stall_minutes; then rerun: the run resumes from here",
            ) from None
        except self._ray.exceptions.RayError as error:
            if "No module named" in str(error):
                what = f"a worker cannot be started: {last_line(error)}"
                remedy = "every node of the cluster needs the same sparring and the same Python"
                raise UserError(what, where="sampling.ray", remedy=remedy) from None
            raise


class Worker:
    """Runs on the nodes: an engine with its model, for the duration of the job. Errors are returned as rows, because Ray would wrap, retry
    and print them."""

    def __init__(self, make: Callable[[], Engine], folder: Path, expected: dict[str, list[int]], stream: Stream) -> None:
        import ray

        context = ray.get_runtime_context()
        self.host, self.stream = socket.gethostname(), stream
        self.facts = {"worker": f"{context.get_node_id()}/{os.getpid()}", "restarted": context.was_current_actor_reconstructed}
        self.error: str | None = None
        try:
            _check_model(folder, expected, self.host)
            self.engine = make()
        except Exception as error:
            self.error = _as_text(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.error is None:
            try:
                prompts = [Prompt(row["row_id"], row["replica"], tuple(row["token_ids"])) for row in batch.to_pylist()]
                replies = self.engine.sample(prompts, self.stream, batch["logps"][0].as_py())
                facts = {name: [value] * len(prompts) for name, value in self.facts.items()}
                return pa.table({**as_columns(replies), **facts, "logps": [reply.logps for reply in replies]}, REPLIES)
            except Exception as error:
                self.error = _as_text(error)
        return pa.table({"error": [self.error], "host": [self.host]})

    def __del__(self) -> None:
        """Called by Ray at the end of the job."""
        if hasattr(self, "engine"):
            self.engine.close()


class Inbox:
    """Puts replies that arrive in any order into their parts and positions, and refuses unexpected ones."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._place = {(p.row_id, p.replica): (number, place) for number, part in enumerate(parts) for place, p in enumerate(part)}
        self._open: dict[int, list[Any]] = {number: [None] * len(part) for number, part in enumerate(parts)}
        self._missing = [len(part) for part in parts]
        assert len(self._place) == sum(self._missing), "a row and replica is requested twice"

    def put(self, replies: Sequence[Reply]) -> Iterator[tuple[int, list[Reply]]]:
        """(number, replies) of the parts that are complete now; none before the first part is.

        Raises RuntimeError for a reply that was not requested or is a duplicate.
        """
        for reply in replies:
            if (reply.row_id, reply.replica) not in self._place:
                raise RuntimeError(f"Ray returned a reply twice, or an unknown one: row {reply.row_id}, replica {reply.replica}")
            number, place = self._place.pop((reply.row_id, reply.replica))
            self._open[number][place] = reply
            self._missing[number] -= 1
        if self._missing[0] == 0:
            for number in [number for number in self._open if self._missing[number] == 0]:
                yield number, self._open.pop(number)

    def check_complete(self) -> None:
        """Raise RuntimeError if a reply is missing."""
        for row_id, replica in self._place:
            raise RuntimeError(f"Ray lost {len(self._place)} replies, such as that of row {row_id}, replica {replica}")


def stamp(folder: Path) -> dict[str, list[int]]:
    """File name -> [bytes, second of its last change] of the model's files: cheap, and enough to detect another player's folder."""
    files = [file for pattern in ("*.safetensors", "*config.json") for file in sorted(folder.glob(pattern))]
    return {file.name: [file.stat().st_size, int(file.stat().st_mtime)] for file in files}


def _check_model(folder: Path, expected: dict[str, list[int]], host: str) -> None:
    if stamp(folder) != expected:
        trouble = "has other files" if folder.is_dir() else "does not exist"
        raise UserError(
            f"the model folder {folder} {trouble} on the node {host}",
            where="run_dir",
            remedy="every node must see the run directory (and model.path) under the same path: put it on a file system that they share",
        )


def _as_table(batch: Part, logps: bool) -> pa.Table:
    rows = [{"row_id": prompt.row_id, "replica": prompt.replica, "token_ids": list(prompt.token_ids), "logps": logps} for prompt in batch]
    return pa.Table.from_pylist(rows, PROMPTS)


def _as_reply(row: dict[str, Any]) -> Reply:
    return replace(Reply.of_row(row), logps=None if row["logps"] is None else tuple(row["logps"]))


def _as_text(error: Exception) -> str:
    problem = memory_error(error) or error
    if isinstance(problem, UserError):
        return json.dumps({"what": problem.what, "where": problem.where, "remedy": problem.remedy})
    return json.dumps({"traceback": "".join(traceback.format_exception(error))})


def _raise_error_of(table: pa.Table) -> None:
    """Raise a worker's error: UserError unchanged, anything else as a RuntimeError with the worker's traceback."""
    if "error" not in table.column_names:
        return
    found, host = json.loads(table["error"][0].as_py()), table["host"][0].as_py()
    if "traceback" in found:
        raise RuntimeError(f"a Ray worker on {host} failed:\n{found['traceback']}")
    raise UserError(found["what"], where=found["where"], remedy=found["remedy"])


def _report(workers: Counter[tuple[str, bool]]) -> None:
    """workers: (node/process, whether it replaces a lost one) -> replies."""
    nodes, again = Counter[str](), sum(restarted for _, restarted in workers)
    for (name, _), replies in workers.items():
        nodes[name.partition("/")[0]] += replies
    shares = " + ".join(str(count) for _, count in nodes.most_common())
    sampled = f"{len(workers)} Ray workers on {len(nodes)} nodes sampled {shares} replies"
    log.info(f"sampling: {sampled}" + (f"; {again} of the workers replaced lost ones" if again else ""))
