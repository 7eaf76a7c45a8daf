"""`encode` by several processes that share nothing but a folder: killed, resumed, doubled by accident."""

import signal
from pathlib import Path

import pytest

from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.work import ShardWork
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.shards import ShardRecord
from ldm_vae.system.leases import Leases
from tests.encodings import contents, finish, options, save_vae, start_encodes, wait_for_shards
from tests.pictures import save_pictures

NUM_IMAGES = 150


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data") / "photos"
    save_pictures(folder, count=NUM_IMAGES)
    (folder / "0044.png").write_bytes(b"no image")
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(vae: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start_encodes(options(vae, photos, folder), count=1)) == [0]
    return contents(folder)


def kill_midway(arguments: EncodeOptions, *, count: int, after_shards: int) -> None:
    """Kill encoding processes when they have written some more shards; they would never write all."""
    folder = Path(str(arguments.output))
    there = len(list(folder.glob("latents-*.json")))
    processes = start_encodes(arguments, count=count, most_shards=after_shards + 2)
    wait_for_shards(folder, there + after_shards)
    for process in processes:
        process.kill()
    assert set(finish(processes)) == {-signal.SIGKILL}
    assert not (folder / "index.json").exists()


def test_killed_and_resumed_by_other_numbers_of_processes(
    vae: str, photos: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = options(vae, photos, tmp_path)
    kill_midway(arguments, count=1, after_shards=3)
    with pytest.raises(ValueError, match="isn't finished"):
        LatentDataset(tmp_path)
    kill_midway(arguments, count=3, after_shards=4)
    kill_midway(options(vae, photos, tmp_path, num_workers=1), count=2, after_shards=4)
    assert finish(start_encodes(arguments, count=3)) == [0, 0, 0]
    assert contents(tmp_path) == undisturbed
    assert len(LatentDataset(tmp_path)) == NUM_IMAGES - 1


def test_a_job_finishes_what_a_process_of_it_leaves(
    vae: str, photos: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """One process of a running job dies; and another, on a node that can't be seen, holds a shard and says no more."""
    (tmp_path / ".latents-00020.lease").write_text("another-node/pid:[1] 1")
    job = options(vae, photos, tmp_path, lease_seconds=1.0)
    first, second = *start_encodes(job, count=1, most_shards=5), *start_encodes(job, count=1)
    wait_for_shards(tmp_path, 1)
    first.kill()
    assert finish([first, second]) == [-signal.SIGKILL, 0]
    assert contents(tmp_path) == undisturbed


def test_two_jobs_that_both_replace_an_output(
    vae: str, photos: str, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    other = save_vae(tmp_path / "vae", seed=1)
    assert finish(start_encodes(options(other, photos, tmp_path / "out", shard_size=60), count=1)) == [0]
    assert finish(start_encodes(options(vae, photos, tmp_path / "out", overwrite=True), count=3)) == [0, 0, 0]
    assert contents(tmp_path / "out") == undisturbed


def test_a_late_process_joins_the_job_that_replaced_an_output(vae: str, photos: str, tmp_path: Path) -> None:
    """The first of them has ended by then, and another, on a node that can't be seen, still holds a shard."""
    encode(options(vae, photos, tmp_path, shard_size=60))
    (tmp_path / ".latents-00001.lease").write_text("another-node/pid:[1] 1")
    with pytest.raises(ValueError, match="another encode is at work there"):
        encode(options(vae, photos, tmp_path, shard_size=50, overwrite=True))
    assert encode(options(vae, photos, tmp_path, shard_size=60, overwrite=True)).encoded_shards == 0


def test_a_job_does_not_replace_the_output_of_a_living_one(vae: str, photos: str, tmp_path: Path) -> None:
    running = start_encodes(options(vae, photos, tmp_path, shard_size=2), count=1)
    wait_for_shards(tmp_path, 1)
    intruder = start_encodes(options(vae, photos, tmp_path, shard_size=2, mode="mean", overwrite=True), count=1)
    assert finish(running) == [0]
    intruder_failed = finish(intruder) != [0]
    assert (LatentDataset(tmp_path).index["mode"] == "moments") == intruder_failed


def test_a_job_is_seen_to_work_between_two_shards(
    vae: str, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that whoever would replace its output never finds it idle."""
    written = ShardWork.written
    seen: list[bool] = []

    def looked_at(work: ShardWork, record: ShardRecord) -> None:
        written(work, record)
        seen.append(Leases(tmp_path, seconds=60).taken_elsewhere())

    monkeypatch.setattr(ShardWork, "written", looked_at)
    encode(options(vae, photos, tmp_path, shard_size=50))
    assert seen == [True] * 3
    assert not list(tmp_path.glob(".*.lease"))
