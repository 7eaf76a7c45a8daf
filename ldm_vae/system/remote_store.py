"""A store at an address: object storage through fsspec, with retries, and a digest after every write."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ldm_vae.system.store import Store, StoreError
from ldm_vae.system.store_errors import is_final, reason_of, redacted, says_exists

T = TypeVar("T")

PACKAGES = {
    "s3": "ldm-vae[s3]", "gs": "ldm-vae[gcs]", "gcs": "ldm-vae[gcs]", "az": "adlfs", "abfs": "adlfs",
    "hf": "huggingface_hub", "memory": "fsspec",
}  # fmt: skip
"""The kinds of addresses, whose storage makes an object appear at once or not at all; and what has to be installed."""
_MEMORY = threading.RLock()
"""Held for each call of memory://, whose files are shared between threads with their positions."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a call is made again that failed for a reason that may pass."""

    attempts: int = 6
    first_seconds: float = 0.2
    """Longest wait before the second attempt; it doubles with each further one, and each wait is drawn below it."""
    most_seconds: float = 120.0
    """Time after which a call isn't made again."""


class RemoteStore(Store):
    """Objects under an address: `s3://`, `gs://`, `az://`, `hf://` or `memory://`.

    Credentials come from where the provider's own tools look for them, and from nowhere else. An instance can be
    pickled and forked; each process opens the storage for itself.

    Args:
        address: Where the objects lie; no object but the store's own should lie under it.
    """

    calls_at_once = 16
    retries: ClassVar[Retries] = Retries()

    def __init__(self, address: str) -> None:
        kind, _, root = address.partition("://")
        self._kind, self._root = kind, root.strip("/")
        if kind not in PACKAGES:
            raise StoreError(
                f"{redacted(address)}: {kind}:// isn't known; take a folder, or one of "
                f"{', '.join(f'{name}://' for name in PACKAGES)}"
            )
        if "@" in self._root.partition("/")[0] and kind != "hf":
            raise StoreError(
                f"{redacted(address)}: credentials don't belong in an address; set them as the provider's tools do, "
                f"in the environment or a profile"
            )
        if not self._root:
            raise StoreError(f"{address} names no bucket")
        self._opened: tuple[int, Any] | None = None
        self._fs()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def place(self, name: str = "") -> str:
        """Return an address."""
        return f"{self._kind}://{self._root}/{name}".rstrip("/")

    def read(self, name: str) -> bytes:
        """Return an object's bytes."""
        return self._call("read", name, lambda fs: fs.cat_file(self._path(name)))

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Return a part of an object, by a range request."""
        if length <= 0:
            return b""

        def part(fs: Any) -> bytes:
            try:
                return fs.cat_file(self._path(name), start=start, end=start + length)
            except FileNotFoundError:
                raise
            except Exception:
                if start >= int(fs.info(self._path(name))["size"]):  # some refuse a range behind the end
                    return b""
                raise

        return self._call("read", name, part)

    def size(self, name: str) -> int:
        """Return the bytes of an object."""
        return int(self._call("read", name, lambda fs: self._info(fs, name)["size"]))

    def sizes(self) -> dict[str, int]:
        """Return names and bytes of the objects directly under the address."""

        def listing(fs: Any) -> list[dict[str, Any]]:
            fs.invalidate_cache()
            try:
                return fs.ls(self._path(), detail=True)
            except FileNotFoundError:  # nothing lies there
                return []

        found = {}
        for entry in self._call("listed", "", listing):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if entry["name"].strip("/") == self._path().strip("/"):
                continue
            found[f"{name}/" if entry["type"] == "directory" else name] = int(entry["size"] or 0)
        return found

    def find(self) -> dict[str, int]:
        """Return names and bytes of all objects under the address, in its folders too."""

        def listing(fs: Any) -> dict[str, dict[str, Any]]:
            fs.invalidate_cache()
            return fs.find(self._path(), detail=True)

        start = len(self._path().strip("/")) + 1
        found = self._call("listed", "", listing)
        return {path.strip("/")[start:]: int(info["size"] or 0) for path, info in found.items()}

    @contextmanager
    def writing(self, name: str, *, sync: bool = True) -> Iterator[Path]:
        """Yield a temporary file in the machine's temporary folder, which is uploaded when the block ends."""
        with tempfile.TemporaryDirectory(prefix="ldm-vae-") as folder:
            path = Path(folder, name.rpartition("/")[2])
            yield path
            self._put(name, path)

    def write_whole(self, name: str, content: bytes) -> None:
        """Put an object, and compare what the storage says of it."""
        self._write(name, content, lambda fs: fs.pipe_file(self._path(name), content))

    def create(self, name: str, content: bytes, *, sync: bool = False) -> bool:
        """Put an object on the condition that there is none."""
        attempts = 0

        def create(fs: Any) -> bool:
            nonlocal attempts
            attempts += 1
            try:
                fs.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                # An earlier attempt may have succeeded without an answer.
                return attempts > 1 and fs.cat_file(self._path(name)) == content
            except (NotImplementedError, TypeError):
                return self._create_plainly(fs, name, content)
            except OSError as error:
                if says_exists(error):  # not every S3 names the condition, and s3fs asks for its name
                    return attempts > 1 and fs.cat_file(self._path(name)) == content
                raise
            return True

        return self._call("written", name, create, missing="there is no such bucket")

    def remove(self, name: str) -> None:
        """Remove an object."""

        def remove(fs: Any) -> None:
            with suppress(FileNotFoundError):
                fs.rm_file(self._path(name))

        self._call("removed", name, remove)

    def touch(self, name: str, content: bytes) -> None:
        """Put an object again, with other bytes behind its first line, where that is still `content`."""
        if self.read(name).partition(b"\n")[0] == content:
            self.write_whole(name, content + b"\n" + uuid.uuid4().hex.encode())

    def stamp(self, name: str) -> Any:
        """Return the content: what touches an object changes it."""
        return self.read(name)

    def sha256(self, name: str) -> str:
        """Return the digest of an object's bytes."""
        self.size(name)  # raises where there is none
        return super().sha256(name)

    def _put(self, name: str, path: Path) -> None:
        def put(fs: Any) -> None:
            if self._kind == "memory":  # whose put_file shows an object before it is whole
                fs.pipe_file(self._path(name), path.read_bytes())
            else:
                fs.put_file(str(path), self._path(name))

        self._write(name, path, put)

    def _write(self, name: str, content: bytes | Path, put: Callable[[Any], None]) -> None:
        """Put an object until it is what was sent."""
        for _ in range(self.retries.attempts):
            self._call("written", name, put, missing="there is no such bucket")
            problem = self._difference(name, content)
            if problem is None:
                return
        raise StoreError(f"{self.place(name)} can't be written: {problem} ({self.retries.attempts} attempts)")

    def _difference(self, name: str, content: bytes | Path) -> str | None:
        """Compare an object with what was put: by the storage's own MD5, else by reading it again."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        try:
            info = self._call("read", name, lambda fs: self._info(fs, name))
            if int(info["size"]) != size:
                return f"{info['size']} bytes came of {size}"
            md5 = _digest(content, "md5")
            if str(info.get("ETag", "")).strip('"') == md5.hex():
                return None
            if info.get("md5Hash") == base64.b64encode(md5).decode():
                return None
            if self.sha256(name) != _digest(content, "sha256").hex():
                return "other bytes came than were sent"
        except FileNotFoundError:
            return "it isn't there afterwards"
        return None

    def _create_plainly(self, fs: Any, name: str, content: bytes) -> bool:
        """Create without a call for it: look, put, and look whose object it is."""
        if fs.exists(self._path(name)):
            return False
        fs.pipe_file(self._path(name), content)
        return fs.cat_file(self._path(name)) == content

    def _info(self, fs: Any, name: str) -> dict[str, Any]:
        fs.invalidate_cache()
        return fs.info(self._path(name))

    def _path(self, name: str = "") -> str:
        return f"{self._root}/{name}".rstrip("/") if self._kind != "memory" else f"/{self._root}/{name}".rstrip("/")

    def _fs(self) -> Any:
        """Return the storage, opened by this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            import fsspec

            try:
                fs = fsspec.filesystem(self._kind, use_listings_cache=False, skip_instance_cache=True)
            except ImportError:
                raise StoreError(f"{self.place()} needs a package: pip install '{PACKAGES[self._kind]}'") from None
            self._opened = (os.getpid(), fs)
        return self._opened[1]

    def _call(self, what: str, name: str, function: Callable[[Any], T], *, missing: str = "") -> T:
        """Call the storage, again where it fails for a reason that may pass.

        Raises:
            FileNotFoundError: There is no such object, unless `missing` says what that means.
            StoreError: All else that doesn't pass.
        """
        started, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                with _MEMORY if self._kind == "memory" else nullcontext():
                    return function(self._fs())
            except FileNotFoundError:
                if not missing:
                    raise FileNotFoundError(f"{self.place(name)} doesn't exist") from None
                raise StoreError(f"{self.place(name)} can't be {what}: {missing}") from None
            except Exception as error:  # every file system has errors of its own
                ended = attempt >= self.retries.attempts or time.monotonic() - started > self.retries.most_seconds
                if ended or is_final(error):
                    tried = f" ({attempt} attempts)" if attempt > 1 else ""
                    raise StoreError(f"{self.place(name)} can't be {what}: {reason_of(error)}{tried}") from None
            time.sleep(random.random() * self.retries.first_seconds * 2 ** (attempt - 1))


def _digest(content: bytes | Path, algorithm: str) -> bytes:
    if isinstance(content, bytes):
        return hashlib.new(algorithm, content, usedforsecurity=False).digest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).digest()
