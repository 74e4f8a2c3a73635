"""A function of the user's own that a recipe names, `path/to/file.py:function`: a checker, which runs in processes of its own, or an
objective, which runs in this one."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.console import printable
from sparring.errors import UserError, first_line, nearest

OWN_CODE = "path/to/file.py:function"


def is_own_code(name: str | None) -> bool:
    """Whether `name` has the form `path/to/file.py:function`."""
    return name is not None and ".py:" in name


@functools.lru_cache(maxsize=4)
def _loaded(path: str, source: str, function: str) -> tuple[Callable[..., Any], Any]:
    """The function and its signature; the file is run once."""
    from sparring.checkers.worker import named_function

    return named_function(path, source, function, module="own_code")


@dataclass(frozen=True)
class OwnCode:
    """The text of a file and the name of a function that is in it. `where`: the option that names them."""

    where: str
    path: str
    function: str
    source: str
    sha256: str

    @classmethod
    def read(cls, name: str, where: str) -> OwnCode:
        """Read the file that `name` names, relative to the current folder. Raises UserError if there is no such Python file."""
        path, _, function = name.rpartition(":")
        path = os.path.expanduser(path)  # as in other paths of a recipe; unlike Path it leaves ./ as it is, which is in fingerprints
        file = Path(path)
        if file.suffix != ".py" or not file.is_file():
            why = "is not a Python file (.py)" if file.is_file() else "does not exist"
            raise UserError(f"the file {path} {why}", where=where, remedy=f"name a local file and its function: {OWN_CODE}")
        try:
            data = file.read_bytes()
            return cls(where, path, function, importlib.util.decode_source(data), hashlib.sha256(data).hexdigest())
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise UserError(f"the file {path} cannot be read: {first_line(error)}", where=where) from error

    def load(self, wanted: str, *positional: Any, **named: Any) -> Callable[..., Any]:
        """The function, in this process. Raises UserError if the file cannot be imported, or has no function that takes such arguments;
        `wanted`: what the function must be, in words."""
        from sparring.checkers.worker import Trouble

        try:
            function, signature = _loaded(self.path, self.source, self.function)
        except Trouble as trouble:
            raise self.explained(trouble.args[0], wanted) from trouble
        try:
            signature.bind(*positional, **named)
        except TypeError:
            raise self.explained({"signature": str(signature)[:200]}, wanted) from None
        return function

    def error_text(self, error: Exception) -> str:
        """What the function raised, and at which line of the file."""
        from sparring.checkers.worker import error_text, line_of

        return f"{line_of(error, self.path)}{error_text(error)}"

    def explained(self, trouble: Mapping[str, Any], wanted: str, remedy: str | None = None) -> UserError:
        """The error for a function that could not be loaded. `wanted`: what it must be, in words; `remedy`: for a failed import."""
        path, function = self.path, self.function
        if "missing" in trouble:
            if trouble["found"]:
                return UserError(f"{function} in {path} is not a function but of type {trouble['found']}", where=self.where)
            near = nearest(function, trouble["missing"])
            return UserError(f"{path} has no function {function!r}", where=self.where, remedy=f"did you mean {near}?" if near else None)
        if "signature" in trouble:
            what = f"{function} in {path} takes {trouble['signature'] or 'arguments that cannot be determined'}"
            return UserError(what, where=self.where, remedy=wanted)
        what = f"{path} cannot be imported: {printable(trouble.get('import') or trouble['lost'])}"
        if printed := trouble.get("printed"):
            what += f"\n  it printed: {printed}"
        return UserError(what, where=self.where, remedy=remedy)
