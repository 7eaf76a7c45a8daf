"""What a run's teacher is: an autoencoder that runs beside the student, or the latents that it has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm_vae.config.data import DataConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.rules import mark, require, within
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.guard import SkippedImage, UnreadableImage
from ldm_vae.images.training import Augmentation, TrainingImages, TrainingSample
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_vae
from ldm_vae.models.normalisation import Normalisation
from ldm_vae.models.teacher import RunningTeacher, StoredTeacher, Teacher
from ldm_vae.system.output_kinds import LATENTS, is_marked
from ldm_vae.system.output_stores import is_marked_store
from ldm_vae.system.places import is_address, open_store

_FIELD = mark("model.teacher")


def open_teacher(config: ModelConfig, *, student: Family, device: torch.device) -> Teacher | None:
    """Open what `model.teacher` names; None where it names none.

    Raises:
        FieldError: There is none, or the student's latents have another shape.
    """
    if config.teacher is None:
        return None
    if is_stored_teacher(config.teacher):
        dataset = _open_latents(config.teacher)
        preprocessing, is_moments = dataset.index["preprocessing"], dataset.index["mode"] == "moments"
        channels, factor = dataset.shape(0)[0], dataset.index["vae"]["spatial_factor"]
        _check_shapes(config.teacher, student, in_channels=preprocessing["channels"], latent_channels=channels,
                      factor=factor)  # fmt: skip
        _check_posterior(config, student, has_std=is_moments)
        return StoredTeacher(Normalisation.from_config(dataset.index["vae"]).to(device))
    teacher = open_running_teacher(config.teacher, student=student, device=device)
    _check_posterior(config, student, has_std=teacher.family.bottleneck.has_posterior)
    return teacher


def open_running_teacher(
    teacher: str, *, student: Family, device: torch.device, field: str = "model.teacher"
) -> RunningTeacher:
    """Load an autoencoder as a teacher.

    Args:
        teacher: A folder, hub id or single file.
        student: The model that decodes its latents.
        device: Where it runs.
        field: The option that names it, for the error.

    Raises:
        FieldError: There is none, or the student's latents have another shape.
    """
    family = load_vae(teacher, field=field).family
    _check_shapes(teacher, student, in_channels=family.in_channels, latent_channels=family.latent_channels,
                  factor=family.spatial_factor, field=field)  # fmt: skip
    return RunningTeacher(family, device=device)


def is_stored_teacher(teacher: str) -> bool:
    """Whether a teacher is a folder of latents."""
    if is_address(teacher):
        return is_marked_store(open_store(teacher), LATENTS)
    return is_marked(Path(teacher).expanduser(), LATENTS)


def _check_shapes(
    teacher: str, student: Family, *, in_channels: int, latent_channels: int, factor: int, field: str = "model.teacher"
) -> None:
    """Raise `FieldError` unless the student's latents have a teacher's shape."""
    for name, of_teacher, of_student in (
        ("channels of images", in_channels, student.in_channels),
        ("latent channels", latent_channels, student.latent_channels),
        ("spatial factor", factor, student.spatial_factor),
    ):
        require(
            of_teacher == of_student,
            f"{mark(field)} {teacher} and the model differ in their {name}: {of_teacher} and {of_student}; "
            f"take <model.latent_channels> {latent_channels} and as many levels as give its factor",
        )


def _check_posterior(config: ModelConfig, student: Family, *, has_std: bool) -> None:
    """Raise `FieldError` where the student's encoder is to imitate a posterior, and the teacher gives none."""
    require(
        has_std or not config.trains_encoder or not student.bottleneck.has_posterior,
        f"{_FIELD} {config.teacher} gives latents without a posterior, which the family {student.name} has; take a "
        f"<model.family> without one, such as tiny, or moments of latents",
    )


def _open_latents(folder: str) -> LatentDataset:
    try:
        dataset = LatentDataset(folder, normalize="none")
    except ValueError as error:
        raise within(_FIELD, error) from None
    require(len(dataset) > 0, f"{_FIELD} {folder} holds no latents")
    return dataset


class TaughtImages(TrainingImages):
    """Training images with the latents that a teacher has stored of them.

    Args:
        collection: The images.
        augmentation: How they become training images: as they did when they were encoded.
        latents: The folder of latents.
        data: The run's settings of its images.

    Raises:
        FieldError: The folder's latents aren't of these images, or not of such crops of them.
    """

    def __init__(self, collection: object, augmentation: Augmentation, *, latents: str, data: DataConfig) -> None:
        require(
            isinstance(collection, ImageCollection),
            f"{_FIELD} {latents} holds latents of images by number, which <data.streaming> and sounds don't have",
        )
        assert isinstance(collection, ImageCollection)
        super().__init__(collection, augmentation)
        self._folder = latents
        self._latents = _open_latents(latents)
        self._check(data)
        self._rows = np.full(len(collection), -1, dtype=np.int64)
        for line in self._latents.rows():
            self._rows[line.get("image", line["sample"])] = line["row"]

    def _check(self, data: DataConfig) -> None:
        index, folder = self._latents.index, self._folder
        preprocessing = index["preprocessing"]
        require(
            "bucket_set" not in preprocessing and not data.buckets,
            f"{_FIELD} {folder}: stored latents teach squares of one size; leave <data.buckets> out, and encode's",
        )
        require(
            index["data"].get("names") == self._collection.names_digest(),
            f"<data.train> {data.train} isn't what {folder} was encoded from, which {_FIELD} names: its images are "
            f"others or in another order, or were read as a stream",
        )
        require(
            preprocessing.get("value_range", []) == data.value_range,
            f"{_FIELD} {folder} holds latents of other numbers; set <data.value_range> to "
            f"{preprocessing.get('value_range', [])}",
        )
        resolution = preprocessing["resolution"]
        require(
            data.sizes == [(resolution, resolution)] and not data.early_resolutions,
            f"{_FIELD} {folder} holds latents of {resolution} pixels alone; set <data.resolution> to that and leave "
            f"<data.early_resolutions> out",
        )
        require(
            "crops" not in preprocessing,
            f"{_FIELD} {folder} holds several crops of each image; name latents of one, which is the middle",
        )
        require(data.crop == "center", f"{_FIELD} {folder} holds latents of centre crops; set <data.crop> to center")
        require(
            index["flip"] or not data.flip,
            f"{_FIELD} {folder} holds no mirrored latents; encode with --flip, or set <data.flip> to false",
        )

    def _sample(self, k: int, index: int, skipped: list[SkippedImage]) -> TrainingSample:
        row = int(self._rows[index])
        if row < 0:
            raise UnreadableImage(self._collection.name(index), f"{self._folder} holds no latents of it")
        sample = super()._sample(k, index, skipped)
        sample.stored = self._stored(row, flipped=self.augmentation.flips(k))
        return sample

    def _stored(self, row: int, *, flipped: bool) -> dict[str, Tensor]:
        """Return the teacher's own latents of a row: their mean, and std where there is one, [c, h, w], float32."""
        stored = {"mean": self._latents.latents(row, flipped=flipped)}
        if self._latents.index["mode"] == "moments":
            stored["std"] = self._latents.moments(row)["std_flip" if flipped else "std"].float()
        return stored
