"""Files that are whole or absent, and leases: real processes, killed."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldm_vae.system.files import remove_temporaries, whole_or_absent
from ldm_vae.system.leases import Leases
from tests.stores import LeaseClock, wait_for_touch

HOLD = """
import sys
from pathlib import Path
from ldm_vae.system.files import whole_or_absent
from ldm_vae.system.leases import Leases
folder = Path(sys.argv[1])
with Leases(folder, seconds=float(sys.argv[2])) as leases:
    assert leases.claim("shard")
    with whole_or_absent(folder / "shard.bin") as temporary:
        temporary.write_bytes(b"half")
        print("held", flush=True)
        sys.stdin.read()
"""


def hold(folder: Path, *, seconds: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def fail() -> None:
        with whole_or_absent(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []
    with whole_or_absent(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"whole"


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "latents.bin"

    def fail(error: OSError) -> None:
        with whole_or_absent(path) as temporary:
            temporary.write_bytes(b"half")
            if error.filename == "temporary":
                error = OSError(f"{temporary} can't be written: as the library says")
            raise error

    for error in (OSError(errno.ENOSPC, "No space left on device"), OSError(0, "", "temporary")):
        with pytest.raises(OSError, match=rf"^{re.escape(str(path))} can't be written: "):
            fail(error)
    with pytest.raises(FileNotFoundError, match=r"'a source'"):  # another's error stays as it is
        fail(FileNotFoundError(errno.ENOENT, "No such file", "a source"))
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_no_file_and_its_lease_expires_at_once(tmp_path: Path) -> None:
    process = hold(tmp_path, seconds=1000)
    with Leases(tmp_path, seconds=1000) as leases:
        assert leases.taken_elsewhere()
        assert not leases.claim("shard")
        remove_temporaries(tmp_path, older_than=1000)
        assert any(name.endswith(".tmp") for name in os.listdir(tmp_path))  # the living one's is kept
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "shard.bin").exists()
        remove_temporaries(tmp_path, older_than=1000)
        assert leases.claim("shard")
        assert os.listdir(tmp_path) == [".shard.lease"]
    assert os.listdir(tmp_path) == []


def test_a_lease_expires_unless_it_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another node's process holds: whether it lives can't be seen, only whether it touches the lease.

    That process goes by the true time, this one by a clock that the test puts forward.
    """
    clock = LeaseClock(monkeypatch)
    renewed = hold(tmp_path, seconds=0.1)
    (tmp_path / ".lost.lease").write_text("another-node/pid:[1] 1")
    (tmp_path / ".shard.lease").write_text("another-node/pid:[1] 1")
    leases = Leases(tmp_path, seconds=1000)
    assert clock.claimed_at(leases, 0, 999) == []
    wait_for_touch(leases.store, ".shard.lease")
    assert clock.claimed_at(leases, 1001) == ["lost"]
    renewed.kill()
    renewed.wait()
    assert clock.claimed_at(leases, 1001, 2000) == ["lost"]
    assert clock.claimed_at(leases, 2002) == ["lost", "shard"]


def test_only_one_of_many_gets_a_lease(tmp_path: Path) -> None:
    race = (
        "import sys\nfrom pathlib import Path\nfrom ldm_vae.system.leases import Leases\n"
        "with Leases(Path(sys.argv[1]), seconds=1000) as leases:\n"
        "    print(*[i for i in range(200) if leases.claim(str(i))], flush=True)\n    sys.stdin.read()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", race, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    lines = [process.stdout.readline().split() for process in processes if process.stdout is not None]
    for process in processes:
        process.communicate()
    assert sorted((name for line in lines for name in line), key=int) == [str(i) for i in range(200)]


def test_a_process_is_seen_between_two_pieces_of_work(tmp_path: Path) -> None:
    def there() -> list[str]:
        return sorted(path.name for path in tmp_path.glob(".*.lease"))

    other = Leases(tmp_path, seconds=60)
    with Leases(tmp_path, seconds=60) as working:
        assert working.claim("a")
        working.finish("a")
        assert other.taken_elsewhere()
        assert working.claim("b")
        assert there() == [".b.lease"]
        working.finish("b")
        assert working.claim("b")  # to be done again
        assert working.claim("c")
        working.finish("c")
        assert there() == [".b.lease"]
        working.finish("b")
        assert there() == [".b.lease"]
    assert there() == []
