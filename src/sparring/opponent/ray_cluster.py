"""Joining a Ray cluster, or starting one on this machine, without Ray's output in the terminal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from types import ModuleType
from typing import Any

from sparring.console import log
from sparring.errors import UserError

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
            remedy="start Ray on this machine (`ray start`, or `ray start --address=HEAD`) and say `auto`; null needs no cluster",
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm)  # Ray replaces the handler
    nodes = [node for node in ray.nodes() if node["Alive"]]
    size = ray.cluster_resources()
    log.info(f"sampling: Ray {ray.__version__} at {address}, {len(nodes)} nodes, {size.get('CPU', 0):g} CPUs, {size.get('GPU', 0):g} GPUs")


def _require_listener(address: str) -> None:
    """Raise OSError within seconds if nothing listens at host:port; Ray itself would try for long."""
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
