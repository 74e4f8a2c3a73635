"""Calls of machine 0 to the other machines of a game: which stage their ranks compute together next.

Machine 0 listens while its game lasts. Every other machine connects and requests the next call with a line of JSON; the answer comes when
there is a call. A closed connection means that machine 0 has stopped. The ranks themselves connect through torch's rendezvous.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple, Self

from sparring.console import counted, log
from sparring.errors import UserError

Address = tuple[str, int]

WHERE = "launcher.main_process_ip, launcher.main_process_port"
# How long machine 0 waits at the end of its game until all machines have received its end, and how long they wait for it to start or resume
FAREWELL_SECONDS, PATIENCE_SECONDS = 60.0, 600.0
CONNECT_SECONDS, RETRY_SECONDS = 10.0, 0.5
MOST_BYTES = 1000  # of a request or an answer
# Seconds until a silent connection is tested, and between tests; tests without an answer until it counts as lost
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6}


class Call(NamedTuple):
    """A stage that the ranks of all machines compute; None at the end of the game. Calls are numbered from 1."""

    number: int
    stage: str | None


class Calls:
    """Machine 0's side. A call is open while its ranks run: a machine that asks later gets the next one."""

    def __init__(self, port: int, machines: int, seed: int) -> None:
        """Listens on all interfaces, as torch's rendezvous does: a name of this machine may mean its loopback here.

        machines: how many play, machine 0 included. Raises OSError where it cannot listen.
        """
        self._others, self._seed = machines - 1, seed
        self._changed = threading.Condition()
        self._call: Call | None = None
        self._count, self._is_over = 0, False
        self._released: set[int] = set()
        self._server = _Server(port, self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """At the end of the game, report it to the other machines; after an error, let them wait for machine 0 to resume."""
        try:
            if error is None:
                self._end()
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
            self._server.shutdown()
            self._server.server_close()

    @contextlib.contextmanager
    def call(self, stage: str) -> Iterator[None]:
        """Keep the call for `stage` open while the context lasts."""
        self._set(stage)
        try:
            yield
        finally:
            with self._changed:
                self._call = None

    def next_after(self, number: int, seed: int) -> Call | None:
        """Wait for the first call after `number`. None if machine 0 stops, or plays the game of another seed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or seed != self._seed or (self._call is not None and self._call.number > number))
            return None if self._is_over or seed != self._seed else self._call

    def release(self, machine: int) -> None:
        """Record that `machine` has received the end of the game."""
        with self._changed:
            self._released.add(machine)
            self._changed.notify_all()

    def _end(self) -> None:
        self._set(None)
        with self._changed:
            if not self._changed.wait_for(self._all_released, 1):
                log.info(f"waiting at most {FAREWELL_SECONDS:.0f} s for the other {counted(self._others, 'machine')} to end")
                self._changed.wait_for(self._all_released, FAREWELL_SECONDS)

    def _set(self, stage: str | None) -> None:
        with self._changed:
            self._count += 1
            self._call = Call(self._count, stage)
            self._changed.notify_all()

    def _all_released(self) -> bool:
        return len(self._released) >= self._others


class _Server(ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True

    def __init__(self, port: int, calls: Calls) -> None:
        super().__init__(("", port), _Handler)
        self.calls = calls


class _Handler(StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Answer the requests of one machine. The connection is closed at anything that is not such a request."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            while line := self.rfile.readline(MOST_BYTES):
                asked = json.loads(line)
                call = self.server.calls.next_after(asked["after"], asked["seed"])
                if call is None:
                    return
                self.wfile.write(json.dumps(call._asdict()).encode() + b"\n")
                if call.stage is None:
                    self.server.calls.release(asked["machine"])


def answer_calls(address: Address, machine: int, seed: int, start: Callable[[str], None]) -> None:
    """Call `start` with every stage that machine 0 calls for, until its game ends.

    Raises UserError if machine 0 cannot be reached for `PATIENCE_SECONDS`, which is also the time that it has to resume after a failure,
    and at once if no machine has this address or another program answers there.
    """
    last_contact = time.monotonic()
    while time.monotonic() - last_contact < PATIENCE_SECONDS:
        try:
            with socket.create_connection(address, CONNECT_SECONDS) as connection:
                connected = time.monotonic()
                _notice_silence(connection)
                try:
                    for stage in _calls(connection, machine, seed):
                        start(stage)
                    return
                finally:
                    if time.monotonic() - connected > RETRY_SECONDS:  # a connection that closes at once was not the game's
                        last_contact = time.monotonic()
        except socket.gaierror as error:
            raise UserError(f"{address[0]} is not the address of a machine: {error.strerror}", where=WHERE) from None
        except OSError:  # not started yet, or stopped
            time.sleep(RETRY_SECONDS)
    raise UserError(
        f"machine 0 has not answered at {address[0]}:{address[1]} for {PATIENCE_SECONDS / 60:.0f} minutes",
        where=WHERE,
        remedy="start `sparring run` on machine 0, then again on this machine",
    )


def _notice_silence(connection: socket.socket) -> None:
    """Wait for answers without a limit, but find out within some two minutes if the other machine is switched off."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _calls(connection: socket.socket, machine: int, seed: int) -> Iterator[str]:
    """The stages to compute. Raises ConnectionError if machine 0 stops before its game ends, UserError if it is another program."""
    number = 0
    with connection.makefile("rw", encoding="utf-8", errors="replace") as lines:
        while True:
            lines.write(json.dumps({"machine": machine, "seed": seed, "after": number}) + "\n")
            lines.flush()
            call = _read(lines.readline(MOST_BYTES))
            if call.stage is None:
                return
            number = call.number
            yield call.stage


def _read(line: str) -> Call:
    if not line.endswith("\n"):
        raise ConnectionError("machine 0 has stopped")
    try:
        found: dict[str, Any] = json.loads(line)
        return Call(found["number"], found["stage"])
    except (ValueError, KeyError, TypeError):
        remedy = "choose another launcher.main_process_port, the same on all machines; the calls use the next one"
        raise UserError("another program answers at the port for the calls of machine 0", where=WHERE, remedy=remedy) from None
