"""Rendering of chat templates in a separate process with limits, because they are programs that come with models.

Jinja's sandbox gives a template no access to files or Python, but it does not prevent endless loops, endless output, or a single operation
on huge numbers. Neither a signal nor another thread can stop such an operation; killing its process can. A fork takes 20 ms and inherits
the tokenizer with its compiled template. Each rendering in it takes 0.15 ms more, compared with 1 ms for the tokenizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

import psutil
from jinja2.exceptions import TemplateError, TemplateRuntimeError, TemplateSyntaxError

# A conversation takes a millisecond; a machine that is busy or swaps may take a thousand times as long
MOST_SECONDS = 20.0
# in addition to the memory of the process when it is forked; a conversation needs a few times its own size
MOST_BYTES = 2**30
# characters beyond TIMES_ITS_OWN times the conversation: system turns, tool lists and dates of templates have thousands
MOST_WRITTEN = 2**20
TIMES_ITS_OWN = 4
GRACE_SECONDS = 5  # after the limit the process ends itself, if its parent did not

Messages = Sequence[dict[str, Any]]
Render = Callable[..., str]


class Renderer:
    """Calls `render(messages, **options)` in another process, which is started at the first call and restarted after it was killed.

    Raises jinja2's TemplateError for any error of `render`, and if a limit above is exceeded.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._process: weakref.finalize[..., Any] | None = None

    def __call__(self, messages: Messages, **options: Any) -> str:
        """What `render` returns."""
        if self._process is None or not self._process.alive:
            self._start()
        try:
            self._pipe.send_bytes(json.dumps([messages, options]).encode())
            if not self._pipe.poll(MOST_SECONDS):
                raise self._ended(f"it does not finish within {MOST_SECONDS:g} s")
            answer = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._ended("its process was killed; the system does that when memory is full") from None
        except BaseException:  # after an interrupt the next answer from the process would be that of this call
            self._ended("")
            raise
        if "line" in answer:
            wrong = TemplateSyntaxError(answer["error"], answer["line"])
            wrong.translated = True  # the caller adds the line number
            raise wrong
        if "error" in answer:
            raise TemplateRuntimeError(answer["error"])
        return answer["text"]

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies, such as those of Ray's workers, which start their own process."""
        return Renderer, (self._render,)

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            _serve(self._render, theirs)
        theirs.close()
        self._process = weakref.finalize(self, _end, pid, self._pipe)
        self._process.atexit = False  # not needed, since it ends with this process, and an interrupt during it would be lost

    def _ended(self, why: str) -> TemplateRuntimeError:
        assert self._process is not None
        self._process()
        return TemplateRuntimeError(why)


def _end(pid: int, pipe: Connection) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)  # no waiting: in a finalizer an interrupt would be lost
    pipe.close()


def _serve(render: Render, pipe: Connection) -> None:
    """Answer until the other end of the pipe is closed, as it is when the parent process has ended in any way."""
    try:
        _close_other_files(pipe.fileno())
        with contextlib.suppress(ValueError, OSError):  # a system without such a limit
            most = psutil.Process().memory_info().vms + MOST_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        while True:
            messages, options = json.loads(pipe.recv_bytes())
            signal.alarm(int(MOST_SECONDS) + GRACE_SECONDS)
            pipe.send_bytes(json.dumps(_answer(render, messages, options)).encode())
            signal.alarm(0)
    finally:
        os._exit(0)


def _close_other_files(kept: int) -> None:
    """Close the parent's locks, sockets, devices and terminals, and reset its signal handlers."""
    for number, handler in ((signal.SIGINT, signal.SIG_IGN), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGALRM, signal.SIG_DFL)):
        signal.signal(number, handler)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)


def _answer(render: Render, messages: Messages, options: dict[str, Any]) -> dict[str, Any]:
    try:
        text = render(messages, **options)
        own = sum(len(json.dumps(message)) for message in messages)
        if len(text) > MOST_WRITTEN + TIMES_ITS_OWN * own:
            return {"error": f"it writes {len(text):,} characters for a conversation of {own:,}"}
        return {"text": text}
    except TemplateSyntaxError as error:
        return {"error": error.message or "", "line": error.lineno}
    except MemoryError:
        return {"error": f"it needs more than {MOST_BYTES // 2**20:,} MiB of memory"}
    except Exception as error:  # a template can raise anything while it renders
        said = str(error).strip()
        return {"error": said if isinstance(error, TemplateError) and said else f"{type(error).__name__}: {said}"}
