"""The player that the servers serve: a new one in every iteration, and never silently an earlier one.

- `update_command` makes them load a player's folder; it runs if a server does not list the player's name yet.
- An adapter is loaded into a server that runs its base model (vLLM's /v1/load_lora_adapter), under a name made of its content hash.
- Without either, the user restarts the servers; the check of the log-probs (agreement.py) and `{hash}` in the name detect mistakes.
"""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from sparring.config import ServerSection
from sparring.console import log
from sparring.errors import UserError
from sparring.opponent.endpoints import WHERE, Endpoints, NoAnswer
from sparring.policy import adapters
from sparring.policy.load import weights_hash

MODELS, LOAD_ADAPTER = "/models", "/load_lora_adapter"
HASH = "{hash}"
POLL_SECONDS = 1.0
LAST_LINES = 5

Models = dict[str, str | None]  # served name -> the base model if it is an adapter


def serve(endpoints: Endpoints, folder: Path) -> str:
    """Make every server serve the player in `folder`; returns its served name. Raises UserError if one serves another player.

    A server that does not answer, while another does, is left out for this player: it might come back with an earlier one.
    """
    section = endpoints.section
    name = _name(section, folder)
    if section.update_command is None:
        if adapters.is_adapter(folder):
            return _load_adapter(endpoints, folder)
        return _require(endpoints, name)
    if HASH not in (section.model or "") or not all(name in (_served_now(endpoints, url) or ()) for url in endpoints.urls):
        _update(endpoints, folder, name)
    return _wait_for(endpoints, name)


def _name(section: ServerSection, folder: Path) -> str | None:
    if section.model is None or HASH not in section.model:
        return section.model
    return section.model.replace(HASH, _short_hash(folder))


def _short_hash(folder: Path) -> str:
    return weights_hash(folder)[:12]


def _require(endpoints: Endpoints, name: str | None) -> str:
    """The name that all servers serve; None selects the only model that they have."""
    for url, models in _of_all(endpoints).items():
        name = name or _only(models, url)
        if name not in models:
            raise UserError(
                f"the server does not serve {name!r}; it serves {_listed(models)}",
                where=f"{WHERE}.model ({url})",
                remedy="serve this player there under this name, or give an update_command that does (`sparring docs engines`)",
            )
    assert name is not None
    return name


def _of_all(endpoints: Endpoints) -> dict[str, Models]:
    """The models of every server; servers that do not answer are left out, unless none answers."""

    async def ask() -> list[Models | BaseException]:
        return await asyncio.gather(*(_models(endpoints, url) for url in endpoints.urls), return_exceptions=True)

    found = dict(zip(endpoints.urls, endpoints.run(ask()), strict=True))
    silent = {url: error for url, error in found.items() if isinstance(error, NoAnswer)}
    for error in found.values():
        if isinstance(error, BaseException) and (not isinstance(error, NoAnswer) or len(silent) == len(found)):
            raise error
    for url, error in silent.items():
        _leave_out(endpoints, url, error.what)
    return {url: models for url, models in found.items() if not isinstance(models, BaseException)}


def _leave_out(endpoints: Endpoints, url: str, why: str) -> None:
    log.warning(f"sampling: the server at {url} is left out for this player: {why}")
    endpoints.leave_out(url)


def _only(models: Models, url: str) -> str:
    names = [name for name, parent in models.items() if parent is None]
    if len(names) != 1:
        what = f"the server serves {len(names)} models: {_listed(models)}"
        raise UserError(what, where=f"{WHERE} ({url})", remedy=f"name one of them in {WHERE}.model")
    return names[0]


def _listed(models: Models) -> str:
    return ", ".join(map(repr, models)) or "nothing"


async def _models(endpoints: Endpoints, url: str) -> Models:
    return _read_models(await endpoints.request("GET", MODELS, url=url), url)


def _read_models(answer: Any, url: str) -> Models:
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in entries):
        raise UserError(f"this is not a list of models: {str(answer)[:100]}", where=f"{WHERE} ({url}{MODELS})", remedy="check the URL")
    return {entry["id"]: entry.get("parent") for entry in entries}


def _served_now(endpoints: Endpoints, url: str) -> Models | None:
    """The models of a server, in one attempt; None if it does not answer, since it may be starting."""
    answer = endpoints.run(endpoints.once("GET", MODELS, url))
    return None if answer is None else _read_models(answer, url)


def _wait_for(endpoints: Endpoints, name: str | None) -> str:
    """Poll until every server lists the player. After the wait a server that does not answer is left out, unless none has the player."""
    seconds = endpoints.section.ready_timeout_seconds
    end = time.monotonic() + seconds
    waiting = list(endpoints.urls)
    while waiting:
        models = _served_now(endpoints, waiting[0])
        if models and name is None:
            name = _only(models, waiting[0])
        if models and name in models:
            waiting.pop(0)
        elif time.monotonic() <= end:
            waiting.append(waiting.pop(0))
            time.sleep(POLL_SECONDS)
        elif models is None and len(waiting) < len(endpoints.urls):
            _leave_out(endpoints, waiting.pop(0), f"no answer {seconds:g} s after update_command")
        else:
            says = "does not answer" if models is None else f"serves {_listed(models)}"
            raise UserError(
                f"{seconds:g} s after update_command the server {says}, where {name or 'the player'} should be served",
                where=f"{WHERE} ({waiting[0]})",
                remedy=f"see the server's own log, or give it longer ({WHERE}.ready_timeout_seconds)",
            )
    assert name is not None
    return name


def _update(endpoints: Endpoints, folder: Path, name: str | None) -> None:
    command, seconds = endpoints.section.update_command, endpoints.section.ready_timeout_seconds
    assert command is not None
    values = {"{model}": str(folder.absolute()), "{name}": name or folder.absolute().name}
    words = [_filled(word, values) for word in shlex.split(command)]
    log.info(f"sampling: update_command for {folder}")
    where = f"{WHERE}.update_command"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:  # no pipe: a running server would keep it open
        try:
            subprocess.run(words, check=True, timeout=seconds, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        except OSError as error:
            raise UserError(f"cannot run it: {error.strerror}", where=where) from None
        except subprocess.TimeoutExpired:
            what = f"it was ended, for it had not returned after {seconds:g} s ({WHERE}.ready_timeout_seconds)"
            raise UserError(what, where=where, remedy="have it start the server in the background (`sparring docs engines`)") from None
        except subprocess.CalledProcessError as error:
            said.seek(0)
            last = " | ".join(said.read().split("\n")[-LAST_LINES - 1 :]).strip(" |")
            what = f"it ended with code {error.returncode}: {endpoints.hidden(last)}"
            raise UserError(what, where=where, remedy="fix it and rerun; the run resumes") from None


def _filled(word: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word


# -- adapters


def _load_adapter(endpoints: Endpoints, folder: Path) -> str:
    """Load an adapter into every server that does not have it yet; the folder must be at the same path there."""
    name = f"sparring-{_short_hash(folder)}"
    body = {"lora_name": name, "lora_path": str(folder.absolute())}

    async def load(url: str) -> None:
        if name not in await _models(endpoints, url):
            await endpoints.request("POST", LOAD_ADAPTER, body, url, as_text=True)

    async def load_all() -> None:
        await asyncio.gather(*(load(url) for url in endpoints.urls))

    _of_all(endpoints)  # leaves out servers that do not answer
    log.info(f"sampling: the servers load the adapter {name}")
    endpoints.run(load_all())
    return _require(endpoints, name)
