"""An S3 server of this machine, and a bad network before it, for the scripts that measure and stress stores."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server(port: int = 5555) -> Iterator[dict[str, str]]:
    """Serve S3 from a process of its own, with a bucket `bucket`; yield the environment that leads there."""
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                _files(environment).makedirs("bucket", exist_ok=True)
                break
            except Exception:
                assert server.poll() is None, "the S3 server ended"
        yield environment
    finally:
        server.terminate()
        server.wait()


@contextmanager
def bad_network(
    environment: dict[str, str], *, rate: float, slow_seconds: float, faults: Path
) -> Iterator[dict[str, str]]:
    """Put a proxy before the server that fails, drops and cuts off requests; yield the environment that leads there.

    Args:
        environment: Leads to the server.
        rate: Part of the requests that fail.
        slow_seconds: How long each request waits.
        faults: File to which the proxy, a process of its own, writes a line for each fault.
    """
    command = [sys.executable, __file__, environment["AWS_ENDPOINT_URL"], str(rate), str(slow_seconds), str(faults)]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        yield {**environment, "AWS_ENDPOINT_URL": proxy.stdout.readline().strip()}
    finally:
        proxy.terminate()
        proxy.wait()


def object_names(place: str, environment: dict[str, str]) -> list[str]:
    """Return the names of the objects under `bucket/…`."""
    return [path.rpartition("/")[2] for path in _files(environment).find(place)]


def objects(place: str, environment: dict[str, str] | None = None) -> dict[str, bytes]:
    """Return the objects under `bucket/…`, by name."""
    files = _files(environment or dict(os.environ))
    return {path.rpartition("/")[2]: files.cat_file(path) for path in files.find(place)}


def _files(environment: dict[str, str]) -> Any:
    import fsspec

    return fsspec.filesystem(
        "s3", key=environment["AWS_ACCESS_KEY_ID"], secret=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=environment["AWS_ENDPOINT_URL"], skip_instance_cache=True, use_listings_cache=False,
    )  # fmt: skip


def _serve(endpoint: str, rate: str, slow_seconds: str, faults: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.s3 import bad_proxy

    with (
        bad_proxy(endpoint, rate=float(rate), slow_seconds=float(slow_seconds)) as (address, made),
        open(faults, "w") as file,
    ):
        print(address, flush=True)
        while True:
            time.sleep(0.2)
            while made:
                print(made.pop(0), file=file, flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
