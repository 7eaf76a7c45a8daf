"""Images to train on and to measure with: the data layer's front, from which other layers import."""

from __future__ import annotations

from ldm_vae.data.batches import training_batches
from ldm_vae.data.collection import ImageCollection, open_collection
from ldm_vae.data.decoding import UnreadableImage, decode_image, read_crop
from ldm_vae.data.evaluation import EvaluationBatch, EvaluationImages, EvaluationSample, evaluation_batches
from ldm_vae.data.streaming import ImageStream, StreamingImages, open_stream
from ldm_vae.data.training import SkippedImage, TrainingBatch, TrainingImages, TrainingSample

__all__ = [
    "EvaluationBatch",
    "EvaluationImages",
    "EvaluationSample",
    "ImageCollection",
    "ImageStream",
    "SkippedImage",
    "StreamingImages",
    "TrainingBatch",
    "TrainingImages",
    "TrainingSample",
    "UnreadableImage",
    "decode_image",
    "evaluation_batches",
    "open_collection",
    "open_stream",
    "read_crop",
    "training_batches",
]
