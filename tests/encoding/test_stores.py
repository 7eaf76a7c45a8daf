"""`encode` to addresses: the bytes of a local encode, whatever the storage does and wherever a process ends."""

import pickle
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.encoding import encode as encode_module
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import LatentsDamaged, verify
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.system import leases as leases_module
from ldm_vae.system.places import open_store
from ldm_vae.system.remote_store import RemoteStore, Retries
from ldm_vae.system.store import Store, StoreError
from tests.encodings import contents, options, save_photos
from tests.images.test_addresses import write_tars
from tests.s3 import bad_proxy, s3_server
from tests.stores import (
    FaultyStore,
    Killed,
    StoppingStore,
    memory_contents,
    of_an_ended_process,
    stopped_at_each_call,
)
from tests.test_every_family import MODELS
from tests.tiny import tiny_family

NUM_IMAGES = 7


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_photos(tmp_path_factory.mktemp("data") / "photos", count=NUM_IMAGES, broken=3)


@pytest.fixture(scope="module")
def local(vae: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    encode(options(vae, photos, folder, flip=True))
    return folder


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/latents"


def use_store(patch: pytest.MonkeyPatch, store: Store) -> Store:
    """Have the next encode write to this very store."""
    patch.setattr(encode_module, "open_store", lambda place: store)
    return store


def to(address: str, vae: str, photos: str, **changes: Any) -> EncodeOptions:
    return options(vae, photos, address, **{"flip": True, **changes})


def test_bytes_and_rows_are_those_of_a_folder(vae: str, photos: str, local: Path, address: str) -> None:
    summary = encode(to(address, vae, photos))
    assert str(summary).startswith(f"{address}: 6 latents of 7 images in 2 shards")
    assert memory_contents(address) == contents(local)
    here, there = LatentDataset(local, verify=True, sample=True), LatentDataset(address, verify=True, sample=True)
    assert len(there) == len(here) == 6
    for row in range(6):
        assert torch.equal(there[row].latents, here[row].latents)
        assert there[row][1:] == here[row][1:]
        assert there.row(row) == here.row(row)
        assert there.shape(row) == here.shape(row)
    assert list(there.rows()) == list(here.rows())
    again = pickle.loads(pickle.dumps(there))
    assert [again[row].sample for row in range(6)] == [0, 1, 2, 4, 5, 6]
    assert encode(to(address, vae, photos)).encoded_images == 0
    with pytest.raises(ValueError, match=rf"output {address} holds latents of another kind"):
        encode(to(address, vae, photos, mode="mean"))
    encode(to(address, vae, photos, mode="mean", overwrite=True))
    assert LatentDataset(address).index["mode"] == "mean"


def test_rows_are_read_by_range_requests_with_a_bounded_cache(vae: str, photos: str, address: str) -> None:
    encode(to(address, vae, photos, shard_size=7))
    dataset = LatentDataset(address, cache_bytes=1000)
    dataset._cache._block_bytes = 400
    size = dataset.store.size("latents-00000.safetensors")
    rows = {row: dataset[row].latents for row in (0, 5, 3, 0)}
    assert dataset._cache.num_bytes <= 1000 < size
    assert all(torch.equal(latents, LatentDataset(address)[row].latents) for row, latents in rows.items())
    whole = LatentDataset(address)
    assert [whole[row].sample for row in range(6)] == [0, 1, 2, 4, 5, 6]
    assert whole._cache.num_requests == 1  # the shard is smaller than a block


def test_damage_is_found_and_mended(vae: str, photos: str, local: Path, address: str) -> None:
    encode(to(address, vae, photos))
    report = verify(LatentsVerifyOptions(latents=address, deep=True, vae=vae, data=photos))
    assert (report.num_rows, report.num_shards, report.deep_images) == (6, 2, 6)
    store = open_store(address)
    content = bytearray(store.read("latents-00001.safetensors"))
    content[-5] ^= 1
    store.write_whole("latents-00001.safetensors", bytes(content))
    with pytest.raises(LatentsDamaged, match=r"1 damaged\. damaged: latents-00001\.safetensors: its digest"):
        verify(LatentsVerifyOptions(latents=address))
    assert encode(to(address, vae, photos)).damaged_shards == 1
    assert memory_contents(address) == contents(local)


def check_stops(
    patch: pytest.MonkeyPatch, arguments: EncodeOptions, whole: dict[str, bytes], *, after: bool, every: int = 1
) -> list[str]:
    """End a process at its calls of the store in turn, and have the next finish; return the calls' methods."""
    loaded = encode_module.load_vae(arguments.vae)
    patch.setattr(encode_module, "load_vae", lambda *_, **__: loaded)
    ended, methods = of_an_ended_process(), []

    def run(store: StoppingStore) -> None:
        with patch.context() as stopped:
            stopped.setattr(leases_module, "os", ended)
            use_store(stopped, store)
            encode(replace(arguments, output=store.place()))

    def fresh(number: int) -> Store:
        return open_store(f"{arguments.output}-{number}")

    for stopped in stopped_at_each_call(run, fresh=fresh, after=after, every=every):
        call, store = stopped.calls[stopped.stop], stopped.store
        methods.append(call[0])
        encode(replace(arguments, output=store.place()))
        assert {name: store.read(name) for name in store.names()} == whole, call
    return methods


@pytest.mark.parametrize(("place", "after"), [("here", True), ("memory", False)])
def test_a_process_may_end_at_any_call_of_the_store(
    vae: str, photos: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, after: bool
) -> None:
    """The next one finishes, with the bytes of an undisturbed encode; and nothing half is ever taken for whole."""
    output = str(tmp_path / "out") if place == "here" else f"memory://{uuid.uuid4().hex}/latents"
    methods = check_stops(monkeypatch, to(output, vae, photos), contents(local), after=after)
    assert len(methods) > 40
    assert {"write_whole", "create", "remove", "writing", "read"} <= set(methods)


@pytest.mark.cluster
def test_a_process_may_end_on_an_s3_server(
    vae: str, photos: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"s3://bucket/{uuid.uuid4().hex}"
    with s3_server(monkeypatch):
        assert len(check_stops(monkeypatch, to(address, vae, photos), contents(local), after=True, every=7)) > 6


@pytest.mark.parametrize("kind", ["stream", "buckets", "codebook"])
def test_so_it_may_with_what_only_some_encodes_write(
    vae: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ends of streamed files, headers of images, and the codes that numbers stand for."""
    changes: dict[str, Any] = {"shard_size": 7, "batch_size": 7}
    if kind == "stream":
        write_tars(tmp_path / "tars", [path.read_bytes() for path in sorted(Path(photos).iterdir())[:4]])
        photos, changes = str(tmp_path / "tars"), {**changes, "streaming": True}
    elif kind == "buckets":
        changes |= {"buckets": True, "bucket_step": 4}
    else:
        tiny_family(family="vq", **MODELS["vq"]).model.save_pretrained(tmp_path / "vae")
        vae = str(tmp_path / "vae")
    encode(options(vae, photos, tmp_path / "whole", **changes))
    there = contents(tmp_path / "whole")
    assert any({"stream": "end.json", "buckets": "headers", "codebook": "codebook"}[kind] in name for name in there)
    address = f"memory://{uuid.uuid4().hex}/latents"
    assert check_stops(monkeypatch, options(vae, photos, address, **changes), there, after=True, every=9)


def test_nothing_is_lost_or_double_where_calls_fail(
    vae: str, photos: str, local: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = 0
    for seed in range(4):
        store = FaultyStore(f"{address}-{seed}", rate=0.05, seed=seed)
        with monkeypatch.context() as patch:
            use_store(patch, store)
            encode(to(store.place(), vae, photos, shard_size=2))
        assert len(LatentDataset(store.place(), verify=True)) == 6
        faults += store.faults
        encode(to(f"{address}-plain", vae, photos, shard_size=2))
        assert memory_contents(store.place()) == memory_contents(f"{address}-plain")
    assert faults > 10


def test_storage_that_refuses_in_the_middle_loses_nothing(
    vae: str, photos: str, local: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReadOnly(RemoteStore):
        retries = Retries(attempts=2, first_seconds=0.001)

        def write_whole(self, name: str, content: bytes) -> None:
            if name == "latents-00001.json":
                self._call("written", name, lambda fs: self._refuse())
            super().write_whole(name, content)

        def _refuse(self) -> None:
            raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        use_store(patch, ReadOnly(address))
        with pytest.raises(StoreError, match=rf"^{address}/latents-00001\.json can't be written: access is denied"):
            encode(to(address, vae, photos))
    there = memory_contents(address)
    assert {"plan.json", "latents-00000.json", "latents-00000.safetensors"} <= there.keys()
    assert encode(to(address, vae, photos)).encoded_images == 3
    assert memory_contents(address) == contents(local)


@pytest.mark.cluster
def test_a_bucket_that_becomes_read_only(vae: str, photos: str, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"s3://bucket/{uuid.uuid4().hex}"
    with s3_server(monkeypatch) as endpoint:
        with bad_proxy(endpoint, rate=0, most_writes=8) as (proxy, _), monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy)
            with pytest.raises(
                StoreError, match=rf"^{address}/\S+ can't be (written|removed): access is denied"
            ) as error:
                encode(to(address, vae, photos))
        assert "\n" not in str(error.value)
        there = memory_contents(address)
        assert "plan.json" in there
        assert "index.json" not in there
        monkeypatch.setattr(leases_module, "process_lives", lambda pid: False)  # it couldn't give its leases back
        encode(to(address, vae, photos))
        assert memory_contents(address) == contents(local)


def test_a_bad_network_before_an_s3_server(
    vae: str, photos: str, local: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Requests fail, are lost or cut off, and a process ends; then the bytes are those of a folder."""
    address = f"s3://bucket/{uuid.uuid4().hex}"
    with s3_server(monkeypatch) as endpoint, bad_proxy(endpoint, rate=0.05, slow_seconds=0.005) as (proxy, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy)
        with monkeypatch.context() as patch:
            patch.setattr(leases_module, "os", of_an_ended_process())
            use_store(patch, StoppingStore(open_store(address), stop=30, after=True))
            with pytest.raises(Killed):
                encode(to(address, vae, photos))
        assert not open_store(address).exists("index.json")
        encode(to(address, vae, photos))
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert len(faults) > 2
        assert memory_contents(address) == contents(local)
        assert "s3cret" not in "".join(capfd.readouterr())
        dataset = LatentDataset(address, verify=True)
        assert [dataset[row].sample for row in range(6)] == [0, 1, 2, 4, 5, 6]
