"""A local stand-in of the hub's HTTP API, as much of it as an upload needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_standin0123456789"
REPO = "someone/my-vae"


class Hub(ThreadingHTTPServer):
    """Keeps what was uploaded; `refuse` is a status that every request gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict[str, object]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuse: int | None = None

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Hub]:
        hub = cls()
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
        hub.server_close()

    @property
    def visibilities(self) -> list[str]:
        """Of the repositories that were created; the field depends on huggingface_hub's version."""
        return [
            str(fields.get("visibility") or ("private" if fields["private"] else "public")) for fields in self.created
        ]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse is not None:
            self._answer(self.server.refuse, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.endpoint}/{REPO}"})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._answer(
                200, {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            )
        elif self.path == f"/api/models/{REPO}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.endpoint}/{REPO}/commit/{'0' * 40}"
            self._answer(200, {"commitUrl": address, "commitOid": "0" * 40, "success": True, "hookOutput": ""})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        else:
            self._answer(404, {"error": self.path})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):  # the client asks for other things, about itself, without a token
            self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse is not None:
            self._answer(self.server.refuse, {"error": "Invalid credentials"})
        elif self.path.startswith(f"/api/models/{REPO}"):
            self._answer(200, {"id": REPO, "sha": "0" * 40, "siblings": []})
        else:
            self._answer(404, {"error": self.path})

    do_HEAD = do_GET

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: dict[str, object]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass
