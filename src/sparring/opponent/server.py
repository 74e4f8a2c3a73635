"""The server engine: any OpenAI-compatible /v1/completions that takes token ids, and a new player for the servers in every iteration.

The servers get a new player in one of these ways:

- `update_command` makes them load a player's folder; it runs if a server does not list the player's name yet.
- An adapter is loaded into a server that runs its base model (vLLM's /v1/load_lora_adapter), under a name made of its content hash.
- Without either, the user restarts the servers; the check of the log-probs (agreement.py) and `{hash}` in the name detect mistakes.

vLLM and SGLang take token ids. Beyond OpenAI's fields the requests set `return_token_ids`, or ask for token ids instead of texts in the
log-probs (`return_tokens_as_token_ids`). Text alone is not enough: tokenizing it again can give other tokens than those that were sampled.
"""

from __future__ import annotations

import asyncio
import math
import shlex
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sparring.config import SamplerSettings, SamplingSection, ServerSection
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent.endpoints import WHERE, Endpoints, NoAnswer, read_key
from sparring.opponent.protocol import Engine, Prompt, Stream, make_reply
from sparring.policy import adapters
from sparring.policy.load import load_config, weights_hash

MODELS, LOAD_ADAPTER = "/models", "/load_lora_adapter"
HASH = "{hash}"
POLL_SECONDS = 1.0
LAST_LINES = 5

Models = dict[str, str | None]  # served name -> the base model if it is an adapter


def serve(endpoints: Endpoints, folder: Path) -> str:
    """Make every server serve the player in `folder`; returns its served name. Raises UserError if one serves another player.

    A server that does not answer, while another does, is left out for this player: it might restart with an earlier one.
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
    name = section.model
    return name.replace(HASH, _short_hash(folder)) if name and HASH in name else name


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
            state = "does not answer" if models is None else f"serves {_listed(models)}"
            raise UserError(
                f"{seconds:g} s after update_command the server {state}, but it should serve {name or 'the player'}",
                where=f"{WHERE} ({waiting[0]})",
                remedy=f"see the server's own log, or give it more time ({WHERE}.ready_timeout_seconds)",
            )
    assert name is not None
    return name


def _update(endpoints: Endpoints, folder: Path, name: str | None) -> None:
    command, seconds = endpoints.section.update_command, endpoints.section.ready_timeout_seconds
    assert command is not None
    path = folder.absolute()
    words = [word.replace("{model}", str(path)).replace("{name}", name or path.name) for word in shlex.split(command)]
    log.info(f"sampling: update_command for {folder}")
    where = f"{WHERE}.update_command"
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:  # no pipe: a running server would keep it open
        try:
            subprocess.run(words, check=True, timeout=seconds, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        except OSError as error:
            raise UserError(f"cannot run it: {error.strerror}", where=where) from None
        except subprocess.TimeoutExpired:
            what = f"it had not returned after {seconds:g} s ({WHERE}.ready_timeout_seconds) and was stopped"
            raise UserError(what, where=where, remedy="make it start the server in the background (`sparring docs engines`)") from None
        except subprocess.CalledProcessError as error:
            said.seek(0)
            last = " | ".join(said.read().split("\n")[-LAST_LINES - 1 :]).strip(" |")
            what = f"it ended with code {error.returncode}: {endpoints.hidden(last)}"
            raise UserError(what, where=where, remedy="fix it and rerun; the run resumes") from None


# -- adapters


def _load_adapter(endpoints: Endpoints, folder: Path) -> str:
    """Load an adapter into every server that does not have it yet; the folder must be at the same path there."""
    name = f"sparring-{_short_hash(folder)}"
    body = {"lora_name": name, "lora_path": str(folder.absolute())}

    async def load(url: str) -> None:
        if name not in await _models(endpoints, url):
            await endpoints.request("POST", LOAD_ADAPTER, body, url, as_text=True)

    _of_all(endpoints)  # leaves out servers that do not answer
    log.info(f"sampling: the servers load the adapter {name}")
    endpoints.run(endpoints.all([load(url) for url in endpoints.urls]))
    return _require(endpoints, name)


COMPLETIONS = "/completions"
PLACEHOLDER = "token_id:"  # vLLM's prefix of a token if ids are requested


def make_server(settings: SamplerSettings, chat: Chat, folder: Path) -> ServerEngine:
    """The engine of the recipe's servers. Nothing is loaded here but the player's config."""
    return make_server_engine(folder, settings.sampling, chat.stop_ids, load_config(folder).get_text_config().vocab_size)


def make_server_engine(folder: Path, sampling: SamplingSection, stop_ids: Collection[int], vocabulary: float = math.inf) -> ServerEngine:
    """The engine, after the servers serve the player in `folder`, whose token ids are below `vocabulary`."""
    endpoints = Endpoints(sampling.server, read_key(sampling.server))
    try:
        return ServerEngine(endpoints, serve(endpoints, folder), sampling, stop_ids, vocabulary)
    except BaseException:
        endpoints.close()
        raise


class ServerEngine(Engine):
    """Asks for one reply per request, each with the seed of its own stream, so that a repeated request gives the same reply."""

    def __init__(self, endpoints: Endpoints, name: str, sampling: SamplingSection, stop_ids: Collection[int], vocabulary: float) -> None:
        self.endpoints, self.name, self.sampling, self.stop_ids = endpoints, name, sampling, sorted(stop_ids)
        self.vocabulary = vocabulary

    def close(self) -> None:
        self.endpoints.close()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """One reply per prompt, in the order of the prompts. Raises UserError for answers that cannot be used."""
        return self.endpoints.run(self.endpoints.all([self._sample_one(prompt, stream.seed_of(prompt), logps) for prompt in prompts]))

    async def _sample_one(self, prompt: Prompt, seed: int, logps: bool) -> Reply:
        answer = await self.endpoints.request("POST", COMPLETIONS, self._body(prompt, seed))
        reply = read_reply(answer, prompt, self.sampling.max_new_tokens, self.stop_ids, logps)
        if max(reply.token_ids) >= self.vocabulary:
            what = f"the server returns the token {max(reply.token_ids)}, but the player has {self.vocabulary}: it serves another model"
            raise _unusable(what)
        return reply

    def _body(self, prompt: Prompt, seed: int) -> dict[str, Any]:
        sampling = self.sampling
        return {
            "model": self.name,
            "prompt": list(prompt.token_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            "seed": seed,
            "stop_token_ids": self.stop_ids,
            "logprobs": 1,  # some servers read 0 as none
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # a server's own settings would change the distribution silently
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }


def read_reply(answer: Any, prompt: Prompt, limit: int, stop_ids: Collection[int], logps: bool) -> Reply:
    """The reply in a completion. Raises UserError, which says what is wrong, for an answer that does not fit this prompt."""
    choice = _choice(answer)
    tokens, found = _tokens(choice), _logps(choice)
    if choice.get("prompt_token_ids") not in (None, list(prompt.token_ids)):
        raise _unusable("the server changed the prompt: its prompt_token_ids are not those that were sent")
    reply = make_reply(prompt, tokens, stop_ids, found if logps else None)
    if reply.finish_reason == "length" and len(tokens) != limit:
        reason = choice.get("finish_reason")
        raise _unusable(
            f"a reply of {len(tokens)} tokens ends without an end of turn and before max_new_tokens ({limit}), finish_reason {reason!r}",
            "make the server stop only at stop_token_ids and return that token in token_ids",
        )
    if logps and (found is None or len(found) != len(tokens)):
        raise _unusable("no log-probs of the reply's tokens: they are needed to verify which player the server serves")
    return reply


def _choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _unusable(f"this is not a completion: {str(answer)[:100]}", f"check {WHERE}.urls (up to and including /v1)")
    return choices[0]


def _tokens(choice: dict[str, Any]) -> list[int]:
    tokens = choice.get("token_ids")
    if tokens is None:
        words = _of_logprobs(choice, "tokens")
        if words and all(isinstance(word, str) and word.removeprefix(PLACEHOLDER).isdigit() for word in words):
            tokens = [int(word.removeprefix(PLACEHOLDER)) for word in words]
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int and token >= 0 for token in tokens):
        raise _unusable(
            "the server returns text without token ids, and tokenizing the text again can give other tokens than those that were sampled",
            "vLLM from 0.10.2 on and recent SGLang return them (return_token_ids); older vLLM with return_tokens_as_token_ids",
        )
    return tokens


def _logps(choice: dict[str, Any]) -> list[float] | None:
    found = _of_logprobs(choice, "token_logprobs")
    if not isinstance(found, list) or not all(type(value) in (int, float) and math.isfinite(value) for value in found):
        return None
    return [float(value) for value in found]


def _of_logprobs(choice: dict[str, Any], key: str) -> Any:
    logprobs = choice.get("logprobs")
    return logprobs.get(key) if isinstance(logprobs, dict) else None


def _unusable(what: str, remedy: str = "`sparring docs engines` says what a server must support") -> UserError:
    return UserError(what, where=WHERE, remedy=remedy)
