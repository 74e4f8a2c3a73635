"""What the commands share: arguments and options, exit codes and error messages."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sparring import interrupts
from sparring.console import is_in_log_file, printable
from sparring.errors import UserError, without_secrets

USER_ERROR, FAULT, INTERRUPTED = 2, 1, 130
# errors of a path that the user has chosen, or of its file system
CANNOT_BE_USED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def outcome(again: str | None = None) -> Iterator[None]:
    """Turn every exception into a message and an exit code; `again` is the command that resumes the work."""
    resume = f". Resume with:\n  {again}" if again else ""
    if again:
        interrupts.stop_on_signals()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        stop(f"error: {error}", USER_ERROR)
    except KeyboardInterrupt:
        if again:
            interrupts.ignore_signals()
        stop(f"interrupted; nothing finished is lost{resume}", INTERRUPTED)
    except typer.Exit:
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not again:
            raise  # `sparring docs | head`: click ends the command without a word
        if _is_full_disk(error):
            stop(f"error: no space left to write: {error}\n  -> free some space; nothing finished is lost{resume}", USER_ERROR)
        if isinstance(error, OSError) and error.errno in CANNOT_BE_USED and error.filename is not None:
            remedy = "choose another path, or fix its permissions; nothing finished is lost"
            stop(f"error: {_shortened(error.filename)}: {error.strerror}\n  -> {remedy}{resume}", USER_ERROR)
        if "SPARRING_DEBUG" in os.environ:
            raise
        if not again:
            _print_traceback(error)
            raise typer.Exit(FAULT) from None
        if is_in_log_file(error):
            hint = "the traceback is in run.log in the run directory"
        else:
            _print_traceback(error)
            hint = "the traceback is above"
        stop(f"fault: {type(error).__name__}: {error}\n  -> {hint}; resume with:\n  {again}", FAULT)


def _is_full_disk(error: BaseException) -> bool:
    """Also true for libraries that only pass the system's message on as text."""
    return (
        (isinstance(error, OSError) and error.errno in NO_SPACE)
        or "No space left on device" in str(error)
        or "File too large" in str(error)
    )


def _shortened(path: object) -> str:
    text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else str(path)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _print_traceback(error: BaseException) -> None:
    print(printable(without_secrets("".join(traceback.format_exception(error)))), end="", file=sys.stderr)


def stop(message: str, code: int) -> None:
    """Print the message to stderr, with secrets replaced by ***, and exit with this code."""
    print(printable(without_secrets(message)), file=sys.stderr)
    raise typer.Exit(code) from None


def stdout() -> Console:
    """The console of stdout, 160 columns wide if that is not a terminal: rich's 80 columns would break the tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console


def encode_stdout(*, encoding: str | None = None, errors: str | None = None) -> None:
    """Change the encoding or the error handling of stdout."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a test or a notebook may have replaced it
        sys.stdout.reconfigure(encoding=encoding, errors=errors)


class Dtype(StrEnum):
    """The number formats that `--dtype` accepts."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def rounded(self) -> str | None:
        """The format that weights are rounded to; None for float32, the format in which they are trained."""
        return None if self is Dtype.float32 else self.value


def Argument(**details: Any) -> Any:
    """An argument for which --help shows no default: its text says what happens when it is not given."""
    return typer.Argument(show_default=False, **details)


def Option(*names: str, **details: Any) -> Any:
    """As `Argument`, for an option."""
    return typer.Option(*names, show_default=False, **details)


RecipeFile = Annotated[Path, Argument(help="The recipe, a YAML file or builtin:NAME; `sparring docs recipe` lists every key.")]
Overrides = Annotated[list[str] | None, Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that replace the recipe's.")]
RunFolder = Annotated[Path, Argument(metavar="RUN", help="A run directory (run_dir of the recipe).")]
TargetArgument = Annotated[str, Argument(metavar="RUN|MODEL", help="A run directory, a model's folder or its Hub id.")]
PlayersOption = Annotated[
    list[str] | None,
    Option(
        "--player", help="For a run: an iteration's number, best, start or a control's folder; may be repeated. Start and best by default."
    ),
]
Out = Annotated[Path | None, Option(help="Folder of the results; RUN/evaluations or evaluations/MODEL when not given.")]
WeightsOption = Annotated[Dtype, typer.Option(help="Number format of the weights; float32 is exact, the others round.")]
