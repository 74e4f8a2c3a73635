"""HTTP client for one or several servers of the same player: bounded concurrency, retries with back-off, time-outs, a secret key.

A separate thread runs the event loop, so the caller may already have one (a notebook). The content of requests is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2

from sparring.config import ServerSection
from sparring.console import log
from sparring.errors import LEAST_SECRET, UserError

T = TypeVar("T")
WHERE = "sampling.server"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second attempt, and between any two
LONGEST_ASKED_WAIT = 600.0  # seconds of a Retry-After that are waited for
LOGGED_WAIT = 5.0  # seconds: a longer Retry-After is logged
LOOK_AGAIN = 0.01  # seconds until a request without a free URL looks again
CONNECT_SECONDS = 15.0
# temporary: overload, a server that restarts, a gateway without its server
PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
SHOWN = 300  # characters of a server's answer in a message
# limit of an answer. The ids and log-probs of a reply of 100,000 tokens, and of its prompt, have some 20 MB as JSON
MOST_BYTES = 2**26


def read_key(section: ServerSection, where: str = f"{WHERE}.api_key_env") -> str | None:
    """The key from the environment variable that the recipe names. Raises UserError if it is missing or cannot be sent."""
    if section.api_key_env is None:
        return None
    key = os.environ.get(section.api_key_env, "").strip()
    if not key:
        raise UserError(f"the environment variable {section.api_key_env} is not set", where=where, remedy="export the key under this name")
    if not key.isascii() or not key.isprintable():  # an HTTP library would show the key in its error
        raise UserError(f"the environment variable {section.api_key_env} holds characters that no HTTP header can carry", where=where)
    return key


class Refused(UserError):
    """The server refuses the request permanently. `status` is that of its answer."""

    def __init__(self, status: int, what: str, *, where: str, remedy: str) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.status = status


class NoAnswer(UserError):
    """All attempts at a request failed with temporary errors."""


class _Passing(Exception):
    """A temporary failure of one attempt; `wait` is the pause that the server asks for, in seconds."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass
class _Url:
    """`rests_until`: after a failure others are preferred until then; `closed_until`: no requests until then (Retry-After)."""

    base: str
    in_flight: int = 0
    failures: int = 0  # in a row
    rests_until: float = 0.0
    closed_until: float = 0.0

    def rest(self, seconds: float, asked: float | None) -> None:
        now, closed = time.monotonic(), min(asked or 0.0, LONGEST_ASKED_WAIT)
        self.failures += now >= self.rests_until  # requests that fail together are one failure
        if closed >= LOGGED_WAIT and now >= self.closed_until:
            log.info(f"{self.base} asks for a pause of {closed:.0f} s")
        self.rests_until = max(self.rests_until, now + max(seconds, closed))
        self.closed_until = max(self.closed_until, now + closed)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


@dataclass(frozen=True)
class Names:
    """The names in messages: the option of the servers, those of their address, key and limits, and the page with the requirements of a
    server."""

    where: str = WHERE
    server: str = f"{WHERE}.urls and {WHERE}.model"
    key: str = f"{WHERE}.api_key_env"
    limits: str = "concurrency, timeout_seconds, retries"
    manual: str = "`sparring docs engines` says what a server must support"


@dataclass
class Endpoints:
    """The servers of a recipe. `request` may be awaited many times at once; `run` waits for a coroutine, from any thread."""

    section: ServerSection
    key: str | None = field(repr=False)
    names: Names = Names()

    def __post_init__(self) -> None:
        self._urls = [_Url(base) for base in self.section.urls]
        # a request keeps its place while it waits for a retry: at the end of the queue it would take hours to fail
        self._limit = asyncio.Semaphore(self.section.concurrency * len(self._urls))
        self._jitter = random.Random()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sparring-server-engine", daemon=True)
        self._thread.start()
        # no decompression: a kilobyte can decompress to gigabytes
        headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        # no limit on connections here: the semaphore is the limit
        self._client = httpx2.AsyncClient(
            headers=headers,
            follow_redirects=False,  # the key would be sent along
            timeout=httpx2.Timeout(self.section.timeout_seconds, connect=min(CONNECT_SECONDS, self.section.timeout_seconds)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )

    @property
    def urls(self) -> Sequence[str]:
        """The URLs of the recipe without those that were left out."""
        return [found.base for found in self._urls]

    def leave_out(self, url: str) -> None:
        """Send no further requests to this URL."""
        self._urls = [found for found in self._urls if found.base != url]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` on the engine's own loop; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the connections and end the thread of the event loop; a second call does nothing."""
        if self._loop.is_closed():
            return
        self.run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def all(self, work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """The results in order; the first failure cancels the others."""
        tasks = [asyncio.create_task(one) for one in work]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, url: str | None = None, as_text: bool = False
    ) -> Any:
        """The JSON (or text) answer of `url`, or of any server with room. Raises UserError if it refuses or all attempts failed."""
        failed, tried = list[str](), set[str]()
        async with self._limit:
            for attempt in range(self.section.retries + 1):
                at = await self._free_url(url, tried)
                tried.add(at.base)
                with at.busy():
                    try:
                        found = await self._once(at, method, path, body, as_text)
                        at.failures = 0
                        return found
                    except _Passing as error:
                        failed.append(f"{at.base}: {error}")
                        at.rest(self._wait(at.failures), error.wait)
                if attempt < self.section.retries:
                    await asyncio.sleep(self._wait(attempt) if url or len(self._urls) == 1 else self._until_rested())
        raise self._gave_up(failed)

    async def once(self, method: str, path: str, url: str) -> Any:
        """The JSON that the server answers in one attempt, None for a temporary failure. Raises UserError if it refuses."""
        try:
            return await self._once(next(found for found in self._urls if found.base == url), method, path, None)
        except _Passing:
            return None

    async def _free_url(self, url: str | None, tried: Collection[str]) -> _Url:
        """`url` if given, else the best (`_choose`) of those that have not failed this request, or have answered another since. Waits until
        one has room and no Retry-After."""
        among = [found for found in self._urls if url in (None, found.base)]
        while True:
            now = time.monotonic()
            better = [found for found in among if not (found.failures and found.base in tried)]
            at = self._choose([found for found in better or among if found.closed_until <= now], now)
            if at is not None:
                return at
            until_open = min(found.closed_until for found in among) - now
            await asyncio.sleep(max(LOOK_AGAIN, until_open * self._jitter.uniform(1.0, 1.1)))

    def _choose(self, urls: Sequence[_Url], now: float) -> _Url | None:
        """The least busy URL of those that do not rest, or of all if all rest; None if these have no room.

        A URL whose last request failed gets one request at a time until it answers: a server that hangs must not block a whole round again.
        """
        awake = [found for found in urls if found.rests_until <= now] or urls
        healthy = any(not found.failures for found in self._urls)
        room = [found for found in awake if found.in_flight < (1 if found.failures and healthy else self.section.concurrency)]
        return min(room, key=lambda found: (found.in_flight, found.failures), default=None)

    def _until_rested(self) -> float:
        """Seconds until some URL no longer rests."""
        return max(0.0, min(found.rests_until for found in self._urls) - time.monotonic())

    def _wait(self, attempt: int) -> float:
        """Seconds of back-off, doubling, with jitter so that many requests are not repeated at the same moment."""
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt, 60)) * self._jitter.uniform(0.5, 1.0)

    async def _once(self, at: _Url, method: str, path: str, body: dict[str, Any] | None, as_text: bool = False) -> Any:
        try:
            async with asyncio.timeout(self.section.timeout_seconds):  # the client's own time-out restarts with every byte
                response = await self._receive(at, method, path, body)
        except (TimeoutError, httpx2.ReadTimeout):
            raise _Passing(f"no answer within {self.section.timeout_seconds:g} s") from None
        except httpx2.RequestError as error:
            raise _Passing(self.hidden(_plain(error))) from None
        except httpx2.InvalidURL as error:
            raise UserError(f"not the URL of a server: {error}", where=f"{self.names.where} ({at.base})") from None
        if response.status_code in PASSING:
            raise _Passing(f"{response.status_code} {self._words(response)}", _retry_after(response))
        if response.status_code != 200:
            raise self._refused(at, path, response)
        if as_text:
            return self.hidden(response.text)
        try:
            return self._without_key(response.json())
        except (ValueError, RecursionError):  # broken JSON, broken UTF-8, brackets without end
            raise _Passing(f"an answer that is not JSON: {self._words(response)}") from None

    async def _receive(self, at: _Url, method: str, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        """The answer, read up to a size limit."""
        content = bytearray()
        async with self._client.stream(method, at.base + path, json=body) as response:
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > MOST_BYTES:
                    raise UserError(
                        f"the server's answer to {path} does not end within {MOST_BYTES:,} bytes",
                        where=f"{self.names.where} ({at.base})",
                        remedy=self.names.manual,
                    )
        packed = response.headers.get("content-encoding", "identity")
        if packed != "identity":
            raise UserError(
                f"the server's answer to {path} is compressed ({packed[:SHOWN]}), although the request forbids it",
                where=f"{self.names.where} ({at.base})",
                remedy="configure the server or its proxy to respect Accept-Encoding: identity",
            )
        return httpx2.Response(response.status_code, headers=response.headers, content=bytes(content), request=response.request)

    def _refused(self, at: _Url, path: str, response: httpx2.Response) -> Refused:
        status, where = response.status_code, f"{self.names.where} ({at.base})"
        what = f"the server refuses {path}: {status} {self._words(response)}"
        if 300 <= status < 400:
            place = " ".join(self.hidden(response.headers.get("location", "nowhere")).split())[:SHOWN]
            remedy = f"give the right address in {self.names.server}; redirects are not followed, to protect the key"
            return Refused(status, f"the server redirects {path} to {place}", where=where, remedy=remedy)
        if status in (401, 403):
            name = self.section.api_key_env
            remedy = f"check the key in the environment variable {name}" if name else f"name the variable of its key with {self.names.key}"
            return Refused(status, what, where=where, remedy=remedy)
        if status == 404:
            return Refused(status, what, where=where, remedy=f"check {self.names.server} (a URL goes up to and including /v1)")
        return Refused(status, what, where=where, remedy=self.names.manual)

    def _gave_up(self, failed: Sequence[str]) -> NoAnswer:
        kinds = list(dict.fromkeys(failed))
        return NoAnswer(
            f"no usable answer after {len(failed)} attempts; the last: {'; '.join(kinds[-3:])}",
            where=self.names.where,
            remedy=f"check that the server runs and keeps up ({self.names.limits}); then rerun: the run resumes, nothing is lost",
        )

    def _words(self, response: httpx2.Response) -> str:
        """The server's answer, shortened, in one line and without the key."""
        text = " ".join(self.hidden(response.text).split())  # hidden before it is cut, since a cut could leave a part of the key
        return (text if len(text) <= SHOWN else text[:SHOWN] + "...") or self.hidden(response.reason_phrase)

    def _without_key(self, answer: Any) -> Any:
        """A server's JSON with the key replaced by `***` everywhere: parts of an answer are shown, and some are stored."""
        if not self.key or len(self.key) < LEAST_SECRET:
            return answer
        if isinstance(answer, dict):
            return {self.hidden(name): self._without_key(value) for name, value in answer.items()}
        if isinstance(answer, list):
            return [self._without_key(value) for value in answer]
        return self.hidden(answer) if isinstance(answer, str) else answer

    def hidden(self, text: str) -> str:
        """The text without the key, as it is or as JSON writes it."""
        return text.replace(self.key, "***").replace(json.dumps(self.key)[1:-1], "***") if self.key else text


def _plain(error: httpx2.RequestError) -> str:
    kind = {
        "ConnectError": "cannot connect",
        "ConnectTimeout": "cannot connect in time",
        "ReadError": "connection lost",
        "RemoteProtocolError": "connection cut",
    }
    name = type(error).__name__
    return f"{kind.get(name, name)}{f' ({error})' if str(error) else ''}"


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    asked = response.headers.get("retry-after")
    if asked is None:
        return None
    if asked.strip().isdecimal():
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):  # neither of the two, a date without a zone, an impossible year
        return None
