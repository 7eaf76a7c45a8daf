"""An S3 server of this machine, and a proxy before it that fails: what storage does to a program on a bad day."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import math
import random
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pytest

SECRET = "s3cret/Key+of+nobody"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def s3_server(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve S3 with a bucket `bucket`; the environment leads s3fs there. Yields the endpoint."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
        patch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).makedirs("bucket", exist_ok=True)
    try:
        yield endpoint
    finally:
        server.stop()


@contextlib.contextmanager
def bad_proxy(
    endpoint: str, *, rate: float, seed: int = 0, slow_seconds: float = 0.0, most_writes: float = math.inf
) -> Iterator[tuple[str, list[str]]]:
    """Pass requests on to a server, some of them not: 503, a connection that is dropped, an answer that is cut off.

    Args:
        endpoint: The server.
        rate: Part of the requests that fail.
        seed: Which ones.
        slow_seconds: How long each waits.
        most_writes: Writes after which all further ones are denied, as in a bucket that has become read-only.

    Yields:
        The proxy's own endpoint, and the list of the faults that it has made.
    """
    upstream, faults, lock, draws = urlsplit(endpoint), [], Lock(), random.Random(seed)
    writes = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                fault = draws.choice(["503", "drop", "lost", "cut"]) if draws.random() < rate else None
                faults.extend([fault] if fault else [])
            time.sleep(slow_seconds)
            if self.command in ("PUT", "POST", "DELETE") and next(writes) > most_writes:
                return self._answer(
                    403, {}, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
                )
            if fault == "503":
                return self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            if fault == "drop":
                return self._drop()
            connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port)
            connection.request(self.command, self.path, body=body, headers=dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            if fault == "lost":
                return self._drop()
            return self._answer(answer.status, dict(answer.getheaders()), content, cut=fault == "cut")

        def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
            self.send_response(status)
            headers = {name: value for name, value in headers.items()
                       if name.lower() not in ("transfer-encoding", "connection", "server", "date")}  # fmt: skip
            if not any(name.lower() == "content-length" for name in headers):
                headers["Content-Length"] = str(len(content))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self._drop()

        def _drop(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)

        def log_message(self, *_: Any) -> None:
            pass

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
