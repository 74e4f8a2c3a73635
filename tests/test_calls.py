"""Calls between machines, over sockets of this one; whole games on two machines are in test_launching.py."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sparring import calls as calling
from sparring.calls import Address, Calls, answer_calls
from sparring.errors import UserError

SECONDS = 20.0  # long enough for a busy machine; nothing waits for as long


@pytest.fixture
def address() -> Address:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()


class Machine(threading.Thread):
    """Another machine. stages: those that it was called for, in order; busy: a stage ends when it is set."""

    def __init__(self, address: Address, number: int = 1, seed: int = 0) -> None:
        super().__init__(daemon=True)
        self.address, self.number, self.seed = address, number, seed
        self.stages: list[str] = []
        self.busy = threading.Event()
        self.busy.set()
        self.start()

    def run(self) -> None:
        answer_calls(self.address, self.number, self.seed, self._compute)

    def _compute(self, stage: str) -> None:
        self.stages.append(stage)
        self.busy.wait(SECONDS)

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


def test_every_machine_hears_every_call_and_the_end(address: Address) -> None:
    with Calls(address[1], machines=3, seed=0) as calls:
        machines = [Machine(address, number) for number in (1, 2)]
        for stage in ("sft", "start/measure", "sft"):
            with called(calls, stage, *machines):
                pass
    assert [machine.stages for machine in machines] == [["sft", "start/measure", "sft"]] * 2
    assert all(machine.is_over() for machine in machines)


def test_a_machine_may_come_before_machine_0_and_in_the_middle_of_a_stage(address: Address) -> None:
    early = Machine(address)
    with Calls(address[1], machines=3, seed=0) as calls, called(calls, "sft", early):
        late = Machine(address, 2)
        assert comes(lambda: late.stages == ["sft"])
    assert early.is_over() and late.is_over()


def test_a_call_that_is_over_is_not_answered(address: Address) -> None:
    """A machine that was busy while ranks failed would start ranks that meet nobody, or those of the next stage."""
    with Calls(address[1], machines=2, seed=0) as calls:
        machine = Machine(address)
        machine.busy.clear()
        with called(calls, "sft", machine):
            pass
        with calls.call("iterations/000/score"):
            pass
        with calls.call("iterations/000/train"):
            machine.busy.set()
            assert comes(lambda: len(machine.stages) == 2)
    assert machine.stages == ["sft", "iterations/000/train"] and machine.is_over()


def test_after_a_fault_the_others_wait_for_machine_0_to_resume(address: Address) -> None:
    machine = Machine(address)
    with pytest.raises(RuntimeError), Calls(address[1], machines=2, seed=0) as calls, called(calls, "sft", machine):
        raise RuntimeError("a rank was killed")
    assert machine.is_alive()
    with Calls(address[1], machines=2, seed=0) as calls, called(calls, "sft", machine):
        pass
    assert machine.stages == ["sft", "sft"] and machine.is_over()


def test_a_machine_hears_nothing_of_another_seed(address: Address) -> None:
    """Games of several seeds come one after the other at the same address."""
    machine = Machine(address, seed=1)
    with Calls(address[1], machines=1, seed=0) as calls, calls.call("sft"):
        time.sleep(0.2)
    with Calls(address[1], machines=2, seed=1) as calls, called(calls, "start/measure", machine):
        pass
    assert machine.stages == ["start/measure"] and machine.is_over()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"after": "x", "seed": 0}\n', b"\xff\xfe" * 4000, b""])
def test_other_programs_at_the_port_change_nothing(address: Address, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with Calls(address[1], machines=2, seed=0) as calls:
        with calls.call("sft"), socket.create_connection(address) as other:
            other.sendall(sent)
            other.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert other.recv(1) == b""
        machine = Machine(address)
    assert machine.is_over()
    assert "Traceback" not in capfd.readouterr().err


def test_machine_0_waits_for_machines_that_never_come_no_longer_than_it_says(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "FAREWELL_SECONDS", 0.1)
    with Calls(address[1], machines=2, seed=0):
        pass
    with Calls(address[1], machines=1, seed=0):  # the port is free again
        pass


def test_a_machine_0_that_never_comes(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(UserError, match=rf"machine 0 has not answered at 127.0.0.1:{address[1]}") as raised:
        answer_calls(address, 1, 0, lambda _: None)
    assert "sparring run" in (raised.value.remedy or "")


def test_patience_counts_from_the_loss_of_machine_0_and_not_from_its_last_call(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine 0 may compute alone for hours between two calls."""
    machine = Machine(address)
    with pytest.raises(RuntimeError), Calls(address[1], machines=2, seed=0) as calls:
        with called(calls, "sft", machine):
            pass
        monkeypatch.setattr(calling, "PATIENCE_SECONDS", 3.0)
        time.sleep(4)
        raise RuntimeError("a fault")
    time.sleep(1)
    assert machine.is_alive()
    with Calls(address[1], machines=2, seed=0) as calls, called(calls, "sft", machine):
        pass
    assert machine.stages == ["sft", "sft"] and machine.is_over()


def test_another_program_at_the_port(address: Address) -> None:
    with socket.create_server(address) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match="another program answers"):
            answer_calls(address, 1, 0, lambda _: None)


def test_a_name_that_is_no_machine() -> None:
    with pytest.raises(UserError, match=r"nowhere\.invalid is not the address of a machine"):
        answer_calls(("nowhere.invalid", 1), 1, 0, lambda _: None)
