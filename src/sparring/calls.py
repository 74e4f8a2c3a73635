"""Calls of machine 0 to the other machines of a game: which stage their ranks compute together next.

Machine 0 listens while its game lasts. Every other machine connects and requests the next call with a line of JSON; the answer comes when
there is a call. A closed connection means that machine 0 has stopped. The ranks themselves connect through torch's rendezvous.

Both sides read a random token in the run directory, which all machines share: a machine of another run, or of another seed, is refused.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple, Self

from sparring.console import counted, log
from sparring.errors import UserError
from sparring.rundir import read_json, write_json

Address = tuple[str, int]

WHERE = "launcher.main_process_ip, launcher.main_process_port"
# How long machine 0 waits at the end of its game until all machines have received its end, and how long they wait for it to start or resume
FAREWELL_SECONDS, PATIENCE_SECONDS = 60.0, 600.0
CONNECT_SECONDS, RETRY_SECONDS = 10.0, 0.5
FIRST_LINE_SECONDS, MOST_THREADS = 10.0, 200  # so that strangers who connect cannot exhaust machine 0
MOST_BYTES, MOST_LETTERS = 8000, 1000  # of a request or an answer, and of the text of a failure
# Seconds until a silent connection is tested, and between tests; tests without an answer until it counts as lost; the milliseconds that
# data which was sent may stay without a receipt
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}
TOKEN = ".calls.json"


# What a line of another program raises, or a connection that is lost
NO_REQUEST = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class _Refused(Exception):
    """Machine 0 plays another game than this machine follows."""


class Call(NamedTuple):
    """A stage that the ranks of all machines compute; None at the end of the game. Calls are numbered from 1."""

    number: int
    stage: str | None


class Calls:
    """Machine 0's side. A call is open while its ranks run: a machine that asks later gets the next one."""

    def __init__(self, port: int, machines: int, root: Path) -> None:
        """Listens on all interfaces, as torch's rendezvous does: a name of this machine may mean its loopback here.

        machines: how many play, machine 0 included; root: the run directory. Raises OSError where it cannot listen.
        """
        self._others, self._root, self._token = machines - 1, root, secrets.token_hex(16)
        self._changed = threading.Condition()
        self._call: Call | None = None
        self._failure: str | None = None
        # a call of an earlier Calls of this game must not look like a later one
        self._count, self._is_over = time.time_ns(), False
        self._released: set[int] = set()
        self._write_token(is_over=False)
        self._server = _Server(port, self)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """At the end of the game, report it to the other machines; after an error, let them wait for machine 0 to resume."""
        try:
            if error is None:
                self._end()
                self._write_token(is_over=True)
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
            self._server.shutdown()
            self._server.server_close()

    @contextlib.contextmanager
    def call(self, stage: str) -> Iterator[None]:
        """Keep the call for `stage` open while the context lasts. Meanwhile `failure` is what other machines report."""
        self._set(stage)
        try:
            yield
        finally:
            with self._changed:
                self._call = None

    def accepts(self, token: str, machine: int) -> bool:
        """Whether a request comes from another machine of this game."""
        return secrets.compare_digest(token.encode(), self._token.encode()) and 1 <= machine <= self._others

    def failure(self) -> str | None:
        """What another machine reported about its ranks of the open call."""
        with self._changed:
            return self._failure

    def report(self, machine: int, number: int, text: str) -> None:
        """Record that the ranks of `machine` have failed in call `number`; a call that is over ignores it."""
        with self._changed:
            if self._call is not None and self._call.number == number:
                self._failure = f"machine {machine}: {text}"

    def next_after(self, number: int) -> Call | None:
        """Wait for the first call after `number`. None if machine 0 stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or (self._call is not None and self._call.number > number))
            return None if self._is_over else self._call

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
            self._call, self._failure = Call(self._count, stage), None
            self._changed.notify_all()

    def _all_released(self) -> bool:
        return len(self._released) >= self._others

    def _write_token(self, is_over: bool) -> None:
        write_json(self._root / TOKEN, {"token": self._token, "is_over": is_over})
        (self._root / TOKEN).chmod(0o600)


class _Server(ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True

    def __init__(self, port: int, calls: Calls) -> None:
        super().__init__(("", port), _Handler)
        self.calls = calls

    def verify_request(self, *_: object) -> bool:
        """Whether one more connection may be handled."""
        return threading.active_count() < MOST_THREADS


class _Handler(StreamRequestHandler):
    server: _Server
    timeout = FIRST_LINE_SECONDS

    def handle(self) -> None:
        """Answer the requests of one machine. The connection is closed at anything that is not such a request."""
        calls = self.server.calls
        with contextlib.suppress(*NO_REQUEST):
            while line := self.rfile.readline(MOST_BYTES):
                request = json.loads(line)
                if not calls.accepts(request["token"], request["machine"]):
                    self._answer({"refused": True})
                    return
                _notice_silence(self.connection)
                if request["failed"] is not None:
                    calls.report(request["machine"], request["after"], request["failed"])
                call = calls.next_after(request["after"])
                if call is None:
                    return
                self._answer(call._asdict())
                if call.stage is None:
                    calls.release(request["machine"])

    def _answer(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")


@dataclass
class _Machine:
    """Another machine's side: its number, the last call that it has answered, and the failure of its ranks in it."""

    number: int
    root: Path
    start: Callable[[str], str | None]
    after: int = 0
    failed: str | None = None

    def token(self) -> dict[str, Any] | None:
        """What machine 0 has written last; None before its first start."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = read_json(self.root / TOKEN)
            return found
        return None

    def answer(self, connection: socket.socket, token: str) -> None:
        """Start the stages that machine 0 calls for. Raises ConnectionError if it stops before its game ends, UserError if it is another
        program, _Refused if it plays another game."""
        with connection.makefile("rw", encoding="utf-8", errors="replace") as lines:
            while True:
                request = {"token": token, "machine": self.number, "after": self.after, "failed": self.failed}
                lines.write(json.dumps(request) + "\n")
                lines.flush()
                call = _read(lines.readline(MOST_BYTES))
                if call.stage is None:
                    return
                self.after = call.number
                failed = self.start(call.stage)
                self.failed = None if failed is None else failed[:MOST_LETTERS]


def answer_calls(address: Address, machine: int, root: Path, start: Callable[[str], str | None]) -> None:
    """Call `start` with every stage that machine 0 calls for, until its game ends. `start` returns what failed, for machine 0 to report.

    Raises UserError if machine 0 cannot be reached for `PATIENCE_SECONDS`, which is also the time that it has to resume after a failure,
    and at once if no machine has this address or another program answers there.
    """
    this, last_contact, problem = _Machine(machine, root, start), time.monotonic(), "machine 0 has not answered"
    while time.monotonic() - last_contact < PATIENCE_SECONDS:
        token, connected = this.token(), None
        try:
            if token is None:
                raise ConnectionError("machine 0 has not started")
            with socket.create_connection(address, CONNECT_SECONDS) as connection:
                connected = time.monotonic()
                _notice_silence(connection)
                this.answer(connection, token["token"])
                return
        except _Refused:
            if token is not None and token["is_over"]:  # machine 0 plays the game of the next seed
                return
            problem = "another game has answered"
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
                raise UserError(f"{address[0]} is not the address of a machine: {error.strerror}", where=WHERE) from None
            # not started yet, or stopped; a connection that closes at once was not the game's
            if connected is not None and time.monotonic() - connected > RETRY_SECONDS:
                last_contact = time.monotonic()
        time.sleep(RETRY_SECONDS)
    raise UserError(
        f"{problem} at {address[0]}:{address[1]} for {PATIENCE_SECONDS / 60:.0f} minutes",
        where=WHERE,
        remedy="start `sparring run` on machine 0, with the same run_dir and port, then again on this machine",
    )


def _notice_silence(connection: socket.socket) -> None:
    """Wait for lines without a limit, but find out within some two minutes if the other machine is switched off."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _read(line: str) -> Call:
    if not line.endswith("\n"):
        raise ConnectionError("machine 0 has stopped")
    try:
        found: dict[str, Any] = json.loads(line)
        if "refused" in found:
            raise _Refused
        return Call(found["number"], found["stage"])
    except (ValueError, KeyError, TypeError, RecursionError):
        remedy = "choose another launcher.main_process_port, the same on all machines; the calls use the next one"
        raise UserError("another program answers at the port for the calls of machine 0", where=WHERE, remedy=remedy) from None
