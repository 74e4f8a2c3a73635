"""Calls between machines, over sockets of this one; whole games on two machines are in test_launching.py."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sparring import calls as calling
from sparring.calls import Address, Calls, answer_calls
from sparring.errors import UserError

pytestmark = pytest.mark.long

SECONDS = 20.0  # long enough for a busy machine; nothing waits for as long


@pytest.fixture
def place(tmp_path: Path) -> Place:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Place(probe.getsockname(), tmp_path)


class Place(NamedTuple):
    """Where machine 0 listens, and the run directory of its game."""

    address: Address
    root: Path

    def other(self) -> Place:
        """The next game at the same address."""
        (self.root / "other").mkdir(exist_ok=True)
        return Place(self.address, self.root / "other")


class Machine(threading.Thread):
    """Another machine. stages: those that it was called for, in order; busy: a stage ends when it is set; fails: with this text."""

    def __init__(self, place: Place, number: int = 1, fails: str | None = None) -> None:
        super().__init__(daemon=True)
        self.place, self.number, self.fails = place, number, fails
        self.stages: list[str] = []
        self.busy = threading.Event()
        self.busy.set()
        self.start()

    def run(self) -> None:
        answer_calls(self.place.address, self.number, self.place.root, self._compute)

    def _compute(self, stage: str, stopped: Callable[[], str | None]) -> str | None:
        self.stages.append(stage)
        self.stopped = stopped
        self.busy.wait(SECONDS)
        return self.fails

    def is_over(self) -> bool:
        self.join(SECONDS)
        return not self.is_alive()


def comes(is_true: Callable[[], bool]) -> bool:
    ends = time.monotonic() + SECONDS
    while not is_true() and time.monotonic() < ends:
        time.sleep(0.01)
    return is_true()


@contextlib.contextmanager
def called(calls: Calls, stage: str, *machines: Machine) -> Iterator[None]:
    """A call, after all these machines have heard of it."""
    counts = [len(machine.stages) for machine in machines]
    with calls.call(stage):
        assert comes(lambda: all(len(one.stages) > count for one, count in zip(machines, counts, strict=True)))
        yield


def write_token(place: Place) -> None:
    """As a machine 0 leaves it that has stopped before the end of its game."""
    with contextlib.suppress(RuntimeError), Calls(0, 2, place.root):
        raise RuntimeError("a fault")


def opened(place: Place, machines: int) -> Calls:
    return Calls(place.address[1], machines, place.root)


def test_every_machine_hears_every_call_and_the_end(place: Place) -> None:
    with opened(place, 3) as calls:
        machines = [Machine(place, number) for number in (1, 2)]
        for stage in ("sft", "start/measure", "sft"):
            with called(calls, stage, *machines):
                pass
    assert [machine.stages for machine in machines] == [["sft", "start/measure", "sft"]] * 2
    assert all(machine.is_over() for machine in machines)


def test_a_machine_may_come_before_machine_0_and_in_the_middle_of_a_stage(place: Place) -> None:
    early = Machine(place)
    with opened(place, 3) as calls, called(calls, "sft", early):
        late = Machine(place, 2)
        assert comes(lambda: late.stages == ["sft"])
    assert early.is_over() and late.is_over()


def test_a_call_that_is_over_is_not_answered(place: Place) -> None:
    """A machine that was busy while ranks failed would start ranks that meet nobody, or those of the next stage."""
    with opened(place, 2) as calls:
        machine = Machine(place)
        machine.busy.clear()
        with called(calls, "sft", machine):
            pass
        with calls.call("iterations/000/score"):
            pass
        with calls.call("iterations/000/train"):
            machine.busy.set()
            assert comes(lambda: len(machine.stages) == 2)
    assert machine.stages == ["sft", "iterations/000/train"] and machine.is_over()


def test_after_a_fault_the_others_wait_for_machine_0_to_resume(place: Place) -> None:
    machine = Machine(place)
    with pytest.raises(RuntimeError), opened(place, 2) as calls, called(calls, "sft", machine):
        raise RuntimeError("a rank was killed")
    assert machine.is_alive()
    with opened(place, 2) as calls, called(calls, "sft", machine):
        pass
    assert machine.stages == ["sft", "sft"] and machine.is_over()


def test_a_machine_hears_nothing_of_another_game(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Games of several seeds come one after the other at the same address, and a user may start two runs at one."""
    machine = Machine(place.other())
    with opened(place, 1) as calls, calls.call("sft"):
        time.sleep(0.2)
    with opened(place.other(), 2) as calls, called(calls, "start/measure", machine):
        pass
    assert machine.stages == ["start/measure"] and machine.is_over()


def test_a_machine_that_comes_when_machine_0_plays_the_next_game(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own game is over, so that it goes on to the next. A game that is not over makes it wait, and say why in the end."""
    monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)
    with opened(place, 2):
        pass
    with opened(place.other(), 1):
        assert Machine(place).is_over()
        write_token(place)
        monkeypatch.setattr(calling, "PATIENCE_SECONDS", 0.2)
        with pytest.raises(UserError, match="another game has answered at"):
            answer_calls(place.address, 1, place.root, lambda *_: None)


def test_a_failure_on_another_machine_reaches_machine_0(place: Place) -> None:
    with opened(place, 2) as calls:
        machine = Machine(place, fails="no space left on the device" + "." * 5000)
        with called(calls, "sft", machine):
            assert comes(lambda: calls.failure() is not None)
            assert (calls.failure() or "").startswith("machine 1: no space left")
        machine.fails = None
        with called(calls, "sft", machine):
            assert calls.failure() is None, "that of the call before"
    assert machine.is_over()


def test_a_stage_is_not_started_again_after_the_connection_was_lost(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks have ended a moment before those of machine 0, and would meet those of the next stage."""
    connections: list[socket.socket] = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *args: connections.append(connect(*args)) or connections[-1])
    with opened(place, 2) as calls:
        machine = Machine(place)
        machine.busy.clear()
        with called(calls, "sft", machine):
            connections[0].shutdown(socket.SHUT_RDWR)
            machine.busy.set()
            time.sleep(1.5)
        assert machine.stages == ["sft"] and len(connections) == 2
        with called(calls, "start/measure", machine):
            pass
    assert machine.stages == ["sft", "start/measure"] and machine.is_over()


def test_the_first_failure_is_the_one_that_is_reported(place: Place) -> None:
    with opened(place, 3) as calls:
        one, two = Machine(place, 1, fails="out of memory"), Machine(place, 2, fails="connection closed by peer")
        two.busy.clear()
        with called(calls, "sft", one, two):
            assert comes(lambda: calls.failure() == "machine 1: out of memory")
            two.busy.set()
            time.sleep(0.5)
            assert calls.failure() == "machine 1: out of memory"
        one.fails = two.fails = None
    assert one.is_over() and two.is_over()


def test_a_machine_that_is_lost_in_a_stage_is_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks may be gone without a word, and the others would wait for them for hours. One that connects again is not lost."""
    monkeypatch.setattr(calling, "LOST_SECONDS", 1.0)
    with opened(place, 2) as calls, calls.call("sft"), socket.create_connection(place.address) as connection:
        token = json.loads((place.root / ".calls.json").read_text())["token"]
        request = json.dumps({"token": token, "machine": 1, "after": 0, "failed": None}).encode() + b"\n"
        connection.sendall(request)
        assert json.loads(connection.recv(1000))["stage"] == "sft"
        with socket.create_connection(place.address) as again:
            connection.shutdown(socket.SHUT_RDWR)
            again.sendall(request)
            time.sleep(0.2)
            again.sendall(request)
            time.sleep(1.5)
            assert calls.failure() is None
        assert comes(lambda: "machine 1: the connection was lost" in (calls.failure() or ""))
        monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)


def test_a_machine_notices_in_a_stage_that_machine_0_has_stopped(place: Place) -> None:
    machine = Machine(place)
    machine.busy.clear()
    with pytest.raises(RuntimeError), opened(place, 2) as calls, called(calls, "sft", machine):
        assert machine.stopped() is None
        raise RuntimeError("a rank was killed")
    assert comes(lambda: machine.stopped() == "machine 0 has stopped")
    machine.busy.set()
    with opened(place, 2):
        pass
    assert machine.is_over()


def test_a_machine_whose_stage_lasts_longer_than_machine_0_waits_ends_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)
    machine = Machine(place)
    machine.busy.clear()
    with opened(place, 2) as calls, called(calls, "sft", machine):
        pass
    machine.busy.set()
    assert machine.is_over()


def test_a_full_disk_is_no_taken_port_and_fails_no_finished_game(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)
    with opened(place, 2):
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write \.calls\.json.*No space left") as raised:
        opened(place, 2)
    assert "run_dir" in (raised.value.where or "")
    monkeypatch.undo()
    monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)
    with opened(place, 2):  # the port was given back
        pass


@pytest.mark.parametrize("machine", [0, 2, 99])
def test_a_number_that_no_machine_has_is_refused(place: Place, machine: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(RuntimeError), opened(place, 2):
        with pytest.raises(UserError, match="another game"):
            answer_calls(place.address, machine, place.root, lambda *_: None)
        raise RuntimeError("a fault")


def test_strangers_who_connect_and_say_nothing_are_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling._Handler, "timeout", 0.2)
    monkeypatch.setattr(calling, "MOST_THREADS", threading.active_count() + 5)
    with contextlib.ExitStack() as silent, opened(place, 2) as calls:
        strangers = [silent.enter_context(socket.create_connection(place.address)) for _ in range(20)]
        for stranger in strangers:
            stranger.settimeout(SECONDS)
            with contextlib.suppress(ConnectionError):
                assert stranger.recv(1) == b""
        machine = Machine(place)
        with called(calls, "sft", machine):
            pass
    assert machine.is_over()


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b"[" * 3000 + b"\n", b'{"token": 1, "machine": 1}\n', b"\xff\xfe" * 4000, b""]
)
def test_other_programs_at_the_port_change_nothing(place: Place, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(place, 2) as calls:
        with calls.call("sft"), socket.create_connection(place.address) as other:
            other.sendall(sent)
            other.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert other.recv(1) == b""
        machine = Machine(place)
    assert machine.is_over()
    assert "Traceback" not in capfd.readouterr().err


def test_machine_0_waits_for_machines_that_never_come_no_longer_than_it_says(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)
    with opened(place, 2):
        pass
    with opened(place, 1):  # the port is free again
        pass


def test_a_machine_0_that_never_comes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(UserError, match=rf"machine 0 has not answered at 127.0.0.1:{place.address[1]}") as raised:
        answer_calls(place.address, 1, place.root, lambda *_: None)
    assert "sparring run" in (raised.value.remedy or "")


def test_patience_counts_from_the_loss_of_machine_0_and_not_from_its_last_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine 0 may compute alone for hours between two calls."""
    machine = Machine(place)
    with pytest.raises(RuntimeError), opened(place, 2) as calls:
        with called(calls, "sft", machine):
            pass
        monkeypatch.setattr(calling, "PATIENCE_SECONDS", 3.0)
        time.sleep(4)
        raise RuntimeError("a fault")
    time.sleep(1)
    assert machine.is_alive()
    with opened(place, 2) as calls, called(calls, "sft", machine):
        pass
    assert machine.stages == ["sft", "sft"] and machine.is_over()


def test_another_program_at_the_port(place: Place) -> None:
    write_token(place)
    with socket.create_server(place.address) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="another program answers"):
            answer_calls(place.address, 1, place.root, lambda *_: None)


@pytest.mark.parametrize(
    ("number", "words"),
    [(socket.EAI_NONAME, r"nowhere is not the address of a machine"), (socket.EAI_AGAIN, "machine 0 has not answered at")],
)
def test_a_name_that_is_no_machine(place: Place, number: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer may do so later."""

    def fail(*_: object) -> None:
        raise socket.gaierror(number, "a reason")

    write_token(place)
    monkeypatch.setattr(calling, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(UserError, match=words):
        answer_calls(("nowhere", 1), 1, place.root, lambda *_: None)
