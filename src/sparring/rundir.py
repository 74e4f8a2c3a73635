"""The run directory is the state: stages with fingerprints, atomic commits, one writer, a manifest.

A stage works in NAME.partial and is renamed to NAME when its `done.json`, written last, is on disk. So a folder without the suffix
is complete, whatever was killed. A finished stage with equal inputs is skipped; one with other inputs is never touched silently.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from sparring import interrupts, locks
from sparring.errors import UserError, first_line
from sparring.files import require_plain

DONE = "done.json"
INPUTS = "inputs.json"
ATTEMPT = "attempt.json"  # when the attempt at a stage began, and the seconds of those before
OF_ATTEMPT = ("began", "seconds")
OF_MAKING = (INPUTS, ATTEMPT)  # in the folder of a stage that is not finished
PARTIAL = ".partial"
RECIPE, MANIFEST = "recipe.yaml", "manifest.json"
CALLS_TOKEN = ".calls.json"  # distinguishes the machines of this game from those of another: calls.py
REMADE = (MANIFEST, ATTEMPT, "summary.json", "micro_batch.json")  # files that a run can resume without
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")


@dataclass(frozen=True)
class StageRecord:
    """The record of a finished stage: its folder, its inputs, the hash (and size and time) of every file, its own facts."""

    name: str
    path: Path
    inputs: dict[str, Any]
    outputs: dict[str, str]
    facts: dict[str, Any]
    stamps: dict[str, list[int]]

    @property
    def digest(self) -> str:
        """Content hash of all outputs: the input of the stages that build on this one."""
        return digest(self.outputs)


class RunDir:
    """One run's folder. Only the holder of `lock()` writes; any process may read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._redone: tuple[str, ...] = ()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run directory as its one writer; the system releases the lock when the process dies."""
        require_plain(self.root)
        with locks.hold(self.root, locks.RANKS_LOCK):  # refused while ranks still run whose launching process was killed
            pass
        with locks.hold(self.root, locks.LOCK):
            yield

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Record this attempt at the run in its manifest: code, libraries and hardware, started now, and how it ended."""
        path = self.root / MANIFEST
        before = read_object(path, "attempts")["attempts"] if path.exists() else []
        attempt = {**environment(), "started": now(), "ended": None, "outcome": "running or killed"}
        write_json(path, {"attempts": [*before, attempt]})
        try:
            yield
            attempt["outcome"] = "done"
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or interrupts.were_received()
            attempt["outcome"] = "interrupted" if stopped else type(error).__name__
            raise
        finally:
            attempt["ended"] = now()
            # a second Ctrl-C waits; a full disk was reported by the code that could not write first
            with interrupts.signals_deferred(), contextlib.suppress(OSError):
                write_json(path, {"attempts": [*before, attempt]})

    def ranks_lock(self) -> contextlib.AbstractContextManager[int]:
        """Hold the run directory as rank 0, which writes while the process that started it may hold `lock`."""
        return locks.hold(self.root, locks.RANKS_LOCK)

    def stage(self, name: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]], replaces: bool = False) -> StageRecord:
        """Return the finished stage `name`, doing `work(folder)` first where it is not finished. `replaces`: as for `begin`.

        `work` may find the files of an interrupted attempt in the folder and resume from them; it returns the stage's facts (JSON), to
        which the seconds are added. Raises UserError when the stage, finished or begun, was made from other inputs, or when a finished
        file was changed by hand.
        """
        begun = self.begin(name, inputs, replaces)
        if isinstance(begun, StageRecord):
            return begun
        return self.commit(name, inputs, work(begun))

    def begin(self, name: str, inputs: dict[str, Any], replaces: bool = False) -> StageRecord | Path:
        """The finished stage `name`, or the folder in which to start or resume its work. Raises UserError as `stage` does.

        replaces: a stage that was made from other inputs is no error; if it is finished, it is kept until `commit`.
        """
        inputs = json.loads(json.dumps(inputs))
        final, partial = self.root / name, self.root / (name + PARTIAL)
        if (partial / DONE).exists():  # killed between the last two moves of a commit: the work is whole
            self._publish(partial, final)
        if (found := self.finished(name)) is not None and not (replaces and any(differences(found.inputs, inputs))):
            self._check_same(name, found.inputs, inputs)
            if replaces:
                shutil.rmtree(partial, ignore_errors=True)  # of work that was to replace it
            return self.verified(name)
        before = read_object(partial / INPUTS) if (partial / INPUTS).exists() and _holds_work(partial) else None
        if before is not None and not (replaces and any(differences(before, inputs))):
            self._check_same(name, before, inputs)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_json(partial / INPUTS, inputs)
        write_json(partial / ATTEMPT, {"began": time.time(), "seconds": _seconds_before(partial)})
        return partial

    def commit(self, name: str, inputs: dict[str, Any], facts: dict[str, Any]) -> StageRecord:
        """Turn the folder that `begin` returned into the finished stage; its facts get the `wall_seconds` of all attempts."""
        partial = self.root / (name + PARTIAL)
        attempt = read_object(partial / ATTEMPT, *OF_ATTEMPT)
        seconds = attempt["seconds"] + max(0.0, time.time() - attempt["began"])
        for leftover in partial.rglob("*.tmp"):  # of a write that was killed before its rename
            leftover.unlink()
        files = sorted(_work_in(partial))
        outputs = {path.relative_to(partial).as_posix(): file_hash(path) for path in files}
        stamps = {file: _stamp(partial / file) for file in outputs}
        for path in (*files, *(path for path in partial.rglob("*") if path.is_dir())):
            fsync(path)
        facts = {**facts, "wall_seconds": round(seconds, 3)}
        done = {"inputs": inputs, "outputs": outputs, "facts": facts, "finished": now(), "stamps": stamps}
        write_json(partial / DONE, done)
        self._publish(partial, self.root / name)
        return self._read_done(name)

    def finished(self, name: str) -> StageRecord | None:
        """The finished stage, or None. Reads `done.json` only."""
        return self._read_done(name) if name not in self._redone and (self.root / name / DONE).exists() else None

    def verified(self, name: str) -> StageRecord:
        """The finished stage. Raises UserError when a file was changed by hand; cheap while sizes and times are those of the commit."""
        record = self._read_done(name)
        self._check_untouched(record)
        return record

    def inputs_of(self, name: str) -> dict[str, Any] | None:
        """What a stage, finished or begun, was or is being made from; None where there is none."""
        if name in self._redone:
            return None
        if (found := self.finished(name)) is not None:
            return found.inputs
        partial = self.root / (name + PARTIAL)
        if (partial / DONE).exists():  # finished, and killed before it was renamed
            return read_object(partial / DONE, "inputs")["inputs"]
        return read_object(partial / INPUTS) if (partial / INPUTS).exists() else None

    def changes(self, name: str, inputs: dict[str, Any]) -> list[str]:
        """One line per input in which the stage, finished or begun, was made from something else; none where there is no stage."""
        before = self.inputs_of(name)
        return [] if before is None else list(differences(before, json.loads(json.dumps(inputs))))

    def remove_stage(self, name: str) -> bool:
        """Delete a stage, finished or begun; True when there was one. The files that mark it as finished or begun are deleted first, so
        that a kill cannot leave half a stage."""
        removed = False
        for folder in (self.root / name, self.root / (name + PARTIAL)):
            if folder.exists():
                for file in (DONE, INPUTS):
                    (folder / file).unlink(missing_ok=True)
                shutil.rmtree(folder)
                removed = True
        return removed

    def redo(self, stages: Sequence[str]) -> None:
        """Treat these stages as if there were none of them, until `delete_redone` deletes them: a run that ends before has lost nothing."""
        self._redone = tuple(stages)

    @property
    def redone(self) -> tuple[str, ...]:
        """The stages of `redo` that are not deleted yet."""
        return self._redone

    def delete_redone(self) -> list[str]:
        """Delete the stages of `redo`, the last one first, so that a kill in between leaves a run that can resume. Returns the names of
        those that were on the disk."""
        stages, self._redone = self._redone, ()
        return [name for name in reversed(stages) if self.remove_stage(name)]

    def remove_changed(self, name: str, inputs: dict[str, Any]) -> list[str]:
        """Delete a stage, finished or begun, that was made from other inputs; returns in which it differed."""
        changes = self.changes(name, inputs)
        if changes:
            self.remove_stage(name)
        return changes

    def _read_done(self, name: str) -> StageRecord:
        path = self.root / name
        done = read_json(path / DONE)
        try:
            return StageRecord(name, path, done["inputs"], done["outputs"], done["facts"], done["stamps"])
        except (KeyError, TypeError):
            raise UserError(
                "this is not the record of a finished stage: it was changed by hand",
                where=str(path / DONE),
                remedy=f"put it back, or redo from there with --restart-from {name}",
            ) from None

    def _publish(self, partial: Path, final: Path) -> None:
        """Give the finished work its name; from its done.json on, this may be repeated after a kill."""
        for name in OF_MAKING:
            (partial / name).unlink(missing_ok=True)
        if final.exists():  # a stage that this one replaces, or leftovers of a removal that was killed
            (final / DONE).unlink(missing_ok=True)  # first, so that a kill cannot leave a part of it that looks finished
            shutil.rmtree(final)
        fsync(partial)
        os.replace(partial, final)
        fsync(final.parent)

    def _check_same(self, name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        changes = list(differences(before, after))
        if changes:
            raise UserError(
                f"stage {name} was made from other inputs\n  " + "\n  ".join(changes),
                where=str(self.root),
                remedy=f"either undo the change and run again, or redo from there on purpose with --restart-from {name} "
                "(or keep this run and choose another run_dir)",
            )

    def _check_untouched(self, record: StageRecord) -> None:
        for name, expected in record.outputs.items():
            path = record.path / name
            if not path.exists():
                raise self._touched(record, name, "is missing")
            # the full hash is read only where size or time differ from the commit: a 70B model is not hashed at every start
            if _stamp(path) != record.stamps.get(name) and file_hash(path) != expected:
                raise self._touched(record, name, "was changed after the stage had finished (its hash differs)")
        for path in record.path.rglob("*"):  # a stage reads all shards of a folder, so an additional file is a change too
            name = path.relative_to(record.path).as_posix()
            if path.is_file() and not path.name.startswith(".") and name not in record.outputs and name != DONE:
                raise self._touched(record, name, "was added after the stage had finished", "delete it")

    def _touched(self, record: StageRecord, name: str, what: str, fix: str = "put the file back") -> UserError:
        return UserError(f"{name} {what}", where=str(record.path), remedy=f"{fix}, or redo from there with --restart-from {record.name}")


def environment() -> dict[str, Any]:
    """Versions and hardware, without names of people, hosts or folders."""
    libraries = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            libraries[name] = metadata.version(name)
    return {
        "sparring": metadata.version("sparring"),
        "python": platform.python_version(),
        "libraries": libraries,
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()},
    }


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """One line per leaf that differs: `key: old -> new`."""
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {_short(old)} -> {_short(new)}"


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The value in a file of the run. Raises UserError if it is not JSON in UTF-8, OSError if it cannot be opened."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise _changed(path, f"not valid JSON: {first_line(error)}") from None


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """As `read_json`, for a file that must hold an object with at least these keys."""
    found = read_json(path)
    if not isinstance(found, dict) or not set(keys) <= found.keys():
        missing = next((key for key in keys if not isinstance(found, dict) or key not in found), None)
        raise _changed(path, "not a file that a run writes" + (f": it has no {missing!r}" if missing else ""))
    return found


def _changed(path: Path, what: str) -> UserError:
    remedy = "delete it, and the next run writes it again" if path.name in REMADE else "restore it, or restart from its stage"
    return UserError(what, where=str(path), remedy=f"it was truncated or changed by hand; {remedy}")


def write_json(path: Path, value: Any) -> None:
    """Write atomically: readers see the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write atomically and durably."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def replace_link(link: Path, target: str | Path) -> None:
    """Point the symbolic link `link` to `target`, atomically."""
    temporary = link.with_name(link.name + ".tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary, target_is_directory=True)
    os.replace(temporary, link)


def now() -> str:
    """The time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _holds_work(partial: Path) -> bool:
    """Whether an attempt wrote a file: an attempt that stopped at bad data leaves nothing that would block one with fixed data."""
    return any(path.stat().st_size for path in _work_in(partial) if not path.name.endswith(".tmp"))


def _work_in(partial: Path) -> Iterator[Path]:
    """The files that the work on an unfinished stage has written."""
    about = [partial / name for name in OF_MAKING]
    return (path for path in partial.rglob("*") if path.is_file() and path not in about)


def _seconds_before(partial: Path) -> float:
    """The seconds of earlier attempts. A killed one has no end time and counts up to the last file that it wrote."""
    if not (partial / ATTEMPT).exists():
        return 0.0
    before = read_object(partial / ATTEMPT, *OF_ATTEMPT)
    last = max((path.stat().st_mtime for path in _work_in(partial)), default=0.0)
    return before["seconds"] + max(0.0, last - before["began"])


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
