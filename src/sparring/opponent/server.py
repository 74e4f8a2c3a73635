"""The server engine: any OpenAI-compatible /v1/completions that takes token ids and returns token ids with their log-probs.

vLLM and SGLang do. Beyond OpenAI's fields the requests set `return_token_ids`, or ask for token ids instead of texts in the log-probs
(`return_tokens_as_token_ids`). Text alone is not enough: tokenizing it again can give other tokens than those that were sampled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sparring.config import SamplerSettings, SamplingSection
from sparring.data.chat import Chat
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent.endpoints import WHERE, Endpoints, read_key
from sparring.opponent.protocol import Prompt, Stream, make_reply
from sparring.opponent.served import serve
from sparring.policy.load import load_config

COMPLETIONS = "/completions"
PLACEHOLDER = "token_id:"  # vLLM's prefix of a token if ids are requested


def make_server(settings: SamplerSettings, chat: Chat, folder: Path) -> ServerEngine:
    """The engine of the recipe's servers. Nothing is loaded here but the player's config."""
    return make_server_engine(folder, settings.sampling, chat.stop_ids, load_config(folder).get_text_config().vocab_size)


def make_server_engine(folder: Path, sampling: SamplingSection, stop_ids: Collection[int], vocabulary: float = math.inf) -> ServerEngine:
    """The engine, once the servers serve the player in `folder`, which knows tokens below `vocabulary`."""
    endpoints = Endpoints(sampling.server, read_key(sampling.server))
    try:
        return ServerEngine(endpoints, serve(endpoints, folder), sampling, stop_ids, vocabulary)
    except BaseException:
        endpoints.close()
        raise


class ServerEngine:
    """Asks for one reply per request, each with the seed of its own stream, so that a repeated request gives the same reply."""

    def __init__(self, endpoints: Endpoints, name: str, sampling: SamplingSection, stop_ids: Collection[int], vocabulary: float) -> None:
        self.endpoints, self.name, self.sampling, self.stop_ids = endpoints, name, sampling, sorted(stop_ids)
        self.vocabulary = vocabulary

    def at(self, temperature: float) -> ServerEngine:
        other = copy.copy(self)
        other.sampling = self.sampling.model_copy(update={"temperature": temperature})
        return other

    def close(self) -> None:
        self.endpoints.close()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """One reply per prompt, in the order of the prompts. Raises UserError for answers that cannot be used."""
        return self.endpoints.run(self._sample_all(prompts, stream, logps))

    async def _sample_all(self, prompts: Sequence[Prompt], stream: Stream, logps: bool) -> list[Reply]:
        return await self.endpoints.all([self._sample_one(prompt, stream.seed_of(prompt), logps) for prompt in prompts])

    async def _sample_one(self, prompt: Prompt, seed: int, logps: bool) -> Reply:
        answer = await self.endpoints.request("POST", COMPLETIONS, self._body(prompt, seed))
        reply = read_reply(answer, prompt, self.sampling.max_new_tokens, self.stop_ids, logps)
        if max(reply.token_ids) >= self.vocabulary:
            what = f"the server returns the token {max(reply.token_ids)}, and the player knows {self.vocabulary}: it serves another model"
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
    """The reply in a completion. Raises UserError, which says what is missing, for an answer that cannot be one to this prompt."""
    choice = _choice(answer)
    tokens, found = _tokens(choice), _logps(choice)
    if choice.get("prompt_token_ids") not in (None, list(prompt.token_ids)):
        raise _unusable("the server changed the prompt: its prompt_token_ids are not those that were sent")
    reply = make_reply(prompt, tokens, stop_ids, found if logps else None)
    if reply.finish_reason == "length" and len(tokens) != limit:
        said = choice.get("finish_reason")
        raise _unusable(
            f"a reply of {len(tokens)} tokens ends without an end of turn and before max_new_tokens ({limit}), finish_reason {said!r}",
            "have the server stop at stop_token_ids alone and leave that token in token_ids",
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
