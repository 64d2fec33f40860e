"""A fake hub on 127.0.0.1: the few endpoints that an upload uses. Keeps what was sent to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """What arrived: repositories made, files of the commit, its message, tokens seen."""

    daemon_threads = True

    def __init__(self, refuse: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuse = refuse
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.made: list[dict[str, Any]] = []
        self.cards: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.message = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            out = b""
            while size := int(self.rfile.readline(), 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _any(self) -> None:
        body, path = self._body(), self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse:
            self._answer({"error": "no"}, self.server.refuse)
        elif path == "/api/repos/create":
            value = json.loads(body)
            self.server.made.append(value)
            self._answer({"url": f"{self.server.url}/{value.get('organization', 'me')}/{value['name']}"})
        elif path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = [
                {"path": f, "uploadMode": "lfs" if f.endswith(".safetensors") else "regular", "shouldIgnore": False}
                for f in files
            ]
            self._answer({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/store/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif path.startswith("/store/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/store/")
            self.server.objects[path.removeprefix("/store/")] = body
            self._answer({})
        elif "/commit/" in path:
            self._commit(body)
        elif path.startswith("/api/models/"):
            self._answer({"id": path.removeprefix("/api/models/"), "sha": "0" * 40, "siblings": [], "tags": []})
        else:
            self._answer({"error": "no such place"}, 404)

    def _commit(self, body: bytes) -> None:
        for line in body.decode().splitlines():
            item = json.loads(line)
            if item["key"] == "header":
                self.server.message = item["value"]["summary"]
            elif item["key"] == "file":
                self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                self.server.files[item["value"]["path"]] = self.server.objects[item["value"]["oid"]]
        self._answer({"commitUrl": f"{self.server.url}/me/x/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True})

    do_GET = do_POST = do_PUT = do_HEAD = _any


@contextmanager
def hub(refuse: int | None = None) -> Iterator[Hub]:
    """A running fake hub; `refuse`: the status it answers everything with."""
    server = Hub(refuse)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
