"""Images to train on and to measure with: the data layer's front, from which other layers import."""

from __future__ import annotations

from ldm_vae.data.collection import ImageCollection, open_collection
from ldm_vae.data.decoding import UnreadableImage, decode_image, read_crop
from ldm_vae.data.evaluation import EvaluationBatch, EvaluationImages, EvaluationSample, evaluation_batches
from ldm_vae.data.training import SkippedImage, TrainingBatch, TrainingImages, TrainingSample, training_batches

__all__ = [
    "EvaluationBatch",
    "EvaluationImages",
    "EvaluationSample",
    "ImageCollection",
    "SkippedImage",
    "TrainingBatch",
    "TrainingImages",
    "TrainingSample",
    "UnreadableImage",
    "decode_image",
    "evaluation_batches",
    "open_collection",
    "read_crop",
    "training_batches",
]
