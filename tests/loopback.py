"""A completions endpoint on loopback, as vLLM's looks from outside, around tiny models: for the tests of the server engine.

It draws by itself, from plain forwards of transformers and NumPy's generator, and it can be told to misbehave.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
import transformers


@dataclass(frozen=True)
class Fault:
    """What to answer in place of a completion: a status with a body, after `seconds`; or `cut` the connection in the middle."""

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cut: bool = False


class Served:
    """One model behind the endpoint. Distributions are kept by prefix: tiny models are asked the same again and again."""

    def __init__(self, model: transformers.PreTrainedModel, temperature_factor: float = 1.0, shown: Any = None) -> None:
        """temperature_factor: a server that draws at another temperature; shown: a model whose log-probs it shows instead of its own."""
        self.model, self.factor, self.shown = model, temperature_factor, shown or model
        self._lock = threading.Lock()
        self._logp = lru_cache(None)(self._compute)

    def _compute(self, which: str, ids: tuple[int, ...]) -> np.ndarray:
        model = self.model if which == "own" else self.shown
        with self._lock, torch.no_grad():
            return model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()

    def complete(self, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        random = np.random.default_rng(body["seed"])
        tokens: list[int] = []
        logps: list[float] = []
        while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body["stop_token_ids"]):
            prefix = (*body["prompt"], *tokens)
            token = self._draw(self._logp("own", prefix), body, random.random())
            logps.append(float(self._logp("shown", prefix)[token]))
            tokens.append(token)
        return tokens, logps

    def _draw(self, logp: np.ndarray, body: dict[str, Any], uniform: float) -> int:
        if body["temperature"] == 0:
            return int(logp.argmax())
        p = np.exp(logp / (body["temperature"] * self.factor))
        order = np.argsort(-p)
        shares = p[order] / p.sum()
        kept = shares * (np.cumsum(shares) - shares < body["top_p"])
        return int(order[np.searchsorted(np.cumsum(kept), uniform * kept.sum(), side="right")])


class Loopback:
    """The server. `models`: served name -> model; `loads` makes one from a folder for POST /control; `fault(n, body)` may break the n-th
    request."""

    def __init__(self, models: dict[str, Served], loads: Callable[[str], Served] | None = None) -> None:
        self.models, self.loads = models, loads
        self.fault: Callable[[int, dict[str, Any]], Fault | None] = lambda n, body: None
        self.answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.loaded: list[tuple[str, str]] = []
        self.adapters: set[str] = set()
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens, logps = self.models[body["model"]].complete(body)
        choice = {
            "index": 0,
            "text": "".join(chr(97 + token % 26) for token in tokens),
            "token_ids": tokens,
            "prompt_token_ids": body["prompt"],
            "logprobs": {"tokens": [f"token_id:{token}" for token in tokens], "token_logprobs": logps},
            "finish_reason": "stop" if tokens[-1] in body["stop_token_ids"] else "length",
        }
        return self.answer({"object": "text_completion", "model": body["model"], "choices": [choice]})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not wait for the answer is no news."""


class _Handler(BaseHTTPRequestHandler):
    owner: Loopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        data = [{"id": name, "parent": "base" if name in self.owner.adapters else None} for name in self.owner.models]
        self._guarded({}, lambda: self._json({"object": "list", "data": data}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/control":
            self.owner.loaded.append((body["model"], body["name"]))
            self.owner.models = {body["name"]: self.owner.loads(body["model"])}
            return self._json({})
        if self.path == "/v1/load_lora_adapter":
            self.owner.loaded.append((body["lora_path"], body["lora_name"]))
            self.owner.models[body["lora_name"]] = self.owner.loads(body["lora_path"])
            self.owner.adapters.add(body["lora_name"])
            return self._send(200, b"Success: LoRA adapter added successfully.", {"Content-Type": "text/plain"})
        with self.owner.lock:
            self.owner.busy += 1
            self.owner.busiest = max(self.owner.busiest, self.owner.busy)
            self.owner.bodies.append(body)
            self.owner.times.append(time.monotonic())
            fault = self.owner.fault(len(self.owner.bodies), body)
        try:
            self._break(fault) if fault else self._guarded(body, lambda: self._json(self.owner.completion(body)))
        finally:
            with self.owner.lock:
                self.owner.busy -= 1

    def _guarded(self, body: dict[str, Any], answer: Callable[[], None]) -> None:
        if self.owner.key and self.headers.get("authorization") != f"Bearer {self.owner.key}":
            said = self.headers.get("authorization", "nothing").removeprefix("Bearer ")
            return self._json({"error": {"message": f"Incorrect API key provided: {said}"}}, 401)
        if body and body["model"] not in self.owner.models:
            return self._json({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        answer()

    def _break(self, fault: Fault) -> None:
        time.sleep(fault.seconds)
        if fault.cut:
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"choices": [')
            self.close_connection = True
        else:
            self._send(fault.status, (fault.body or "").encode(), fault.headers)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
