"""Stores: the same contract here, in memory and on an S3 server; what fails, and what a message may say."""

import pickle
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ldm_vae.config.rules import FieldError
from ldm_vae.system.leases import Leases
from ldm_vae.system.output_kinds import EXPORT, LATENTS
from ldm_vae.system.output_stores import is_marked_store, output_at
from ldm_vae.system.places import open_store
from ldm_vae.system.remote_store import RemoteStore, Retries
from ldm_vae.system.store import LocalStore, Store, StoreError
from ldm_vae.system.store_errors import redacted
from tests.s3 import SECRET, s3_server
from tests.stores import FaultyStore, LeaseClock, stopped_at_each_call, wait_for_touch


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server(patch):
        yield "s3://bucket"


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path)
    root = request.getfixturevalue("s3") if request.param == "s3" else "memory://test"
    return open_store(f"{root}/{uuid.uuid4().hex}/out")


def test_what_every_store_does(store: Store, tmp_path: Path) -> None:
    assert store.names() == []
    store.write_whole("b.bin", b"0123456789")
    store.write_whole("b.bin", b"9876543210")
    with store.writing("a.bin") as path:
        path.write_bytes(b"from a file")
        assert not store.exists("a.bin")
    store.write_whole("deep/er.bin", b"x")
    assert store.names() == ["a.bin", "b.bin"]
    assert {**store.sizes(), "deep/": 0} == {"a.bin": 11, "b.bin": 10, "deep/": 0}
    assert store.read("a.bin") == b"from a file"
    assert store.read("deep/er.bin") == b"x"
    assert [store.read_range("b.bin", *part) for part in ((0, 3), (8, 5), (10, 4), (20, 1), (2, 0))] == [
        b"987", b"10", b"", b"", b"",
    ]  # fmt: skip
    assert (store.size("b.bin"), store.exists("b.bin"), store.exists("c.bin")) == (10, True, False)
    assert store.sha256("b.bin") == "7619ee8cea49187f309616e30ecf54be072259b43760f1f550a644945d5572f2"
    for missing in (store.read, store.size, store.sha256, store.stamp):
        with pytest.raises(FileNotFoundError):
            missing("c.bin")
    assert (store.create("c.bin", b"first"), store.create("c.bin", b"second")) == (True, False)
    assert store.read("c.bin") == b"first"
    stamp = store.stamp("c.bin")
    assert store.stamp("c.bin") == stamp
    store.touch("c.bin", b"first")
    assert store.stamp("c.bin") != stamp
    assert store.read("c.bin").partition(b"\n")[0] == b"first"
    store.remove("c.bin")
    store.remove("c.bin")
    assert not store.exists("c.bin")
    assert list(store.each(store.size, ["a.bin", "b.bin"] * 20)) == [11, 10] * 20
    again = pickle.loads(pickle.dumps(store))
    assert again.read("a.bin") == b"from a file"


def test_what_fails_half_way_is_not_there(store: Store) -> None:
    def fail() -> None:
        with store.writing("a.bin") as path:
            path.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.names() == []


def test_a_file_is_fetched_whole_or_not(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_whole("a.bin", b"0123456789")
    monkeypatch.setattr("ldm_vae.system.store._FETCHED_AT_ONCE", 4)
    store.fetch("a.bin", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"0123456789"
    whole = type(store).read_range
    monkeypatch.setattr(
        type(store), "read_range", lambda self, name, start, n: whole(self, name, start, n)[: max(0, 6 - start)]
    )
    with pytest.raises(StoreError, match=r"a\.bin can't be read: 6 bytes came of 10"):
        store.fetch("a.bin", tmp_path / "fetched")
    with pytest.raises(FileNotFoundError):
        store.fetch("gone", tmp_path / "fetched")


def test_only_one_of_many_creates(store: Store, request: pytest.FixtureRequest) -> None:
    if "s3" in request.node.name:
        pytest.skip("the server of this test looks and writes in two steps")

    def create(_: int) -> list[str]:
        with Leases(store, seconds=1000) as leases:
            won = [name for name in map(str, range(10)) if leases.claim(name)]
            barrier.wait(timeout=120)  # so long, all are held
            return won

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(create, range(4)))
    assert sorted(name for names in won for name in names) == sorted(map(str, range(10)))
    assert store.names() == []


def test_a_lease_at_an_address_expires_unless_it_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the test puts forward; who holds one touches it whenever it would have waited for its turn."""
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            return super().wait(0.01)

    clock, store = LeaseClock(monkeypatch), open_store(f"memory://{uuid.uuid4().hex}")
    store.write_whole(".lost.lease", b"another-node 1")
    held, leases = Leases(store, seconds=1000), Leases(store, seconds=1000)
    monkeypatch.setattr(held, "_stop", Stop())
    with leases, held:
        assert held.claim("shard")
        assert clock.claimed_at(leases, 0, 999) == []
        wait_for_touch(store, ".shard.lease")
        assert clock.claimed_at(leases, 1001) == ["lost"]
    assert 0 < max(waited) < 1000 / 3
    assert store.names() == []


def test_calls_that_fail_are_made_again() -> None:
    store = FaultyStore(f"memory://{uuid.uuid4().hex}", rate=0.2)
    for number in range(60):
        content = bytes([number]) * 1000
        store.write_whole("a", content)
        assert store.read("a") == content
        assert store.size("a") == 1000
        assert store.create(f"b{number}", content)
        assert not store.create(f"b{number}", b"other")
        with store.writing("c") as path:
            path.write_bytes(content)
        assert store.sha256("c") == store.sha256("a")
    assert store.faults > 60


def test_calls_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"memory://{uuid.uuid4().hex}"
    store = FaultyStore(address, rate=1.0, seed=1, error=TimeoutError)
    with pytest.raises(StoreError, match=rf"^{address}/a can't be read: the connection was lost \(6 attempts\)$"):
        store.read("a")
    assert store.faults == 6
    denied = FaultyStore(address, rate=1.0, seed=1, error=PermissionError)
    with pytest.raises(
        StoreError, match=rf"^{address}/a can't be read: access is denied \(the connection was lost\)$"
    ):
        denied.read("a")
    assert denied.faults == 1
    with pytest.raises(FileNotFoundError, match=rf"^{address}/a doesn't exist$"):
        open_store(address).read("a")
    monkeypatch.setattr(FaultyStore, "retries", Retries(attempts=14, first_seconds=0.001, most_seconds=0.05))
    endless = FaultyStore(address, rate=1.0)
    with pytest.raises(StoreError, match=rf"^{address}/a can't be read: the connection was lost"):
        endless.read("a")
    assert 0 < endless.faults < 14  # by then it has waited for seconds


@pytest.mark.parametrize(("kept", "reason"), [(5, "5 bytes came of 10"), (10, "other bytes came than were sent")])
def test_other_bytes_than_were_sent_are_never_taken_for_whole(kept: int, reason: str) -> None:
    """A storage that keeps other bytes than it gets, or fewer, and says nothing."""

    class Forgetful(RemoteStore):
        retries = Retries(attempts=2, first_seconds=0.001)

        def _fs(self) -> object:
            files = super()._fs()

            class Files:
                def __getattr__(self, name: str) -> object:
                    return getattr(files, name)

                def pipe_file(self, path: str, content: bytes) -> None:
                    files.pipe_file(path, b"\0" + content[1:kept])

            return Files()

    with pytest.raises(StoreError, match=rf"a can't be written: {reason} \(2 attempts\)"):
        Forgetful(f"memory://{uuid.uuid4().hex}").write_whole("a", b"0123456789")


@pytest.mark.parametrize("after", [False, True])
def test_an_output_of_several_objects_has_its_mark_or_is_none(after: bool) -> None:
    """An export at an address whose process ends anywhere, over an earlier one; what is left may be written over."""

    def export(store: Store, *, weights: bytes, overwrite: bool) -> None:
        with output_at(store, kind=EXPORT).whole(overwrite=overwrite) as folder:
            (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)
            (folder / "config.json").write_bytes(b'{"_class_name": "AutoencoderKL", "of": "' + weights + b'"}')

    def fresh(number: int) -> Store:
        store = open_store(f"memory://{uuid.uuid4().hex}/export")
        export(store, weights=b"old", overwrite=False)
        with pytest.raises(ValueError, match="holds an export already; overwrite replaces it"):
            export(store, weights=b"new", overwrite=False)
        return store

    ends = []
    overwrite = partial(export, weights=b"new", overwrite=True)
    for stopped in stopped_at_each_call(overwrite, fresh=fresh, after=after):
        store = stopped.store
        is_marked = is_marked_store(store, EXPORT)
        if is_marked:
            weights = store.read("diffusion_pytorch_model.safetensors")
            assert weights in store.read("config.json")
            ends.append(weights)
        else:
            ends.append(None)
        export(store, weights=b"newest", overwrite=is_marked)
        assert store.names() == ["config.json", "diffusion_pytorch_model.safetensors"]
        assert store.read("diffusion_pytorch_model.safetensors") == b"newest"
    assert set(ends) == {b"old", None, b"new"}
    assert len(ends) > 10


def test_addresses_that_can_not_be_used() -> None:
    for address, problem in (
        ("ftp://host/a", r"ftp:// isn't known; take a folder, or one of s3://, gs://"),
        ("s3://key:secret@bucket/a", r"s3://bucket/a: credentials don't belong in an address"),
        ("s3://", "names no bucket"),
    ):
        with pytest.raises(FieldError, match=problem) as error:
            output_at(address, kind=LATENTS)
        assert "secret" not in str(error.value)


def test_a_bucket_that_is_not_there_or_not_ours(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteStore, "retries", Retries(attempts=2, first_seconds=0.001))
    with pytest.raises(
        FieldError, match=r"^output s3://nowhere/a/\.ldm-vae-probe can't be written: there is no such bucket$"
    ):
        output_at("s3://nowhere/a", kind=LATENTS).check_writable()
    output_at("s3://bucket/a", kind=LATENTS).check_writable()
    assert open_store("s3://bucket/a").names() == []
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(FieldError, match=r"can't be written: no credentials were found; set them as"):
        output_at("s3://bucket/a", kind=LATENTS).check_writable()


def test_no_secret_is_told() -> None:
    for text in (
        f"GET https://user:{SECRET}@host/a failed",
        f"https://host/a?X-Amz-Credential=AKIAABCDEFGHIJKL&X-Amz-Signature={SECRET}",
        f"aws_secret_access_key={SECRET} is wrong",
        f"the key AKIAABCDEFGHIJKL is unknown; token: {SECRET}",
    ):
        told = redacted(text)
        assert SECRET not in told
        assert not re.search("AKIA[A-Z]", told)
