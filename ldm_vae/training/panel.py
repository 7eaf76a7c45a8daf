"""The panel in a run: how well a diffusion model could learn on the latents that there are so far."""

from __future__ import annotations

import torch

from ldm_vae.audio.collection import SoundCollection
from ldm_vae.config.rules import require
from ldm_vae.config.run import Config
from ldm_vae.images.collection import ImageCollection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.precision import same_float32, use_bf16
from ldm_vae.panel.panel import measure_panels
from ldm_vae.panel.sums import PanelImages
from ldm_vae.system.cores import count_workers
from ldm_vae.training.processes import Processes, waiting_for_others
from ldm_vae.training.state import TrainingState
from ldm_vae.training.tracking import Tracking
from ldm_vae.training.validation import averaged_weights

BATCH_SIZE = 16
"""Images measured together, whatever the run's micro-batches: neighbours in a batch are interpolated."""


def panel_images(
    source: ImageCollection | SoundCollection | None, config: Config, state: TrainingState
) -> PanelImages | None:
    """Return the validation images as the panel measures them, square; None where the run measures none."""
    if source is None or config.train.panel_steps is None:
        return None
    require(
        state.family.has_encoder,
        "<train.panel_steps> measures latents that are trained, and those of <model.teacher> aren't; leave it out",
    )
    assert isinstance(source, ImageCollection), "Config refuses a panel of sounds"
    return PanelImages(
        dataset=EvaluationImages(
            source,
            channels=config.model.in_channels,
            resolution=config.data.resolution,
            target_channels=config.data.target_channels,
        ),
        indices=range(min(len(source), config.data.validation_images)),
        batch_size=BATCH_SIZE,
        num_workers=count_workers(config.data.num_workers),
        perceptual=state.objective.frozen_networks.get("perceptual"),
        label=source.label,
    )


@torch.compiler.set_stance("force_eager")
def log_panel(
    state: TrainingState, images: PanelImages | None, *, config: Config, processes: Processes, tracking: Tracking
) -> None:
    """Measure a copy of the autoencoder, with the EMA's weights, on all processes together, and log the figures.

    In metrics.jsonl they are called `panel/` and a name of `ldm_vae.panel.measures.MEASURES`.
    """
    if images is None:
        return
    device = processes.accelerator.device
    with averaged_weights(state):
        family = state.family.with_fields({})
    with waiting_for_others("to measure the panel"), same_float32():
        autoencoder = InferenceAutoencoder(
            family,
            bf16=use_bf16(config.train.mixed_precision, device=device),
            device=device,
            memory_gib=config.train.validation_memory_gib,
        )
        (panel,), _, _ = measure_panels([autoencoder], images)
    figures = {f"panel/{name}": value for name, value in panel.figures.items()}
    tracking.measured(figures | {"panel/num_images": panel.num_images}, step=state.step)
