"""`encode --engine ray`: the bytes of a local encode, on nodes of which one is killed, and the driver too."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.config.commands.latents import LatentsVerifyOptions
from ldm_vae.config.commands.shared import RayOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.verify import LatentsDamaged, verify
from ldm_vae.latents.dataset import LatentDataset
from tests.clusters import client_address, ray_nodes
from tests.encodings import contents, options, save_photos
from tests.launching import ENVIRONMENT, start

pytest.importorskip("ray")
pytestmark = [pytest.mark.processes, pytest.mark.cluster]

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_photos(tmp_path_factory.mktemp("data") / "photos", count=NUM_IMAGES, broken=9)


@pytest.fixture(scope="module")
def undisturbed(vae: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("local")
    encode(options(vae, photos, folder))
    return contents(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield from ray_nodes()


def on(cluster: Any, vae: str, photos: str, output: Path, **changes: Any) -> Any:
    return options(vae, photos, output, engine="ray", ray=RayOptions(address=cluster.address), **changes)


def test_bytes_are_those_of_a_local_encode(
    cluster: Any, vae: str, photos: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    summary = encode(on(cluster, vae, photos, tmp_path / "out"))
    assert contents(tmp_path / "out") == undisturbed
    assert (summary.encoded_images, summary.encoded_shards) == (NUM_IMAGES, 6)
    assert sum(int(line.split(" encoded ")[1].split()[0]) for line in summary.nodes) == NUM_IMAGES
    assert encode(on(cluster, vae, photos, tmp_path / "out")).encoded_images == 0
    encode(on(cluster, vae, photos, tmp_path / "mds", layout="mds"))
    encode(options(vae, photos, tmp_path / "local-mds", layout="mds"))
    assert contents(tmp_path / "mds") == contents(tmp_path / "local-mds")
    check = {"latents": str(tmp_path / "out"), "engine": "ray", "ray": RayOptions(address=cluster.address)}
    assert verify(LatentsVerifyOptions(**check)).num_rows == NUM_IMAGES - 1
    (tmp_path / "out" / "latents-00003.safetensors").write_bytes(b"short")
    with pytest.raises(LatentsDamaged, match=r"1 damaged\. damaged: latents-00003\.safetensors: 5 bytes instead of"):
        verify(LatentsVerifyOptions(**check))


def test_a_node_and_the_driver_are_killed(
    cluster: Any, vae: str, photos: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """A node while it encodes, then the driver; the next driver finishes."""
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    driver = (
        "from tests.encodings import *\nfrom ldm_vae.config.commands.shared import RayOptions\n"
        f"encode({on(cluster, vae, photos, tmp_path / 'out')!r})"
    )
    arguments = [sys.executable, "-c", f"from ldm_vae.config.commands.encode import EncodeOptions\n{driver}"]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(arguments, env=environment)
    wait_for_shards(tmp_path / "out", 1, process)
    cluster.remove_node(node, allow_graceful=False)
    wait_for_shards(tmp_path / "out", 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "index.json").exists()
    encode(on(cluster, vae, photos, tmp_path / "out"))
    assert contents(tmp_path / "out") == undisturbed
    dataset = LatentDataset(tmp_path / "out", verify=True)
    assert [dataset[row].sample for row in range(len(dataset))] == [i for i in range(NUM_IMAGES) if i != 9]


def test_a_driver_that_is_no_part_of_the_cluster(
    cluster: Any, vae: str, photos: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    command = ["-m", "ldm_vae", "encode", "--engine", "ray", "--ray.address", client_address(cluster), "--vae", vae]
    command += ["--data", photos, "--output", str(tmp_path / "out"), "--resolution", "16", "--shard_size", "4"]
    command += ["--batch_size", "3", "--mixed_precision", "no", "--dtype", "float32"]
    assert start(command, output=tmp_path / "printed.txt").wait(timeout=120) == 0, (
        tmp_path / "printed.txt"
    ).read_text()
    assert contents(tmp_path / "out") == undisturbed


def wait_for_shards(folder: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while len(list(folder.glob("latents-*.json"))) < count and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)


def test_mistakes_are_one_line(vae: str, photos: str, tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(ValueError, match=r"ray\.address is '7'; it must be auto, local or an address"):
        RayOptions(address="7")
    with pytest.raises(ValueError, match="streaming is not for engine ray"):
        options(vae, photos, tmp_path, engine="ray", streaming=True)
    with pytest.raises(ValueError, match=r"0009\.png"):
        encode(on(cluster, vae, photos, tmp_path / "out", strict=True))
