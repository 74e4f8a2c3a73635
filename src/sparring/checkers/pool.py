"""Worker processes for calls with limits of time and memory. A process that dies costs one call, and the pool continues.

HOME and TMPDIR of a pool's processes are a folder of its own. Its owner holds a lock on it, which the system releases however the owner
ends. If it was killed, its processes remove the folder; if they were killed too, the next pool on this machine does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sparring.checkers.worker import Item
from sparring.console import printable
from sparring.interrupts import signals_deferred

Result = dict[str, Any]

BATCH = 32  # items in one call
LOADING = 6  # the time limit of loading, in limits of a call: an import of torch takes seconds
SHOWN = 2000  # characters of what a process has printed
MAX_LINE = 1 << 20  # bytes of an answer; a batch of results is shorter
TIMED_OUT = "timed out after"
# what Python, the C++ library and OpenBLAS say
OUT_OF_MEMORY = re.compile(r"MemoryError|bad_alloc|[Mm]emory allocation|[Cc]annot allocate memory|failed to map segment")
MAX_WAIT = 2**31 - 1  # ms, 24 days: poll takes no more
NO_ANSWER = "its process sent an invalid answer"
WORKER = Path(__file__).with_name("worker.py")
KEPT = ("PATH", "LANG", "PYTHONPATH")  # of the environment: no key or token gets into the process
PREFIX = "sparring-checker-home-"


class LostWorker(Exception):
    """A call that ended with its process, or that raised as a whole; the text says why."""


class Pool:
    """Calls the function that `job` names on items, in `workers` processes that are started when they are needed.

    A call takes a batch of items and at most `seconds` of wall time. If a batch fails, its items are called one by one, so that only the
    one that causes the failure is lost. Works in any thread; Ctrl-C, `close` and the end of this process end the workers.
    """

    def __init__(self, job: dict[str, Any], seconds: float, memory_mb: int, workers: int) -> None:
        self._job, self._seconds, self._memory_mb, self._workers = job, seconds, memory_mb, workers
        self._home = Home()
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._running: set[_Process] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def load(self) -> dict[str, Any]:
        """Start the first process. Returns why it could not load the function, and then closes the pool; empty if it could."""
        try:
            self._idle.put(self._start())
            return {}
        except _Trouble as trouble:
            why = trouble.args[0]
        except LostWorker as lost:
            why = {"lost": str(lost)}
        finally:
            if self._idle.empty():
                self.close()
        return why

    def remedy(self, trouble: Mapping[str, Any]) -> str | None:
        """Which limit to raise if loading took too long or too much memory; None for other trouble."""
        why = " ".join(str(trouble.get(name)) for name in ("import", "lost", "printed"))
        less = ", or import less when the file is loaded" if "own" in self._job else ""
        if "lost" in trouble and TIMED_OUT in why:
            return f"loading may take {LOADING} times target.timeout_seconds, which is {self._seconds:g}: raise it in the recipe{less}"
        if OUT_OF_MEMORY.search(why):
            return f"a process may use target.memory_mb, which is {self._memory_mb}: raise it in the recipe{less}"
        return None

    def answer(self, items: Sequence[Item]) -> list[Result]:
        """One result an item, in their order."""
        batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
        executor = ThreadPoolExecutor(self._workers)
        try:
            return [result for results in executor.map(self._answer_batch, batches) for result in results]
        except BaseException:
            self._kill()  # wakes the threads that wait for an answer
            raise
        finally:
            executor.shutdown(cancel_futures=True)
            if self._is_closed:
                self.close()

    def close(self) -> None:
        """End all processes. A call that another thread has in progress is lost."""
        self._kill()
        while not self._idle.empty():
            self._idle.get_nowait().end()
        self._home.remove()

    def _kill(self) -> None:
        with self._lock:
            self._is_closed = True
            for process in self._running:
                process.kill()

    def _answer_batch(self, batch: Sequence[Item]) -> list[Result]:
        try:
            return self._call(batch)
        except LostWorker as lost:
            if len(batch) == 1:
                return [{"failed": str(lost)}]
            return [result for item in batch for result in self._answer_batch([item])]

    def _call(self, batch: Sequence[Item]) -> list[Result]:
        process = self._take()
        try:
            said = process.ask(batch, self._seconds)
            if "raised" in said:
                raise LostWorker(f"raised {printable(str(said['raised']))}")
            return _results(said, len(batch))
        except ValueError:
            process.end()
            raise LostWorker(NO_ANSWER) from None
        finally:
            self._give_back(process)

    def _take(self) -> _Process:
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                if process.is_alive():
                    return process
                process.end()  # something else has killed it meanwhile
                self._give_back(process)
        try:
            return self._start()
        except _Trouble as trouble:
            raise LostWorker(f"could not be loaded again: {', '.join(str(why) for why in trouble.args[0].values() if why)}") from None

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            if process.is_open and not self._is_closed:
                self._idle.put(process)
                return
            self._running.discard(process)
        process.end()

    def _start(self) -> _Process:
        with self._lock:
            if self._is_closed:
                raise LostWorker("the checker is closed")
            process = _Process(str(self._home.path), self._memory_mb)
            self._running.add(process)
        try:
            said = process.ask(self._job, LOADING * self._seconds)
            if "trouble" in said:
                process.end()
                raise _Trouble({**said["trouble"], "printed": process.printed()})
        except BaseException:
            self._give_back(process)
            raise
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


class _Trouble(Exception):
    """The process could not load the function; the dictionary has the reason."""


class _Process:
    """One process with its pipes."""

    def __init__(self, home: str, memory_mb: int) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        prints, printed = os.pipe()
        os.set_blocking(self._requests, False)
        # -u: prints arrive before the process dies; -P: nothing is imported from its folder, whose math.py would hide the standard one;
        # in its own session it gets no Ctrl-C
        command = [sys.executable, "-u", "-P", str(WORKER), str(requests), str(replies), str(memory_mb), home]
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
        return self._process.poll() is None

    def ask(self, message: Any, seconds: float) -> dict[str, Any]:
        """The answer to one message. Raises LostWorker, and ends the process, if no valid answer comes within `seconds`."""
        deadline = time.monotonic() + seconds
        try:
            self._send(json.dumps(message, default=str).encode() + b"\n", deadline)
            answer = json.loads(self._line(deadline))
            if not isinstance(answer, dict):
                raise ValueError
            return answer
        except TimeoutError:
            self.end()
            raise LostWorker(f"{TIMED_OUT} {seconds:g} s") from None
        except EOFError:
            raise LostWorker(self._end_of_life()) from None
        except ValueError:
            self.end()
            raise LostWorker(NO_ANSWER) from None
        except BaseException:
            self.end()
            raise

    def kill(self) -> None:
        """Kill the process and all that it has started. A thread that waits for its answer then finds the pipe closed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill, and close the pipes: only in the thread that uses the process."""
        if not self.is_open:
            return
        self.is_open = False
        self.kill()
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


class Home:
    """A new empty folder below the temporary one, removed by `remove` or when this process ends; folders of dead owners are removed too."""

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self.path, lock = _make()
        self._finalizer = weakref.finalize(self, _remove, self.path, lock)  # also at the end of the interpreter

    def remove(self) -> None:
        """Remove the folder with everything in it. May be called twice."""
        self._finalizer()


def _make() -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # a file system without locks: no other pool can take it for abandoned either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # else another pool took it for abandoned before it had its lock
                return path, lock
            os.close(lock)


def _remove(path: Path, lock: int) -> None:
    with signals_deferred():  # a second SIGTERM would leave a part of it
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of dead owners: those of this user that no process holds a lock on."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # removed meanwhile, another user's, a link, or locked by its owner
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
