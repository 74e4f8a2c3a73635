"""`sparring watch`: follows a running run from another terminal by polling its files."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sparring.console import RUN_LOG, animates, printable
from sparring.live.state import ProcessState, RunState, read_state
from sparring.live.status import how_it_is, print_status, resume_command
from sparring.locks import holder
from sparring.progress import PLAIN_LINE_SECONDS, PROGRESS, STALE_SECONDS, Snapshot, in_one_line, live_line, read_progress
from sparring.report.outcome import verdict

POLL_SECONDS = 0.5
# of run.log: date, time, level, message
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d (\d\d:\d\d:\d\d),\d+ ([A-Z]+) (.*)")


def watch(root: Path, out: Console) -> bool:
    """Show the run in `root` until no process works on it; returns whether the game is then finished."""
    state = read_state(root)
    log, pulse = LogTail(root / RUN_LOG), Pulse(root)
    print_status(state, out)
    if state.process is ProcessState.RUNNING:
        shown = _Shown(root, out)
        with shown.live or contextlib.nullcontext():
            while pulse.beats():
                shown.update(log.new_lines())
                time.sleep(POLL_SECONDS)
            shown.update(log.new_lines())
        state = read_state(root)
        _print_end(state, out)
    return state.process is ProcessState.FINISHED


class LogTail:
    """The lines that are added to a run's log from now on."""

    def __init__(self, file: Path) -> None:
        self._file, self._place = file, file.stat().st_size if file.exists() else 0

    def new_lines(self) -> Iterator[str]:
        """The new lines, without those that are for the file only, such as tracebacks."""
        with contextlib.suppress(OSError), open(self._file, "rb") as file:
            file.seek(self._place)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._place += len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                found = LOG_LINE.fullmatch(line)
                if found is not None and found[2] != "DEBUG":
                    yield f"{found[1]} {printable(found[3])}"


class Pulse:
    """Whether the run's process is alive. If its lock is not visible here, its writes decide, timed by this machine's clock."""

    def __init__(self, root: Path) -> None:
        self._root, self._since = root, time.monotonic()
        self._seen = self._written()

    def beats(self) -> bool:
        """Whether the process is alive, as far as this machine can see now."""
        now, written = time.monotonic(), self._written()
        if written != self._seen:
            self._seen, self._since = written, now
        who = holder(self._root)
        if who is None or who.alive is False:
            return False
        return who.alive is True or now - self._since <= STALE_SECONDS

    def _written(self) -> tuple[int, ...]:
        files = [file for name in (PROGRESS, RUN_LOG) if (file := self._root / name).exists()]
        return tuple(file.stat().st_mtime_ns for file in files)


class _Shown:
    """Prints the new log lines, and the progress: updated in place on a terminal, as a separate line from time to time elsewhere."""

    def __init__(self, root: Path, out: Console) -> None:
        self._root, self._out = root, out
        self._now: Snapshot | None = None
        self.live = live_line(lambda: self._now, out) if animates(out) else None
        self._last_line = time.monotonic()

    def update(self, lines: Iterator[str]) -> None:
        self._now = read_progress(self._root).get("now")
        for line in lines:
            self._print(line)
        if self.live is None and self._now is not None and time.monotonic() - self._last_line >= PLAIN_LINE_SECONDS:
            self._print(in_one_line(self._now))

    def _print(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._out.print(Text(line), soft_wrap=not self._out.is_terminal)  # wrapped at words on a terminal only


def _print_end(state: RunState, out: Console) -> None:
    if state.process is ProcessState.FINISHED and state.summary is not None:
        out.print(Text(verdict(state.summary, str(state.root))))
    elif state.process is ProcessState.RUNNING:  # another process has already resumed it
        out.print(Text("another process has resumed the run: call sparring watch again"))
    else:
        out.print(Text(how_it_is(state)))
        out.print(Text(resume_command(state)), soft_wrap=True)
