"""Small JSON files that hold a digest of their own content, so that a flipped bit is damage and not another value."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ldm_vae.system.store import Store

SEAL = "digest"
"""Name of the field with the digest, the last one."""


def dump_json(value: Any) -> bytes:
    """Return one line of JSON in UTF-8. Bytes become base64, and what JSON doesn't know becomes text."""
    options: dict[str, Any] = {"separators": (",", ":"), "default": _jsonable}
    try:
        return json.dumps(value, ensure_ascii=False, **options).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that isn't UTF-8: escaped, and read back as the same name
        return json.dumps(value, **options).encode() + b"\n"


def digest_json(value: Any) -> str:
    """Return the SHA-256 of a value as `dump_json` writes it, in hexadecimal."""
    return hashlib.sha256(dump_json(value)).hexdigest()


def seal(value: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return the content of a file that `read_sealed` reads: JSON with the digest of all other fields."""
    value = json.loads(dump_json(value))  # as it will be read, where some of it has become text
    sealed = {**value, SEAL: digest_json(value)}
    return dump_json(sealed) if indent is None else json.dumps(sealed, indent=indent).encode() + b"\n"


def unseal(content: bytes) -> dict[str, Any] | None:
    """Return what `seal` was given, without the digest; None where the content isn't what was written."""
    try:
        value = json.loads(content)
        seal = value.pop(SEAL)
        return value if is_sealed(content, seal) or digest_json(value) == seal else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def is_sealed(content: bytes, seal: str) -> bool:
    """Whether a sealed file's bytes are those that were written, where it was written in one line."""
    end = f',"{SEAL}":"{seal}"}}\n'.encode()
    digest = hashlib.sha256(content[: -len(end)])
    digest.update(b"}\n")
    return content.endswith(end) and digest.hexdigest() == seal


def read_sealed(store: Store, name: str) -> dict[str, Any] | None:
    """Return what a sealed file holds; None where it is damaged.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return unseal(store.read(name))


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.tolist() if hasattr(value, "tolist") else str(value)
