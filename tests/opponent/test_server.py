"""The server engine against an endpoint on loopback: the same distribution, and a clear end for everything that a server can do wrong."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exact import LONG, SHORT, STOP, next_token, p_value, same_prompt, sequences, tiny
from loopback import Fault, Loopback, Served

from sparring.config import SamplingSection, ServerSection
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent import endpoints
from sparring.opponent.agreement import check_agreement
from sparring.opponent.protocol import Prompt, Stream
from sparring.opponent.server import make_server_engine
from sparring.policy.score import Scorer

pytestmark = pytest.mark.long

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny()


@pytest.fixture
def start(model: Any) -> Iterator[Callable[..., Loopback]]:
    started: list[Loopback] = []

    def make(served: Served | None = None, name: str = "player") -> Loopback:
        started.append(Loopback({name: served or Served(model)}))
        return started[-1]

    yield make
    for server in started:
        server.close()


@pytest.fixture
def server(start: Callable[..., Loopback]) -> Loopback:
    return start()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.02)


def sampling(*servers: Loopback | str, section: dict[str, Any] | None = None, **changes: Any) -> SamplingSection:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    values = {"max_new_tokens": 2, "engine": "server", **changes}
    return SamplingSection(**values, server=ServerSection(**{"urls": urls, "retries": 2, **(section or {})}))


def draw(settings: SamplingSection, prompts: list[Prompt], stream: Stream = Stream(0, 0), **more: Any) -> list[Reply]:  # noqa: B008
    engine = make_server_engine(Path("nowhere"), settings, [STOP], vocabulary=500)
    try:
        return engine.sample(prompts, stream, **more)
    finally:
        engine.close()


def refused(settings: SamplingSection, *parts: str, prompts: int = 3) -> str:
    with pytest.raises(UserError) as caught:
        draw(settings, same_prompt(LONG, prompts), logps=True)
    assert not [part for part in parts if part not in str(caught.value)], str(caught.value)
    return str(caught.value)


# --- the distribution


N = 1200


@pytest.mark.parametrize("shape", [{"temperature": 1.0, "top_p": 1.0}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_frequencies_are_the_models_own(model: Any, server: Loopback, shape: dict[str, float]) -> None:
    """The chi-square test of the transformers engine, over HTTP."""
    for ids in (LONG, SHORT):
        sampled = [reply.token_ids for reply in draw(sampling(server, **shape), same_prompt(ids, N))]
        one = {(token,): p for token, p in enumerate(next_token(model, ids, **shape)) if p > 0}
        assert p_value([ids[:1] for ids in sampled], one) > 1e-3
        assert p_value(sampled, sequences(model, ids, **shape)) > 1e-3


def test_a_server_at_another_temperature_would_be_seen(model: Any, start: Callable[..., Loopback]) -> None:
    replies = draw(sampling(start(Served(model, temperature_factor=0.8))), same_prompt(LONG, N))
    assert p_value([reply.token_ids for reply in replies], sequences(model, LONG)) < 1e-6


def test_a_reply_depends_on_its_row_alone(server: Loopback) -> None:
    settings = sampling(server, max_new_tokens=8)
    prompts = [Prompt(f"row{n // 2}", n % 2, LONG[: 1 + n % 5]) for n in range(20)]
    replies = draw(settings, prompts)
    assert draw(settings, prompts[::-1]) == replies[::-1]
    assert draw(settings, prompts[3:5]) == replies[3:5]
    assert draw(settings, prompts, Stream(1, 0)) != replies and draw(settings, prompts, Stream(0, 1)) != replies
    assert [(reply.row_id, reply.replica) for reply in replies] == [(prompt.row_id, prompt.replica) for prompt in prompts]
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert (reply.token_ids[-1] == STOP) == (reply.finish_reason == "stop") and STOP not in reply.token_ids[:-1]


def test_what_is_sent_leaves_nothing_to_the_servers_own_settings(server: Loopback) -> None:
    draw(sampling(server, temperature=0.0, top_p=0.5), same_prompt(LONG, 1))
    (body,) = server.bodies
    assert body["prompt"] == list(LONG) and body["stop_token_ids"] == [STOP] and body["max_tokens"] == 2
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.0, 1.0, -1, 0.0)
    assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)


def test_inside_a_running_event_loop(server: Loopback) -> None:
    """In a notebook there is one already."""

    async def notebook() -> list[Reply]:
        return draw(sampling(server), same_prompt(LONG, 3))

    assert asyncio.run(notebook()) == draw(sampling(server), same_prompt(LONG, 3))


# --- the check of the log-probs


def check(model: Any, settings: SamplingSection, rows: int = 8, prompt: tuple[int, ...] = LONG) -> dict[str, Any]:
    prompts = same_prompt(prompt, rows)
    return check_agreement(Scorer(model), settings, prompts, draw(settings, prompts, logps=True))


def test_the_log_probs_agree(model: Any, server: Loopback) -> None:
    for shape in ({}, {"temperature": 0.0}, {"temperature": 0.7, "top_p": 0.8}):
        found = check(model, sampling(server, max_new_tokens=16, **shape), rows=10)
        assert found["rows"] == 8 and found["tokens"] > 15 and found["worst"] < 1e-4 and found["p_value"] > 1e-6, found


def test_a_server_that_lies_is_found_out(model: Any, start: Callable[..., Loopback]) -> None:
    """It draws from our player and shows another model's log-probs; it serves another player; it draws at another temperature."""
    for served in (Served(model, shown=tiny(seed=1)), Served(tiny(seed=1))):
        with pytest.raises(UserError, match=r"does not sample from the player that is scored(.|\n)*other weights"):
            check(model, sampling(start(served), max_new_tokens=10))
    with pytest.raises(UserError, match=r"does not sample at temperature 1(.|\n)*are the likeliest at their position"):
        check(model, sampling(start(Served(model, temperature_factor=0.2)), max_new_tokens=60))
    with pytest.raises(UserError, match="does not sample at temperature 0 "):
        settings, prompts = sampling(start(), max_new_tokens=60), same_prompt(LONG, 8)
        drawn = draw(settings, prompts, logps=True)
        check_agreement(Scorer(model), settings.model_copy(update={"temperature": 0.0}), prompts, drawn)


def test_log_probs_after_the_temperature_are_named(model: Any, server: Loopback) -> None:
    def tempered(answer: dict[str, Any]) -> dict[str, Any]:
        choice, body = answer["choices"][0], server.bodies[-1]
        prefix, found = list(body["prompt"]), []
        for token in choice["token_ids"]:
            found.append(math.log(next_token(model, tuple(prefix), temperature=0.5)[token]))
            prefix.append(token)
        choice["logprobs"]["token_logprobs"] = found
        return answer

    server.answer = tempered
    with pytest.raises(UserError, match=r"they agree with those at temperature 0.5(.|\n)*raw_logprobs"):
        check(model, sampling(server, temperature=0.5, max_new_tokens=10, section={"concurrency": 1}))


# --- several servers, busy servers


def test_several_servers_share_the_work(start: Callable[..., Loopback]) -> None:
    servers = [start(), start()]
    replies = draw(sampling(*servers, section={"concurrency": 3}), same_prompt(LONG, 60))
    assert replies == draw(sampling(servers[0]), same_prompt(LONG, 60))
    assert all(len(server.bodies) > 15 for server in servers)


def test_concurrency_is_bounded(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(body="not JSON", seconds=0.02) if n <= 12 else None
    draw(sampling(server, section={"concurrency": 4, "retries": 8}), same_prompt(LONG, 30))
    assert 1 < server.busiest <= 4


def test_a_server_that_breaks_down_is_left_out(start: Callable[..., Loopback]) -> None:
    one, other = start(), start()
    one.fault = lambda n, body: Fault(status=503, body="down") if n > 5 else None
    replies = draw(sampling(one, other, section={"concurrency": 2}), same_prompt(LONG, 80))
    assert len(replies) == 80 and len(one.bodies) < 40 < len(other.bodies)
    assert other.busiest <= 2, "the other one gets no more at once for it"


def test_a_server_that_is_down_when_a_stage_begins_is_left_out(start: Callable[..., Loopback], caplog: pytest.LogCaptureFixture) -> None:
    gone, other = start(), start()
    expected = draw(sampling(other), same_prompt(LONG, 6))
    gone.close()
    with caplog.at_level("WARNING", "sparring"):
        assert draw(sampling(gone, other), same_prompt(LONG, 6)) == expected
    assert f"the server at {gone.url} is left out for this player: no usable answer" in caplog.text
    other.models = {"another": other.models["player"]}
    refused(sampling(gone, other, section={"model": "player"}), "does not serve 'player'", other.url)
    other.close()
    refused(sampling(gone, other), "no usable answer after 3 attempts", gone.url)


def test_a_server_that_hangs_gets_one_request_at_a_time(start: Callable[..., Loopback]) -> None:
    hangs, other = start(), start()
    hangs.fault = lambda n, body: Fault(seconds=1.0)
    other.fault = lambda n, body: time.sleep(0.02)
    settings = sampling(hangs, other, section={"concurrency": 4, "timeout_seconds": 0.3})
    began = time.monotonic()
    assert len(draw(settings, same_prompt(LONG, 200))) == 200
    assert len(hangs.bodies) <= 4 + (time.monotonic() - began) / 0.3 + 1


def test_a_request_gives_up_after_its_own_attempts_not_those_of_the_queue(server: Loopback) -> None:
    """An hour's time-outs for a shard of 2,048 rows, and not three days of them."""
    server.fault = lambda n, body: Fault(seconds=1.0)
    began = time.monotonic()
    refused(sampling(server, section={"concurrency": 2, "timeout_seconds": 0.1}), "no answer within 0.1 s", prompts=60)
    assert time.monotonic() - began < 2 and len(server.bodies) <= 6


# --- faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, body="CUDA error"),
        Fault(status=503, body="loading"),
        Fault(body="<html>gateway</html>"),
        Fault(body='{"choices": [{"token_ids": [1, '),
        Fault(body="[" * 100_000),
        Fault(body="", headers={"X": "1"}),
        Fault(cut=True),
    ],
    ids=["500", "503", "html", "half JSON", "deep JSON", "empty", "cut"],
)
def test_a_fault_that_passes_changes_nothing(server: Loopback, fault: Fault) -> None:
    expected = draw(sampling(server), same_prompt(LONG, 6))
    server.bodies.clear()
    server.fault = lambda n, body: fault if n in (2, 3, 4) else None
    assert draw(sampling(server), same_prompt(LONG, 6)) == expected
    assert len(server.bodies) == 9, "each broken request was asked once more"


def test_429_is_waited_for_as_long_as_the_server_says(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(status=429, body="slow down", headers={"Retry-After": "1"}) if n == 1 else None
    assert len(draw(sampling(server), same_prompt(LONG, 1))) == 1
    assert 1.0 <= server.times[1] - server.times[0] < 3


def test_nothing_is_sent_while_a_server_asks_for_rest(server: Loopback) -> None:
    """Neither the request that it refused nor those that wait behind it."""

    def busy(n: int, body: dict[str, Any]) -> Fault | None:
        time.sleep(0.1 * (n == 2))  # the answer to the first is there before that to the second
        return Fault(status=429, headers={"Retry-After": "1"}) if n == 1 else None

    server.fault = busy
    assert len(draw(sampling(server, section={"concurrency": 2}), same_prompt(LONG, 30))) == 30
    assert not [sent for sent in server.times[2:] if sent < server.times[0] + 1], "one may be under way with the first"


def test_retry_after_as_a_date_or_as_nonsense() -> None:
    class Response:
        def __init__(self, value: str | None) -> None:
            self.headers = {} if value is None else {"retry-after": value}

    assert endpoints._retry_after(Response(None)) is None and endpoints._retry_after(Response("soon")) is None
    assert endpoints._retry_after(Response("7")) == 7.0
    assert endpoints._retry_after(Response("Wed, 21 Oct 2015 07:28:00 GMT")) == 0.0
    assert endpoints._retry_after(Response("Wed, 21 Oct 2099 07:28:00 GMT")) > 1e8
    for nonsense in ("\u00b2", "-1", "1e400", "Wed, 21 Oct 99999999999 07:28:00 GMT"):
        assert endpoints._retry_after(Response(nonsense)) is None, nonsense
    assert endpoints._retry_after(Response("9" * 400)) == math.inf


def test_a_server_may_stay_away_for_days() -> None:
    """Each time that it is tried doubles the wait: past a minute no more, and never to a number that there is not."""
    found = endpoints.Endpoints(ServerSection(), None)
    assert all(0 < found._wait(failures) <= endpoints.LONGEST_WAIT for failures in (0, 10, 1023, 10_000))
    found.close()


# --- faults that do not


def test_down(server: Loopback) -> None:
    server.close()
    refused(sampling(server), "no usable answer after 3 attempts", "cannot connect", server.url, "the run resumes")


def test_an_address_that_there_is_not() -> None:
    refused(sampling("http://999.1.1.1/v1"), "sampling.server (http://999.1.1.1/v1)", "not the URL of a server")


def test_slow(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(seconds=1.0)
    began = time.monotonic()
    refused(sampling(server, section={"timeout_seconds": 0.2}), "no answer within 0.2 s", "timeout_seconds")
    assert time.monotonic() - began < 5


def test_always_500(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(status=500, body='{"error": "out of memory"}')
    refused(sampling(server), "after 3 attempts", "500", "out of memory")


def test_always_garbage(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(body="<html>" + "x" * 5000)
    message = refused(sampling(server), "not JSON", "<html>x")
    assert len(message) < 2500


def test_always_cut(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(cut=True)
    refused(sampling(server), "connection cut")


def test_429_without_end(server: Loopback) -> None:
    server.fault = lambda n, body: Fault(status=429, body="rate limit")
    refused(sampling(server), "429 rate limit", "concurrency")


def test_wrong_model(server: Loopback) -> None:
    refused(sampling(server, section={"model": "other"}), "does not serve 'other'; it serves 'player'", "sampling.server.model")
    server.models["second"] = server.models["player"]
    refused(sampling(server), "serves 2 models: 'player', 'second'", "name one of them")


def test_a_player_that_goes_away_meanwhile(server: Loopback) -> None:
    def gone(n: int, body: dict[str, Any]) -> None:
        server.models = {"next": server.models["player"]} if n == 2 else server.models

    server.fault = gone
    refused(sampling(server, section={"concurrency": 1}), "404", "The model `player` does not exist", "sampling.server.model")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda choice: {"text": choice["text"]}, "returns text without token ids"),
        (lambda choice: {"logprobs": {"tokens": ["he", "llo"], "token_logprobs": [-1.0, -2.0]}}, "returns text without token ids"),
        (lambda choice: {**choice, "logprobs": None}, "no log-probs"),
        (lambda choice: {**choice, "logprobs": {"token_logprobs": [None]}}, "no log-probs"),
        (lambda choice: {**choice, "token_ids": [-1]}, "returns text without token ids"),
        (lambda choice: {"token_ids": [500, STOP], "logprobs": {"token_logprobs": [-1, -1]}}, "returns the token 500, "),
        (lambda choice: {**choice, "token_ids": [3], "finish_reason": "stop"}, "ends without an end of turn"),
        (lambda choice: {**choice, "prompt_token_ids": [0, *LONG]}, "changed the prompt"),
    ],
    ids=["text only", "words", "no log-probs", "null log-probs", "negative ids", "unknown ids", "no stop token", "another prompt"],
)
def test_answers_that_cannot_be_used(server: Loopback, change: Callable[[dict[str, Any]], dict[str, Any]], part: str) -> None:
    server.answer = lambda answer: {**answer, "choices": [change(answer["choices"][0])]}
    refused(sampling(server), part)


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, {"choices": [1]}, "text"], ids=str)
def test_not_a_completion(server: Loopback, answer: Any) -> None:
    server.answer = lambda _: answer
    refused(sampling(server), "this is not a completion")


def test_token_ids_of_older_servers(server: Loopback) -> None:
    """Without token_ids, but with ids for words."""
    expected = draw(sampling(server), same_prompt(LONG, 6))
    server.answer = lambda answer: {"choices": [{"logprobs": answer["choices"][0]["logprobs"], "finish_reason": "stop"}]}
    assert draw(sampling(server), same_prompt(LONG, 6), logps=True) == expected


def test_not_a_list_of_models(server: Loopback) -> None:
    server.models = {}
    refused(sampling(server), "serves 0 models: nothing")


# --- the key


def test_the_key_is_sent_and_never_shown(server: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    server.key = KEY
    section = {"api_key_env": "TEST_SERVER_KEY"}
    monkeypatch.setenv("TEST_SERVER_KEY", KEY)
    assert len(draw(sampling(server, section=section), same_prompt(LONG, 2))) == 2
    assert "401" in refused(sampling(server), "name the variable of its key with sampling.server.api_key_env")

    monkeypatch.setenv("TEST_SERVER_KEY", KEY + "x")
    message = refused(sampling(server, section=section), "401 ", "Incorrect API key provided: ***", "environment variable TEST_SERVER_KEY")
    server.fault = lambda n, body: Fault(status=500, body=f"I was given {KEY}x")
    server.key = KEY + "x"
    message += refused(sampling(server, section=section), "I was given ***")
    server.fault = lambda n, body: Fault(status=500, body="." * (endpoints.SHOWN - 10) + f"{KEY}x")
    message += refused(sampling(server, section=section), "....***")
    assert KEY not in message + caplog.text + repr(endpoints.Endpoints(ServerSection(), KEY))
    assert KEY[:8] not in message, "a long answer is cut, and not through the key"


@pytest.mark.parametrize("key", [KEY, 'sk-"\\/0123456789'])
def test_a_server_that_answers_with_the_key(server: Loopback, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """In the middle of JSON that means nothing, as a word of a completion, as the name of a model."""
    monkeypatch.setenv("TEST_SERVER_KEY", key)
    settings = sampling(server, section={"api_key_env": "TEST_SERVER_KEY"})
    for answer in ({"echo": [{f"of {key}": key}]}, {"choices": [{"token_ids": [3], "finish_reason": key}]}):
        server.answer = lambda _, answer=answer: answer
        assert key not in refused(settings, "***") and repr(key) not in refused(settings)
    server.models = {key: server.models["player"], "other": server.models["player"]}
    assert key not in refused(settings, "serves 2 models: '***', 'other'")


@pytest.mark.parametrize("key", ["x", "EMPTY", "player"])
def test_a_key_that_is_none(server: Loopback, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """What people set where a server wants no key: names and words of an answer that hold it stay what they are."""
    monkeypatch.setenv("TEST_SERVER_KEY", key)
    assert len(draw(sampling(server, section={"api_key_env": "TEST_SERVER_KEY"}), same_prompt(LONG, 2))) == 2


@pytest.mark.parametrize(("value", "part"), [(None, "is not set"), (" ", "is not set"), (KEY + "\n€", "no HTTP header can carry")])
def test_a_key_that_cannot_be_sent(server: Loopback, monkeypatch: pytest.MonkeyPatch, value: str | None, part: str) -> None:
    monkeypatch.delenv("TEST_SERVER_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_SERVER_KEY", value)
    message = refused(sampling(server, section={"api_key_env": "TEST_SERVER_KEY"}), part, "TEST_SERVER_KEY")
    assert KEY not in message and json.dumps(KEY)[1:-1] not in message


# ---------------------------------------------------------------------------------------------- answers without end, and to others


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_answer_without_end(status: int, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MOST_BYTES", 100_000)
    server.fault = lambda n, body: Fault(status, body=json.dumps({"choices": "x" * 200_000}))
    refused(sampling(server), "does not end within 100,000 bytes", server.url)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip", "br", "zstd", "x"])
def test_nothing_is_unpacked(coding: str, server: Loopback) -> None:
    """A kilobyte can be packed gigabytes, and packed again and again."""
    server.fault = lambda n, body: Fault(200, body="packed", headers={"Content-Encoding": coding})
    refused(sampling(server), f"is compressed ({coding}), although the request forbids it", "Accept-Encoding: identity")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_key_to_another_host(status: int, start: Callable[..., Loopback], monkeypatch: pytest.MonkeyPatch) -> None:
    server, other = start(), start()
    monkeypatch.setenv("THE_KEY", KEY)
    server.key = other.key = KEY
    server.fault = lambda n, body: Fault(status, headers={"Location": f"{other.url}/completions?was={KEY}"})
    said = refused(sampling(server, section={"api_key_env": "THE_KEY"}), "redirects /completions to", other.url)
    assert KEY not in said and not other.bodies
