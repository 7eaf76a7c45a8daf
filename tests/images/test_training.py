from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images import decoding
from ldm_vae.images.batches import training_batches
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.streaming import StreamingImages, open_stream
from ldm_vae.images.training import Augmentation, TrainingBatch, TrainingImages, TrainingSample
from ldm_vae.images.transforms import crop_box, to_image
from ldm_vae.system.randomness import sample_index, sample_rng
from tests.pictures import noise, write_grey

SEED = 3


def training_images(folder: Path, **given: Any) -> TrainingImages:
    options = {"channels": 3, "resolution": 16, "latent_channels": 4, "spatial_factor": 8}
    options = {"crop": "random_resized", "seed": SEED} | options | given
    rules = options.pop("rules", None)
    return TrainingImages(open_collection(str(folder), rules=rules), Augmentation(**options))


def assert_rows_are(batch: TrainingBatch, samples: list[TrainingSample]) -> None:
    assert torch.equal(batch.images, torch.stack([sample.image for sample in samples]))
    assert torch.equal(batch.noise, torch.stack([sample.noise for sample in samples]))


def test_an_unreadable_image_is_replaced_and_nothing_else_shifts(photos: Path, tmp_path: Path) -> None:
    samples = [training_images(photos)[k] for k in range(30)]
    for i in (3, 4):  # the same collection with these two readable
        Image.fromarray(noise(40, 52, 3, seed=i)).save(tmp_path / f"{i}.png")
    for i in (0, 1, 2, 5, 6, 7, 8, 9):
        (tmp_path / f"{i}.png").write_bytes((photos / f"{i}.png").read_bytes())
    whole = [training_images(tmp_path)[k] for k in range(30)]
    for k, (sample, other) in enumerate(zip(samples, whole, strict=True)):
        due = sample_index(k, num_samples=10, seed=SEED)
        assert [skipped.index for skipped in sample.skipped] == {3: [3, 4], 4: [4]}.get(due, [])
        assert torch.equal(sample.noise, other.noise)
        assert torch.equal(sample.image, other.image) == (due not in (3, 4))
    first = next(sample for sample in samples if sample.skipped)
    assert (first.skipped[-1].name, first.skipped[-1].reason) == ("4.png", "image file is truncated")


def test_crops_and_flips_are_those_of_k_by_the_plain_formula(photos: Path) -> None:
    dataset = training_images(photos, resolution=24)
    for k in range(40):
        index = sample_index(k, num_samples=10, seed=SEED)
        picture = Image.open(photos / f"{5 if index in (3, 4) else index}.png")
        rng = sample_rng(k, seed=SEED, stream="crop")
        box = crop_box(picture.size, resolution=24, crop="random_resized", min_area=0.25, rng=rng)
        picture = picture.resize((24, 24), Image.Resampling.BICUBIC, box=box)
        if sample_rng(k, seed=SEED, stream="flip").random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert to_image(dataset[k].image).tobytes() == picture.tobytes()


def test_early_images_are_those_of_a_smaller_resolution(photos: Path) -> None:
    small = training_images(photos, resolution=8)
    medium = training_images(photos, resolution=16)
    full = training_images(photos, resolution=24)
    early: dict[str, Any] = {"resolution": 24, "early": [(5, 8), (9, 16)]}
    dataset = training_images(photos, **early)
    stream = StreamingImages(open_stream(str(photos)), dataset.augmentation)
    assert dataset.first_of_full_size == 9
    for k, streamed in zip(range(14), stream.samples(start=0), strict=False):
        expected = (small if k < 5 else medium if k < 9 else full)[k]
        assert torch.equal(dataset[k].image, expected.image)
        assert torch.equal(dataset[k].noise, expected.noise)
        assert streamed.image.shape == expected.image.shape
        assert torch.equal(streamed.noise, expected.noise)


def test_replacements_wrap_around_and_end(tmp_path: Path) -> None:
    write_grey(tmp_path / "0.png", 255)
    for i in (1, 2):
        (tmp_path / f"{i}.png").touch()
    assert all(training_images(tmp_path)[k].image.min() == 1 for k in range(6))
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 3 training images can be read; the first: .\.png: it is empty"):
        training_images(tmp_path)[0]


def test_flips_and_noise(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.arange(16, dtype=np.uint8) * 16, (16, 1))).save(tmp_path / "ramp.png")
    options = {"crop": "center", "channels": 1, "latent_channels": 16, "spatial_factor": 2}
    samples = [training_images(tmp_path, **options)[k] for k in range(400)]
    flipped = [bool(sample.image[0, 0, 0] > sample.image[0, 0, -1]) for sample in samples]
    assert 150 < sum(flipped) < 250
    plain = [training_images(tmp_path, flip=False, **options)[k] for k in range(20)]
    assert all(torch.equal(sample.image, plain[0].image) for sample in plain)
    assert all(torch.equal(sample.noise, samples[k].noise) for k, sample in enumerate(plain))
    values = torch.stack([sample.noise for sample in samples])
    assert values.shape == (400, 16, 8, 8)
    assert values.mean().abs() < 5 / 640
    assert values.std().item() == pytest.approx(1, abs=0.01)
    assert values.unique().numel() > 0.95 * values.numel()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    num_processes=st.integers(1, 4),
    micro_batch_size=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    start_step=st.integers(0, 10**6),
)
def test_samples_are_the_same_however_the_batch_is_cut(
    photos: Path, num_processes: int, micro_batch_size: int, accumulation: int, start_step: int
) -> None:
    dataset = training_images(photos)
    batch_size = num_processes * micro_batch_size * accumulation
    streams = [
        training_batches(
            dataset,
            start_step=start_step,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            process_index=process_index,
            num_processes=num_processes,
        )
        for process_index in range(num_processes)
    ]
    for step in (start_step, start_step + 1):
        batches = [next(stream) for _ in range(accumulation) for stream in streams]
        images = torch.cat([batch.images for batch in batches])
        joined = TrainingBatch(images=images, noise=torch.cat([batch.noise for batch in batches]), skipped=[])
        assert_rows_are(joined, [dataset[k] for k in range(step * batch_size, (step + 1) * batch_size)])


def test_workers_change_nothing_and_count_what_is_skipped(photos: Path) -> None:
    dataset = training_images(photos, channels=4)
    state, others = torch.get_rng_state(), multiprocessing.active_children()
    with closing(training_batches(dataset, start_step=5, batch_size=4, micro_batch_size=4, num_workers=2)) as batches:
        found = list(islice(batches, 5))
    assert torch.equal(torch.get_rng_state(), state)
    samples = [dataset[k] for k in range(20, 40)]
    for i, batch in enumerate(found):
        assert_rows_are(batch, samples[4 * i : 4 * i + 4])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images.shape, batch.images.dtype) == ((4, 4, 16, 16), torch.float32)
    assert [skipped for batch in found for skipped in batch.skipped] == [
        s for sample in samples for s in sample.skipped
    ]
    assert set(multiprocessing.active_children()) <= set(others)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_strict_stops_at_the_first_unreadable_image(photos: Path, num_workers: int) -> None:
    batches = training_batches(
        training_images(photos, strict=True), start_step=0, batch_size=5, micro_batch_size=5, num_workers=num_workers
    )
    with closing(batches), pytest.raises(UnreadableImage, match=r"^the image [34]\.png can't be read: "):
        list(islice(batches, 2))


@contextmanager
def running(folder: Path) -> Iterator[tuple[Iterator[TrainingBatch], list[BaseProcess]]]:
    """Batches of two workers, after each one's first, and the workers."""
    others = multiprocessing.active_children()
    batches = training_batches(training_images(folder), start_step=0, batch_size=2, micro_batch_size=2, num_workers=2)
    with closing(batches):
        next(batches), next(batches)
        yield batches, [worker for worker in multiprocessing.active_children() if worker not in others]


def batches_of(folder: Path, count: int, *, num_workers: int = 2, **options: Any) -> list[TrainingBatch]:
    batches = training_batches(
        training_images(folder, **options), start_step=0, batch_size=2, micro_batch_size=2, num_workers=num_workers
    )
    with closing(batches):
        return list(islice(batches, count))


def test_a_worker_that_dies_at_no_picture_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageCollection, "read_crop", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match=r"^a data worker died \(.*Set num_workers 0"):
        batches_of(photos, 2)


@pytest.mark.parametrize("end", ["dies", "never ends"])
def test_a_picture_that_ends_a_worker_costs_that_picture(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "5.png").write_bytes(b"no picture")
    expected = batches_of(tmp_path, 12, num_workers=0)
    shutil.copy(photos / "5.png", tmp_path)
    convert = decoding.to_channels
    bad = Image.open(photos / "5.png").tobytes()

    def convert_or_end(image: Image.Image, **arguments: Any) -> Image.Image:
        if image.tobytes() == bad:
            if end == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            while True:
                pass
        return convert(image, **arguments)

    monkeypatch.setattr(decoding, "to_channels", convert_or_end)
    found = batches_of(tmp_path, 12, rules=ReadingRules(max_decode_seconds=1))
    for batch, reference in zip(found, expected, strict=True):
        assert torch.equal(batch.images, reference.images)
        assert torch.equal(batch.noise, reference.noise)
        assert [skipped.name for skipped in batch.skipped] == [skipped.name for skipped in reference.skipped]
    reasons = {skipped.reason for batch in found for skipped in batch.skipped if skipped.name == "5.png"}
    assert len(reasons) == 1
    assert ("died" if end == "dies" else "max_decode_seconds") in reasons.pop()


def test_workers_that_die_everywhere_are_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "to_channels", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match=r"the process that decoded it died, at \d+\.png; is memory short\?"):
        batches_of(photos, 12)


def test_a_stuck_worker_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageCollection, "read_crop", lambda *_, **__: time.sleep(300))  # as on dead storage
    batches = training_batches(
        training_images(photos), start_step=0, batch_size=2, micro_batch_size=2, num_workers=1, timeout_seconds=1
    )
    start = time.monotonic()
    with closing(batches), pytest.raises(RuntimeError, match=r"^a data worker gave nothing for 1 s; .*num_workers 0"):
        next(batches)
    assert time.monotonic() - start < 90


def test_signals_to_all_processes_leave_the_workers_to_the_main_one(photos: Path) -> None:
    with running(photos) as (batches, workers):
        for name in ("TERM", "USR1", "INT"):
            subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
        assert len(list(islice(batches, 12))) == 12
        assert all(worker.is_alive() for worker in workers)
        workers[0].terminate()  # the main process's own
        workers[0].join(60)
        assert not workers[0].is_alive()


def test_datasets_travel_to_workers_by_pickle(photos: Path) -> None:
    dataset = training_images(photos)
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(dataset[k].image, copy[k].image) for k in range(4))
