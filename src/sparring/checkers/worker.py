"""The worker process: a user's function, or math-verify. Started as a script by pool.py; imports nothing of sparring.

It exchanges JSON lines over two separate pipes, so that prints cannot mix with them. The first request says what to load and is answered
by {"ready": true} or {"trouble": ...}; every further one is a list of items, answered by {"results": [...]} with one result per item, or
by {"raised": ...} if the call failed as a whole. A result is {"score": number or null}, {"failed": why} or, from math-verify,
{"answer": text or null}.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import math
import os
import select
import shutil
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

Item = dict[str, Any]
LoadedFunction = Callable[[list[Item]], list[Any]]
MAX_ANSWER = 10_000  # characters
SIGNATURES = "f(prompts, completions, **columns) or compute_score(data_source, solution_str, ground_truth, extra_info)"


class Trouble(Exception):
    """The function cannot be loaded; the dictionary says why."""


# ---------------------------------------------------------------------------------------------- a function of the user's own


def own_function(path: str, source: str, name: str) -> LoadedFunction:
    """The function, called as its parameters say: as TRL calls reward functions, or as verl calls `compute_score`."""
    function, signature = named_function(path, source, name, module="checker")
    # arguments are passed by name only
    parameters = {name: one for name, one in signature.parameters.items() if one.kind not in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL)}
    if "solution_str" in parameters:
        return lambda items: [verl_score(function, parameters, item) for item in items]
    if "completions" in parameters:
        return lambda items: trl_scores(function, parameters, items)
    raise Trouble({"signature": str(signature)[:200]})


def named_function(path: str, source: str, name: str, module: str) -> tuple[Callable[..., Any], inspect.Signature]:
    """The function of that name in a file's text, which becomes a module of the name `module`."""
    loaded = load_module(path, source, module)
    function = getattr(loaded, name, None)
    if not callable(function):
        names = [found for found, value in vars(loaded).items() if callable(value) and not found.startswith("_")]
        raise Trouble({"missing": names, "found": type(function).__name__ if function is not None else None})
    try:
        return function, inspect.signature(function)
    except (TypeError, ValueError):
        raise Trouble({"signature": None}) from None


def load_module(path: str, source: str, name: str) -> types.ModuleType:
    """Run the source that the parent has read and hashed, so that every process has the same function. It can import from its folder."""
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    folder = os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))  # without the __future__ of this file
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Trouble({"import": f"{line_of(error, path)}{error_text(error)}"}) from error
    return module


def line_of(error: BaseException, path: str) -> str:
    """The line of the user's file at `path` where the error was raised, as "line N: "; empty if it was raised elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"line {lines[-1]}: " if lines else ""


def trl_scores(function: Callable[..., Any], parameters: Any, items: list[Item]) -> list[Any]:
    """One call for all items, with lists of one element per reply; the function gets the lists that it has parameters for."""
    names = dict.fromkeys(name for item in items for name in item["columns"])
    columns = {name: [item["columns"].get(name) for item in items] for name in names}
    columns["prompts"] = [item["prompt"] for item in items]
    columns["completions"] = [[{"role": "assistant", "content": item["completion"]}] for item in items]
    returned = settled(function(**declared(parameters, columns)))
    if isinstance(returned, (str, bytes, dict, set, frozenset)) or not hasattr(returned, "__len__"):  # a set has no order
        return [failed(f"returned {value_text(returned)} instead of a list of scores")] * len(items)
    if len(returned) != len(items):
        return [failed(f"returned {len(returned)} scores for {len(items)} replies")] * len(items)
    return [result(value) for value in returned]


def verl_score(function: Callable[..., Any], parameters: Any, item: Item) -> Any:
    """One call a reply. An exception costs this reply alone."""
    columns = item["columns"]
    values = {
        "data_source": columns.get("data_source", ""),
        "solution_str": item["completion"],
        "ground_truth": columns["human_reply"] if columns["answer"] is None else columns["answer"],
        "extra_info": columns.get("extra_info", columns),
    }
    try:
        returned = settled(function(**declared(parameters, values)))
    except BaseException as error:
        return failed(f"raised {error_text(error)}")
    if isinstance(returned, dict):
        if "score" not in returned:
            return failed("returned a dictionary without 'score'")
        returned = returned["score"]
    return result(returned)


def declared(parameters: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Those of `values` that the function has a parameter for; all of them if it takes **kwargs."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return values
    return {name: value for name, value in values.items() if name in parameters}


def settled(returned: Any) -> Any:
    """The result of an asynchronous function; any other value unchanged."""

    async def wait() -> Any:
        return await returned

    return asyncio.run(wait()) if inspect.isawaitable(returned) else returned


def result(value: Any) -> Any:
    """A returned value as a result: True is 1, None is no score; texts, NaN and infinities are failures."""
    if value is None:
        return {"score": None}
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        number = float(value)
    except Exception:
        return failed(f"returned {value_text(value)} instead of a number or None")
    return {"score": number} if math.isfinite(number) else failed(f"returned {number}, which is not a score")


def failed(why: str) -> Any:
    """The answer for an item that could not be graded, with the reason."""
    return {"failed": why}


def value_text(value: Any) -> str:
    """Type and shortened repr of a value for a message; the type alone if its repr raises."""
    with contextlib.suppress(Exception):
        return f"{type(value).__name__} {repr(value)[:60]}"
    return type(value).__name__


def error_text(error: BaseException) -> str:
    """Type of an error and the first line of its message, at most 300 characters of it; the type alone if its `str` raises."""
    lines: list[str] = []
    with contextlib.suppress(Exception):
        lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------- math-verify


def math_verify() -> LoadedFunction:
    """Reads one text ({"text": ...}: {"answer": what was read, or null}) or compares two ({"gold": ..., "answer": ...}: a score).

    Its own time-outs are signals, which work in main threads alone and score 0: they are off, and the parent keeps the time.
    """
    from math_verify import parse, verify
    from sympy import nan, zoo

    @functools.lru_cache(maxsize=4096)
    def parsed(text: str) -> list[Any]:
        found = parse(text, parsing_timeout=None)
        values = [value for value in found if not isinstance(value, str)]
        return found if values and not any(value is nan or value is zoo for value in values) else []

    def one(item: Item) -> Any:
        try:
            if "gold" in item:
                return {"score": float(verify(parsed(item["gold"]), parsed(item["answer"]), timeout_seconds=None))}
            found = parsed(item["text"])
        except BaseException as error:
            return failed(f"raised {error_text(error)}")
        return {"answer": str(found[-1])[:MAX_ANSWER] if found else None}

    return lambda items: [one(item) for item in items]


# ---------------------------------------------------------------------------------------------- the process


def end_with_parent(requests: int, replies: int, home: str) -> None:
    """Start a second process that waits until the parent's end of the pipe closes, however the parent ended, and then kills the group and
    removes `home`, the folder of all processes of the pool. A parent that ends its processes itself kills this one first.

    Not a thread: a function that hangs in C would keep it from running.
    """
    if os.fork():
        return
    os.close(replies)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    poller = select.poll()
    poller.register(requests, 0)  # hang-ups alone
    poller.poll()
    group = os.getpgrp()
    os.setpgid(0, 0)  # else it would kill itself before it has removed the folder
    with contextlib.suppress(OSError):  # it may have ended by itself
        os.killpg(group, signal.SIGKILL)
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


def limit_memory(megabytes: int) -> None:
    """Limit the memory that the process writes to; addresses that torch or CUDA reserve and never touch do not count.

    A limit that is too large for the system is none.
    """
    with contextlib.suppress(ImportError, OSError, ValueError, OverflowError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))


def loaded(job: dict[str, Any]) -> LoadedFunction:
    """The function that a job names: the user's own, or math-verify. Raises Trouble if the user's cannot be used."""
    return own_function(**job["own"]) if "own" in job else math_verify()


def answer(function: LoadedFunction, items: list[Item]) -> Any:
    """The function's results for the items, or what it raised, as a message to the parent."""
    try:
        return {"results": function(items)}
    except BaseException as error:
        return {"raised": error_text(error)}


def main(requests: int, replies: int, megabytes: int, home: str) -> None:
    """Load the function, then answer each line of items on `requests` with a line of JSON on `replies` (file descriptors)."""
    end_with_parent(requests, replies, home)
    limit_memory(megabytes)
    for number in (requests, replies):
        os.set_inheritable(number, False)
    own = os.getpid()
    with os.fdopen(requests, encoding="ascii") as lines, os.fdopen(replies, "w", encoding="ascii") as out:

        def send(message: Any) -> None:
            if os.getpid() != own:  # a child that the function forked and let return: its answer would be taken for that of the next call
                os._exit(0)
            out.write(json.dumps(message) + "\n")
            out.flush()

        try:
            function = loaded(json.loads(lines.readline()))
        except Trouble as trouble:
            return send({"trouble": trouble.args[0]})
        send({"ready": True})
        for line in lines:
            send(answer(function, json.loads(line)))
    return None


if __name__ == "__main__":
    *numbers, folder = sys.argv[1:]
    main(int(numbers[0]), int(numbers[1]), int(numbers[2]), folder)
