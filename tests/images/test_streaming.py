from __future__ import annotations

import os
import pickle
import signal
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ldm_vae.images import decoding
from ldm_vae.images.batches import training_batches
from ldm_vae.images.collection import open_collection
from ldm_vae.images.streaming import LocalSamples, StreamingImages, open_stream
from ldm_vae.images.training import Augmentation, TrainingImages
from tests.pictures import encoded, noise, write_grey


def write_shards(folder: Path, *shards: list[int]) -> Path:
    """Write a parquet file of pictures of one grey value for each list; 0 stands for a damaged one."""
    for number, values in enumerate(shards):
        contents = [encoded(Image.new("L", (4, 4), value), "PNG") if value else b"damaged" for value in values]
        image = pa.array([{"bytes": content, "path": None} for content in contents],
                         pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
        pq.write_table(pa.table({"image": image}), folder / f"{number}.parquet")
    return folder


def streaming_images(source: Path, **options: Any) -> StreamingImages:
    options = {"channels": 1, "resolution": 4, "latent_channels": 1, "spatial_factor": 4, "seed": 1} | options
    shuffle_buffer = options.pop("shuffle_buffer", 0)
    return StreamingImages(open_stream(str(source)), Augmentation(**options), shuffle_buffer=shuffle_buffer)


def greys(dataset: StreamingImages, count: int, *, start: int = 0, **options: int) -> list[int]:
    samples = islice(dataset.samples(start=start, **options), count)
    return [round((sample.image.flatten()[0].item() + 1) * 127.5) for sample in samples]


def test_passes_follow_each_other_in_the_streams_order(tmp_path: Path) -> None:
    dataset = streaming_images(write_shards(tmp_path, [10, 20, 30], [], [40]))
    assert greys(dataset, 10) == [10, 20, 30, 40, 10, 20, 30, 40, 10, 20]


@pytest.mark.parametrize("shuffle_buffer", [0, 3])
def test_resuming_anywhere_gives_what_would_have_come(tmp_path: Path, shuffle_buffer: int) -> None:
    dataset = streaming_images(write_shards(tmp_path, [10, 0, 30], [40], [50, 60, 0]), shuffle_buffer=shuffle_buffer)
    for options in ({}, {"num_processes": 2, "process_index": 1}, {"num_processes": 3, "process_index": 1}):
        full = list(islice(dataset.samples(start=0, **options), 40))
        for start in (1, 2, 6, 7, 19, 33):
            rest = list(islice(dataset.samples(start=start, num_threads=start % 3, **options), 40 - start))
            for sample, expected in zip(rest, full[start:], strict=True):
                assert torch.equal(sample.image, expected.image)
                assert torch.equal(sample.noise, expected.noise)
                assert sample.skipped == expected.skipped


def test_a_shuffle_buffer_gives_each_pass_another_order(tmp_path: Path) -> None:
    dataset = streaming_images(write_shards(tmp_path, [10, 20, 30], [40, 50, 60]), shuffle_buffer=6)
    values = greys(dataset, 60)
    passes = {tuple(values[start : start + 6]) for start in range(0, 60, 6)}
    assert all(sorted(order) == [10, 20, 30, 40, 50, 60] for order in passes)
    assert len(passes) > 5


def test_an_unreadable_image_is_replaced_by_the_next_that_keeps_its_place(tmp_path: Path) -> None:
    dataset = streaming_images(write_shards(tmp_path, [10, 0, 0, 40, 0]))
    assert greys(dataset, 11) == [10, 40, 40, 40, 10, 10, 40, 40, 40, 10, 10]
    samples = list(islice(dataset.samples(start=0), 5))
    assert [[(skipped.index, skipped.name) for skipped in sample.skipped] for sample in samples] == [
        [], [(1, "row 1")], [(2, "row 2")], [], [(4, "row 4")],
    ]  # fmt: skip


def test_a_replacement_has_the_crop_flip_and_noise_of_the_image_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"damaged")
    Image.fromarray(noise(16, 24, 3)).save(tmp_path / "1.png")
    options = {"channels": 3, "resolution": 8, "crop": "random_resized"}
    samples = list(islice(streaming_images(tmp_path, **options).samples(start=0), 6))
    (tmp_path / "0.png").write_bytes((tmp_path / "1.png").read_bytes())
    expected = list(islice(streaming_images(tmp_path, **options).samples(start=0), 6))
    for sample, other in zip(samples, expected, strict=True):
        assert torch.equal(sample.image, other.image)
        assert torch.equal(sample.noise, other.noise)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_stream_without_a_readable_image_ends_with_an_error(tmp_path: Path, num_threads: int) -> None:
    dataset = streaming_images(write_shards(tmp_path, [0, 0, 0]))
    for start in (0, 2, 4):
        with pytest.raises(
            ValueError, match=r"no image that this process reads from .* can be read; the first: row \d"
        ):
            next(dataset.samples(start=start, num_threads=num_threads))
    with pytest.raises(ValueError, match="the image row 0 can't be read: it is in no format"):
        next(streaming_images(tmp_path, strict=True).samples(start=0, num_threads=num_threads))


@pytest.mark.parametrize("num_processes", [2, 3, 5, 7])
@pytest.mark.parametrize(
    "shards", [[[10, 20], [30, 40, 50]], [[], [10, 20, 30, 40, 50]], [[10], [], [20, 30, 40, 50]]]
)
def test_any_number_of_processes_reads_all_images_and_none_waits(
    tmp_path: Path, shards: list[list[int]], num_processes: int
) -> None:
    dataset = streaming_images(write_shards(tmp_path, *shards))
    parts = [greys(dataset, 5, num_processes=num_processes, process_index=r) for r in range(num_processes)]
    assert set().union(*parts) == {10, 20, 30, 40, 50}
    assert all(len(part) == 5 for part in parts)


def test_crops_flips_and_noise_are_functions_of_k(tmp_path: Path) -> None:
    Image.fromarray(noise(16, 24, 3)).save(tmp_path / "a.png")
    options = {
        "channels": 3,
        "resolution": 8,
        "latent_channels": 2,
        "spatial_factor": 8,
        "crop": "random_resized",
        "seed": 9,
    }
    stream = streaming_images(tmp_path, **options)
    expected = TrainingImages(open_collection(str(tmp_path)), Augmentation(**options))
    for num_processes in (1, 3):
        for process_index in range(num_processes):
            samples = stream.samples(start=2, num_processes=num_processes, process_index=process_index)
            for j, sample in enumerate(islice(samples, 4), 2):
                assert torch.equal(sample.image, expected[j * num_processes + process_index].image)
                assert torch.equal(sample.noise, expected[j * num_processes + process_index].noise)


def test_folders_tars_and_saved_datasets_stream_in_their_order(tmp_path: Path) -> None:
    for value in (10, 20, 30):
        write_grey(tmp_path / "folder" / f"{value}.png", value)
    assert greys(streaming_images(tmp_path / "folder"), 4) == [10, 20, 30, 10]
    features = datasets.Features({"image": datasets.Image()})
    pictures = [Image.new("L", (4, 4), value) for value in (10, 20, 30)]
    datasets.Dataset.from_dict({"image": pictures}, features=features).save_to_disk(tmp_path / "saved")
    assert greys(streaming_images(tmp_path / "saved"), 4) == [10, 20, 30, 10]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_a_stream(tmp_path: Path, num_workers: int) -> None:
    dataset = streaming_images(write_shards(tmp_path, [10, 20, 30], [], [40, 0]))
    arguments = {"batch_size": 4, "micro_batch_size": 1, "num_processes": 2, "process_index": 1}
    samples = list(islice(dataset.samples(start=6, num_processes=2, process_index=1), 6))
    with closing(training_batches(dataset, start_step=3, num_workers=num_workers, **arguments)) as batches:
        for batch, sample in zip(batches, samples, strict=False):
            assert torch.equal(batch.images[0], sample.image)
            assert torch.equal(batch.noise[0], sample.noise)
            assert batch.skipped == sample.skipped


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path, num_workers: int) -> None:
    write_shards(tmp_path, [10], [20])
    dataset = streaming_images(tmp_path)
    (tmp_path / "1.parquet").write_bytes(b"PAR1 damaged")
    batches = training_batches(dataset, start_step=0, batch_size=1, micro_batch_size=1, num_workers=num_workers)
    with closing(batches), pytest.raises(RuntimeError, match=r"^reading .* broke off: "):
        list(islice(batches, 3))


def test_empty_streams_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no image$"):
        next(streaming_images(write_shards(tmp_path, [], [])).samples(start=0))


def test_streams_travel_to_workers_by_pickle(tmp_path: Path) -> None:
    samples = LocalSamples(streaming_images(write_shards(tmp_path, [10, 20])), start=1)
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(next(iter(copy)).image, next(iter(samples)).image)


def test_a_picture_that_ends_the_worker_costs_that_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_shards(tmp_path, [10, 20, 30], [40, 50])
    convert = decoding.to_channels

    def convert_or_die(image: Image.Image, **arguments: Any) -> Image.Image:
        if image.getpixel((0, 0)) == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return convert(image, **arguments)

    monkeypatch.setattr(decoding, "to_channels", convert_or_die)
    batches = training_batches(streaming_images(source), start_step=0, batch_size=2, micro_batch_size=2, num_workers=2)
    with closing(batches):
        found = list(islice(batches, 5))
    values = [round((value + 1) * 127.5) for batch in found for value in batch.images.flatten(1)[:, 0].tolist()]
    assert values == [10, 20, 40, 40, 50, 10, 20, 40, 40, 50]
    assert {skipped.reason for batch in found for skipped in batch.skipped} == {"the process that decoded it died"}
