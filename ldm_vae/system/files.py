"""Files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_vae.system.paths import LONGEST_NAME

_TEMPORARY = ".tmp"
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def process_host() -> str:
    """Name what process ids are unique within: the host, and its pid namespace where there is one (containers)."""
    with suppress(OSError):
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def process_lives(pid: int) -> bool:
    """Whether a process of this host is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


@contextmanager
def whole_or_absent(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which becomes `path` when the block ends.

    Where the block raises or the process dies, `path` stays as it was; with `sync` that holds through a power failure
    too.

    Raises:
        OSError: The disk is full or can't be written, naming `path`.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, path, temporary) from None
        raise
    if sync:
        sync_folder(path.parent)


def _named(error: OSError, path: Path, temporary: Path) -> OSError:
    """Return an error that names the file that was to be written: a full disk's names none, or the temporary one."""
    if error.errno in _UNWRITABLE and error.filename in (None, str(temporary)):
        return OSError(f"{path} can't be written: {os.strerror(error.errno)}")
    if str(temporary) in str(error):
        return OSError(str(error).replace(str(temporary), str(path)))
    return error


def temporary_path(path: Path) -> Path:
    """Return a new hidden name beside `path`, for what isn't whole yet.

    The name tells `remove_temporaries` which process it belongs to, and is never longer than a name may be.
    """
    end = f".{_host_tag()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{_TEMPORARY}"
    name = os.fsencode(path.name)[: LONGEST_NAME - len(end) - 1].decode(errors="ignore")
    return path.with_name(f".{name}{end}")


def is_temporary(name: str) -> bool:
    """Whether a name is one that `temporary_path` gives."""
    return name.startswith(".") and name.endswith(_TEMPORARY) and name.count(".") > 2


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the block's writing name the file or folder: of a full disk Python says only that it is full.

    Raises:
        OSError: What the block raised, with `path` in its message.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:  # it names a file already
            raise
        raise OSError(f"{path} can't be written: {error.strerror}") from None


@contextmanager
def naming_instead(path: Path, temporary: Path) -> Iterator[None]:
    """Have an error of the block's writing into `temporary` name `path`, which that is to become.

    Raises:
        OSError: What the block raised.
    """
    try:
        yield
    except OSError as error:
        raise _named(error, path, temporary) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file that is whole or absent."""
    with naming(path), whole_or_absent(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder last through a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, *, older_than: float) -> None:
    """Remove the temporary files and folders that killed processes left.

    These are those of this host's dead processes, and any that nobody has written to for `older_than` seconds. Other
    subfolders are left alone.
    """
    for entry in os.scandir(folder):
        if not is_temporary(entry.name):
            continue
        tag, _, rest = entry.name.split(".")[-2].partition("-")
        pid = rest.partition("-")[0]
        with suppress(FileNotFoundError):
            dead = tag == _host_tag() and pid.isdigit() and not process_lives(int(pid))
            if dead or time.time() - entry.stat(follow_symlinks=False).st_mtime > older_than:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _host_tag() -> str:
    return hashlib.sha256(process_host().encode()).hexdigest()[:8]
