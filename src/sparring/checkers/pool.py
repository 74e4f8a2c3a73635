"""Worker processes for calls with limits of time and memory. A process that dies costs one call, and the pool continues."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sparring.checkers.worker import Item
from sparring.console import printable

Result = dict[str, Any]

BATCH = 32  # items in one call
LOADING = 6  # the time limit of loading, in limits of a call: an import of torch takes seconds
SHOWN = 2000  # characters of what a process has printed
MAX_LINE = 1 << 20  # bytes of an answer; a batch of results is shorter
MAX_WAIT = 2**31 - 1  # ms, 24 days: poll takes no more
NO_ANSWER, CLOSED = "its process sent an invalid answer", "the checker is closed"
WORKER = Path(__file__).with_name("worker.py")
KEPT = ("PATH", "LANG", "PYTHONPATH")  # of the environment: no key or token gets into the process


class LostWorker(Exception):
    """A call that ended with its process, or that raised as a whole; the text says why. `trouble`: why a function could not be loaded."""

    def __init__(self, why: str, trouble: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.trouble = trouble or {"lost": why}


class Pool:
    """Calls the function that `job` names on items, in `workers` threads, each with a process that is started when it is needed.

    A call takes a batch of items and at most `seconds` of wall time. If a batch fails, its items are called one by one, so that only the
    one that causes the failure is lost. Works in any thread; Ctrl-C, `close` and the end of this process end the processes.
    """

    def __init__(self, job: dict[str, Any], seconds: float, memory_mb: int, workers: int) -> None:
        self._job, self._seconds, self._memory_mb = job, seconds, memory_mb
        self._home = tempfile.TemporaryDirectory(prefix="sparring-checker-", ignore_cleanup_errors=True)
        self._threads = ThreadPoolExecutor(workers)
        self._processes: dict[int, _Process] = {}  # by thread
        self._lock = threading.Lock()
        self._is_closed = False

    def load(self) -> dict[str, Any]:
        """Start the first process. Returns why it could not load the function, and then closes the pool; empty if it could."""
        try:
            self._threads.submit(self._process).result()
            return {}
        except BaseException as error:
            self.close()
            if isinstance(error, LostWorker):
                return error.trouble
            raise

    def answer(self, items: Sequence[Item]) -> list[Result]:
        """One result an item, in their order."""
        try:
            with self._lock:
                if self._is_closed:
                    return [{"failed": CLOSED} for _ in items]
                answers = self._threads.map(self._answer_batch, [items[start : start + BATCH] for start in range(0, len(items), BATCH)])
            return [result for results in answers for result in results]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes. A call that another thread has in progress is lost."""
        with self._lock:
            self._is_closed = True
            for process in self._processes.values():
                process.kill()  # wakes the thread that waits for its answer
        self._threads.shutdown()
        for process in self._processes.values():
            process.end()
        self._home.cleanup()

    def _answer_batch(self, batch: Sequence[Item]) -> list[Result]:
        try:
            return self._call(batch)
        except LostWorker as lost:
            if len(batch) == 1:
                return [{"failed": str(lost)}]
            return [result for item in batch for result in self._answer_batch([item])]

    def _call(self, batch: Sequence[Item]) -> list[Result]:
        process = self._process()
        said = process.ask(batch, self._seconds)
        if "raised" in said:
            raise LostWorker(f"raised {printable(str(said['raised']))}")
        try:
            return _results(said, len(batch))
        except ValueError:
            process.end()
            raise LostWorker(NO_ANSWER) from None

    def _process(self) -> _Process:
        """The process of this thread, started if there is none or if it has ended."""
        with self._lock:
            if self._is_closed:
                raise LostWorker(CLOSED)
            process = self._processes.get(threading.get_ident())
            if process is not None and process.is_alive():
                return process
            if process is not None:
                process.end()
            process = self._processes[threading.get_ident()] = _Process(self._home.name, self._memory_mb)
        said = process.ask(self._job, LOADING * self._seconds)
        if "trouble" in said:
            process.end()
            raise LostWorker(f"could not be loaded again: {said['trouble']}", {**said["trouble"], "printed": process.printed()})
        return process


def _results(said: dict[str, Any], count: int) -> list[Result]:
    """One result an item. Raises ValueError where the process did not answer with that."""
    results = said.get("results")
    if not isinstance(results, list) or len(results) != count:
        raise ValueError
    for result in results:
        if not isinstance(result, dict) or len(result) != 1:
            raise ValueError
        if "failed" in result:
            result["failed"] = printable(str(result["failed"]))
    return results


class _Process:
    """One process with its pipes."""

    def __init__(self, home: str, memory_mb: int) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        prints, printed = os.pipe()
        os.set_blocking(self._requests, False)
        # -u: prints arrive before the process dies; -P: nothing is imported from its folder, whose math.py would hide the standard one;
        # in its own session it gets no Ctrl-C
        command = [sys.executable, "-u", "-P", str(WORKER), str(requests), str(replies), str(memory_mb)]
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"HOME": home, "TMPDIR": home, "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                env=environment,
                pass_fds=(requests, replies),
                start_new_session=True,
            )
        finally:
            for number in (requests, replies, printed):
                os.close(number)
        self._printed = b""
        self._reader = threading.Thread(target=self._keep_prints, args=(prints,), daemon=True)
        self._reader.start()
        self.is_open = True  # its pipes are

    def is_alive(self) -> bool:
        return self.is_open and self._process.poll() is None

    def ask(self, message: Any, seconds: float) -> dict[str, Any]:
        """The answer to one message. Raises LostWorker, and ends the process, if no valid answer comes within `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            self._send(json.dumps(message, default=str).encode() + b"\n", deadline)
            answer = json.loads(self._line(deadline))
            if not isinstance(answer, dict):
                raise ValueError
            return answer
        except EOFError:
            raise LostWorker(self._end_of_life()) from None
        except BaseException as error:
            self.end()
            if isinstance(error, (TimeoutError, ValueError)):
                raise LostWorker(f"timed out after {seconds:g} s" if isinstance(error, TimeoutError) else NO_ANSWER) from None
            raise

    def kill(self) -> None:
        """Kill the process and all that it has started. A thread that waits for its answer then finds the pipe closed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.is_open:  # else its id may be that of another process
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill, and close the pipes: only in the thread that uses the process."""
        if not self.is_open:
            return
        self.kill()
        self.is_open = False
        self._process.wait()
        self._reader.join(1.0)
        os.close(self._requests)
        os.close(self._replies)

    def printed(self) -> str:
        """The end of what the process has printed."""
        return printable(self._printed.decode(errors="replace"))[-SHOWN:].strip()

    def _end_of_life(self) -> str:
        """How a process that closed its pipe has ended; one that is still alive is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        self.end()
        how = "closed its pipe" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}" + (f"; it printed: {self.printed()[-300:]}" if self.printed() else "")

    def _send(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._requests, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._requests, rest[:65536]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise EOFError from None

    def _line(self, deadline: float) -> bytes:
        data = b""
        while not data.endswith(b"\n"):
            self._wait(self._replies, select.POLLIN, deadline)
            piece = os.read(self._replies, 65536)
            if not piece:
                raise EOFError
            data += piece
            if len(data) > MAX_LINE:
                raise ValueError
        return data

    def _wait(self, number: int, event: int, deadline: float) -> None:
        """Wait until the pipe is ready. Raises EOFError if the process has closed its end of the other one, or TimeoutError."""
        poller = select.poll()
        poller.register(number, event)
        poller.register(self._replies, select.POLLIN)
        left = max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poller.poll(min(left, MAX_WAIT)))
        if not ready:
            raise TimeoutError
        if number not in ready:
            raise EOFError

    def _keep_prints(self, prints: int) -> None:
        """Read all that the process prints, so that it never blocks, and keep the end."""
        with open(prints, "rb", buffering=0) as pipe:
            while piece := pipe.read(65536):
                self._printed = (self._printed + piece)[-4 * SHOWN :]
