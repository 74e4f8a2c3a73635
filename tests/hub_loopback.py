"""A stand-in of the Hugging Face Hub on loopback: what its client needs to create repositories and branches and to commit files.

Small files come inside the commit, others by the LFS batch; all are kept in memory by branch. It can be told to refuse.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")
Answer = tuple[int, dict[str, Any]]


class HubLoopback:
    """`repos`: "model/me/name" -> branch -> path -> content. `refuse(method, path)` may give a status and a body instead of an answer."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.refuse: Callable[[str, str], Answer | None] = lambda method, path: None
        self.seen: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, body: dict[str, Any]) -> Answer:
        kind, owner = body.get("type") or "model", body.get("organization") or "me"
        key = f"{kind}/{owner}/{body['name']}"
        answer = {"url": f"{self.url}/{'' if kind == 'model' else kind + 's/'}{owner}/{body['name']}"}
        if key in self.repos:
            return 409, answer
        self.repos[key] = {"main": {".gitattributes": b""}}
        self.private[key] = body.get("visibility") == "private" or bool(body.get("private"))
        return 200, answer

    def commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> Answer:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {"commitOid": "0" * 40, "commitUrl": f"{self.url}/me/name/commit/{'0' * 40}"}

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Of the API, below a repository: /api/models/me/name/VERB/BRANCH."""
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            return self.lfs_batch(json.loads(body))
        _, _, kinds, owner, name, *rest = path.split("/")
        repo = self.repos.get(f"{kinds.removesuffix('s')}/{owner}/{name}")
        if repo is None:
            return 404, {"error": "Repository not found"}
        if rest == ["refs"]:
            heads = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": "0" * 40} for branch in repo]
            return 200, {"branches": heads, "tags": [], "converts": []}
        verb, branch = (rest[0], unquote(rest[1])) if len(rest) > 1 else ("info", "main")
        if verb == "branch":
            return (409, {"error": "exists"}) if branch in repo else (200, repo.setdefault(branch, dict(repo["main"])) and {})
        return self.of_branch(verb, repo, branch, body)

    def of_branch(self, verb: str, repo: dict[str, dict[str, bytes]], branch: str, body: bytes) -> Answer:
        if branch not in repo:
            return 404, {"error": f"Invalid rev id: {branch}"}
        if verb == "preupload":
            modes = [{"path": file["path"], "size": file["size"]} for file in json.loads(body)["files"]]
            return 200, {"files": [m | {"uploadMode": mode_of(m["path"]), "shouldIgnore": False} for m in modes]}
        if verb == "commit":
            return self.commit(repo[branch], [json.loads(line) for line in body.splitlines()])
        if verb == "tree":
            return 200, [{"type": "file", "path": path, "size": len(text), "oid": "0" * 40} for path, text in repo[branch].items()]
        return 200, {"id": "me/name", "sha": "0" * 40, "siblings": [{"rfilename": path} for path in repo[branch]]}

    def lfs_batch(self, body: dict[str, Any]) -> Answer:
        upload = {one["oid"]: {"upload": {"href": f"{self.url}/blob/{one['oid']}"}} for one in body["objects"]}
        return 200, {"transfer": "basic", "objects": [one | {"actions": upload[one["oid"]]} for one in body["objects"]]}


def mode_of(path: str) -> str:
    return "lfs" if path.endswith(LARGE) else "regular"


class _Handler(BaseHTTPRequestHandler):
    hub: HubLoopback
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("content-length") or 0))
        self.hub.seen.append(f"{self.command} {path}")
        refused = self.hub.refuse(self.command, path)
        if refused is not None:
            return self._send(*refused)
        if path.startswith("/blob/"):
            self.hub.blobs[path.removeprefix("/blob/")] = body
            return self._send(200, {})
        given = self.headers.get("authorization", "")
        if path != "/api/validate-yaml" and given != f"Bearer {self.hub.token}":
            return self._send(401, {"error": f"Invalid credentials: {given}"})
        self._send(*self.hub.answer(self.command, path, body))

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _send(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("X-Error-Message", "Invalid credentials in Authorization header")
        self.end_headers()
        self.wfile.write(body)
