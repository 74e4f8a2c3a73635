"""Calls of machine 0 to the other machines of a game: which stage their ranks compute together next.

Machine 0 listens while its game lasts. Every other machine connects and requests the next call with a line of JSON; the answer comes when
there is a call. A closed connection means that machine 0 has stopped. The ranks themselves connect through torch's rendezvous.

Both sides read a random token in the run directory, which all machines share: a machine of another run, or of another seed, is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple, Self

from sparring.console import counted, log
from sparring.errors import UserError
from sparring.rundir import CALLS_TOKEN, read_json

Address = tuple[str, int]
Start = Callable[[str, Callable[[], str | None]], str | None]

WHERE = "launcher.main_process_ip, launcher.main_process_port"
# How long machine 0 waits at the end of its game until all machines have received its end, and how long they wait for it to start or resume
FAREWELL_SECONDS, PATIENCE_SECONDS = 60.0, 600.0
CONNECT_SECONDS, RETRY_SECONDS = 10.0, 0.5
FIRST_LINE_SECONDS, MOST_THREADS = 10.0, 200  # so that strangers who connect cannot exhaust machine 0
LOST_SECONDS = 30.0  # until a machine that does not connect again during a call counts as lost
MOST_BYTES, MOST_LETTERS = 8000, 1000  # of a request or an answer, and of the text of a failure
# Seconds until a silent connection is tested, and between tests; tests without an answer until it counts as lost; the milliseconds that
# data which was sent may stay without a receipt
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 120_000}


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

        machines: how many play, machine 0 included; root: the run directory. Raises OSError where it cannot listen, UserError where it
        cannot write into the run directory.
        """
        self._others, self._root, self._token = machines - 1, root, secrets.token_hex(16)
        self._changed = threading.Condition()
        self._call: Call | None = None
        self._failure: str | None = None
        self._count, self._is_over = 0, False
        self._released: set[int] = set()
        self._requests: Counter[int] = Counter()  # by machine
        self._server = _Server(port, self)
        try:
            self._write_token(is_over=False)
        except OSError as error:
            self._server.server_close()
            what = f"cannot write {CALLS_TOKEN}, which the other machines read: {error.strerror}"
            raise UserError(what, where=f"run_dir ({root})", remedy="free space there, and rerun; the run resumes") from None
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """At the end of the game, report it to the other machines; after an error, let them wait for machine 0 to resume."""
        try:
            if error is None:
                self._end()
                with contextlib.suppress(OSError):  # a full disk: a machine that comes late then waits; the game itself is finished
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
        if not secrets.compare_digest(token.encode(), self._token.encode()) or not 1 <= machine <= self._others:
            return False
        with self._changed:
            self._requests[machine] += 1
        return True

    def disconnected(self, machine: int, number: int) -> None:
        """Report that `machine`, which was last answered with call `number`, is lost, unless it connects again soon."""
        requests = self._requests[machine]

        def report() -> None:
            if self._requests[machine] == requests:
                self.report(machine, number, "the connection was lost; is the machine switched off?")

        timer = threading.Timer(LOST_SECONDS, report)
        timer.daemon = True
        timer.start()

    def failure(self) -> str | None:
        """What another machine reported about its ranks of the open call."""
        with self._changed:
            return self._failure

    def report(self, machine: int, number: int, text: str) -> None:
        """Record that the ranks of `machine` have failed in call `number`, if the call is open and no other machine was first."""
        with self._changed:
            if self._failure is None and self._call is not None and self._call.number == number:
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
        """Replace the file by one that only its owner can read."""
        file = self._root / CALLS_TOKEN
        temporary = file.with_name(f"{file.name}.tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as opened:
            json.dump({"token": self._token, "is_over": is_over}, opened)
        os.replace(temporary, file)


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
    answered: tuple[int, int] | None = None  # the machine, and the call that it computes

    def handle(self) -> None:
        """Answer the requests of one machine. The connection is closed at anything that is not such a request."""
        with contextlib.suppress(*NO_REQUEST):
            while line := self.rfile.readline(MOST_BYTES):
                if not self._handle(json.loads(line)):
                    return
        if self.answered is not None:
            self.server.calls.disconnected(*self.answered)

    def _handle(self, request: dict[str, Any]) -> bool:
        """Answer one request. Whether another one may follow."""
        calls, machine, after = self.server.calls, request["machine"], request["after"]
        if not calls.accepts(request["token"], machine):
            self._answer({"refused": True})
            return False
        _notice_silence(self.connection)
        if request["failed"] is not None:
            calls.report(machine, after, request["failed"])
        self.answered = None
        call = calls.next_after(after)
        if call is None:
            return False
        self._answer(call._asdict())
        if call.stage is None:
            calls.release(machine)
            return False
        self.answered = (machine, call.number)
        return True

    def _answer(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")


@dataclass
class _Machine:
    """Another machine's side: its number, the token that machine 0 has accepted, the last call from there, and the failure of the ranks
    in it."""

    number: int
    root: Path
    start: Start
    accepted: str | None = None
    after: int = 0
    failed: str | None = None

    def token(self) -> dict[str, Any] | None:
        """What machine 0 has written last; None before its first start."""
        with contextlib.suppress(OSError, UserError):
            found: dict[str, Any] = read_json(self.root / CALLS_TOKEN)
            return found
        return None

    def is_over(self, token: dict[str, Any] | None) -> bool:
        """Whether the game with this token is over, and no other has begun since it was read."""
        return token is not None and token["is_over"] and self.token() == token

    def answer(self, connection: socket.socket, token: str) -> None:
        """Start the stages that machine 0 calls for. Raises ConnectionError if it stops before its game ends, UserError if it is another
        program, _Refused if it plays another game."""
        if token != self.accepted:  # the calls of another session have other numbers
            self.after, self.failed = 0, None
        with connection.makefile("rw", encoding="utf-8", errors="replace") as lines:
            while True:
                request = {"token": token, "machine": self.number, "after": self.after, "failed": self.failed}
                lines.write(json.dumps(request) + "\n")
                lines.flush()
                call = _read(lines.readline(MOST_BYTES))
                self.accepted = token
                if call.stage is None:
                    return
                self.after = call.number
                failed = self.start(call.stage, lambda: _stopped(connection))
                self.failed = None if failed is None else failed[:MOST_LETTERS]


def answer_calls(address: Address, machine: int, root: Path, start: Start) -> None:
    """Call `start` with every stage that machine 0 calls for, until its game ends. `start` returns what failed, for machine 0 to report,
    and gets a function that says whether machine 0 has stopped.

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
            if this.is_over(token):  # machine 0 plays the game of the next seed
                return
            problem = "another game has answered"
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
                raise UserError(f"{address[0]} is not the address of a machine: {error.strerror}", where=WHERE) from None
            if token is not None and token["token"] == this.accepted and this.is_over(token):  # it has not waited for this machine
                return
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


def _stopped(connection: socket.socket) -> str | None:
    """That machine 0 has stopped, if it has closed the connection."""
    try:
        closed = connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return None
    except OSError:
        closed = True
    return "machine 0 has stopped" if closed else None


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
