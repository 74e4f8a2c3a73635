"""Commands in real processes, without their start-up: one process imports everything, then forks a child per command.

Starting Python with torch costs seconds, a fork milliseconds, so that a game can be killed at many points within a test run. The parent
never computes anything; a child is the same as a fresh process that has just imported sparring. Run as a script: JSON lines in, JSON
lines out. `Zygote` is the client.

A child may be sabotaged: at a call of a named function whose arguments match, it is killed, meets a full disk, and so on. That is how
kills are deterministic. Most come at events that a person could see, whatever the code is called: a unit of a stage's work is finished
(`working`), a file or a folder of the run directory gets its name (`written`, `unnamed`), a stage begins or is finished (`begun`,
`committed`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import itertools
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SRC = Path(__file__).parent.parent / "src"
MADV_COLLAPSE = 25  # of Linux; the module mmap of Python 3.11 has no name for it
PAUSE_SECONDS = 0.005  # between two looks at a command; one that is only waited for is looked at more seldom, which leaves it the processor
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


@dataclass(frozen=True)
class Sabotage:
    """At the `nth` call of `function` ("module:attribute") whose arguments match the pattern `args`, do something `before` or `after` it.

    do: "kill" (SIGKILL), "interrupt" (SIGINT), "interrupt, lost" (SIGINT, which foreign code turns into an error), "terminate" (SIGTERM),
    "full disk" (raises ENOSPC), "no memory" (a petabyte is asked for) "leak HF_TOKEN" (raises
    RuntimeError with it) or "crash" (raises RuntimeError).
    `forever`: at every later call as well.
    """

    function: str
    nth: int = 1
    args: str = ""
    do: str = "kill"
    when: str = "before"
    forever: bool = False


ADVANCE, REPLACE = "sparring.progress:PhaseProgress.advance", "os:replace"


def working(stage: str, done: int, do: str = "kill") -> Sabotage:
    """In the work on a stage, when `done` units (steps, batches, replies) are finished and the next is computed, but not counted yet."""
    return Sabotage(ADVANCE, args=rf"^{stage} {done}/", do=do)


def written(path: str, nth: int = 1) -> Sabotage:
    """As soon as a file or a folder has its final name, which ends with the pattern `path`: a shard, a checkpoint's last file, a stage."""
    return Sabotage(REPLACE, nth, rf"[ /]{path}$", when="after")


def unnamed(path: str, nth: int = 1) -> Sabotage:
    """When everything is in that file or folder but it does not have its final name yet."""
    return replace(written(path, nth), when="before")


def begun(stage: str) -> Sabotage:
    """As soon as the folder of a new attempt at the stage is there."""
    return written(rf"{stage}\.partial/attempt\.json")


def committed(stage: str) -> Sabotage:
    """As soon as the stage is finished."""
    return written(stage)


@dataclass(frozen=True)
class Command:
    """`sparring ARGS`, or `python: ...` code to run instead."""

    args: list[str]
    cwd: str
    out: str
    python: str = ""
    sabotage: list[Sabotage] = field(default_factory=list)
    file_limit_bytes: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """Exit code (negative: the signal that killed it) and what was printed."""

    code: int
    out: str
    err: str


class Running:
    """A command under way."""

    def __init__(self, zygote: Zygote, pid: int, out: Path) -> None:
        self._zygote, self.pid, self._out = zygote, pid, out

    @property
    def out(self) -> str:
        return _text(self._out)

    @property
    def err(self) -> str:
        return _text(self._out.with_suffix(".err"))

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Wait until `condition` holds; fails when the command ends first."""
        end = time.monotonic() + seconds
        while not condition():
            status = self._zygote.poll(self.pid)
            assert status is None, f"ended with {status} too early:\n{self.err}"
            assert time.monotonic() < end, f"still waiting after {seconds} s:\n{self.err}"
            time.sleep(PAUSE_SECONDS)

    def wait(self, seconds: float = 480) -> Result:
        end = time.monotonic() + seconds
        while (status := self._zygote.poll(self.pid)) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.err}")
            time.sleep(10 * PAUSE_SECONDS)
        return Result(status, self.out, self.err)


def free_port() -> int:
    """A port that is free, as the next one is."""
    while True:
        with socket.socket() as probe, socket.socket() as following, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 0))
            following.bind(("127.0.0.1", probe.getsockname()[1] + 1))
            return probe.getsockname()[1]


def environments_of_ranks(count: int = 2) -> list[dict[str, str]]:
    """What torchrun tells so many ranks of one launch on this machine; they compute on CPUs."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(count)]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


class Zygote:
    """Starts commands in forked processes."""

    def __init__(self, source: Path = SRC) -> None:
        """source: the folder that the package is imported from."""
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(source)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._outputs = tempfile.TemporaryDirectory(prefix="sparring-tests-")
        self._count = itertools.count()
        self._lock = threading.Lock()
        self._status: dict[int, int] = {}

    def start(self, args: list[str], cwd: Path, **more: Any) -> Running:
        out = Path(self._outputs.name) / f"{next(self._count):05d}.out"
        command = Command([str(arg) for arg in args], str(cwd), str(out), **more)
        return Running(self, self._ask(asdict(command))["pid"], out)

    def run(self, args: list[str], cwd: Path, **more: Any) -> Result:
        return self.start(args, cwd, **more).wait()

    def poll(self, pid: int) -> int | None:
        """The exit code, or None while it runs."""
        if pid not in self._status:
            code = self._ask({"poll": pid})["code"]
            if code is None:
                return None
            self._status[pid] = code
        return self._status[pid]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._outputs.cleanup()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


def use_huge_pages() -> None:
    """Move this process's memory to huge pages where Linux can (6.1 and later): a fork then copies a small part of the page table.

    It halves the CPU time of a fork and of the exit of its child, which is a fifth of that of a short command.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0\s*(\[heap\])?$", line)
        if mapping is None:
            continue
        start, end = (int(mapping[n], 16) for n in (1, 2))
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)  # what cannot be moved stays as it is


def do_not_wait_for_the_disk() -> None:
    """Make fsync free in this process: tests kill processes and cut no power, and a tiny game would wait some 350 times."""
    os.fsync = lambda descriptor: None


# ------------------------------------------------------------------------------------------------ the other side: parent and children


def serve() -> None:
    """Import, then fork a child per request until stdin closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    ours = ("cli", "samples", "export", "report.tables", "game", "comparison.command", "comparison.page", "planning.shape")
    for module in (*(f"sparring.{name}" for name in ours), "scipy.stats", "datasets", "matplotlib.backends.backend_svg"):
        importlib.import_module(module)
    # what transformers and others load on first use; PEFT alone takes seconds
    models = ("transformers.generation.utils", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)  # PEFT imports it; `_silence_bitsandbytes` does the same in a run
    for module in (*models, "peft"):
        importlib.import_module(module)
    do_not_wait_for_the_disk()
    gc.freeze()  # a game collects garbage after every stage, and would go through the libraries' million objects each time
    use_huge_pages()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            pid = os.fork()
            if pid == 0:
                answers.close()
                _child(request)
            answer = {"pid": pid}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _child(request: dict[str, Any]) -> None:
    code = 1
    try:
        sabotage = [Sabotage(**one) for one in request.pop("sabotage")]
        command = Command(**request)
        _redirect(Path(command.out))
        os.chdir(command.cwd)
        os.environ.update(command.environment)
        if command.file_limit_bytes is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (command.file_limit_bytes, command.file_limit_bytes))
        for one in sabotage:
            _apply(one)
        code = _call(command)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(out: Path) -> None:
    for descriptor, path in ((1, out), (2, out.with_suffix(".err"))):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _call(command: Command) -> int:
    from sparring.cli import main

    sys.argv = ["sparring", *command.args]
    try:
        if command.python:
            exec(command.python, {"__name__": "__main__"})
        else:
            main()
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    return 0


def _apply(sabotage: Sabotage) -> None:
    module, _, path = sabotage.function.partition(":")
    holder: Any = importlib.import_module(module)
    *holders, name = path.split(".")
    for part in holders:
        holder = getattr(holder, part)
    original = getattr(holder, name)
    calls = 0

    def sabotaged(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if not re.search(sabotage.args, " ".join(map(str, args))):
            return original(*args, **kwargs)
        calls += 1
        if calls != sabotage.nth and not (sabotage.forever and calls > sabotage.nth):
            return original(*args, **kwargs)
        if sabotage.when == "before":
            _strike(sabotage.do)
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        _strike(sabotage.do)
        return result

    setattr(holder, name, sabotaged)


def _strike(do: str) -> None:
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "interrupt":
        signal.raise_signal(signal.SIGINT)
    elif do == "interrupt, lost":
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("an error of foreign code") from None
    elif do == "terminate":
        signal.raise_signal(signal.SIGTERM)
    elif do == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif do == "no memory":
        import torch

        torch.empty(2**50)  # raises what torch raises
    elif do == "leak HF_TOKEN":
        raise RuntimeError(f"401 for the key {os.environ['HF_TOKEN']}")
    elif do == "crash":
        raise RuntimeError("a crash made by a test")
    else:
        raise ValueError(do)


if __name__ == "__main__":
    serve()
