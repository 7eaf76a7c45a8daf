"""An autoencoder that pictures are scored by, with what they are compared by."""

from __future__ import annotations

import torch
from torch import nn

from ldm_vae.config.commands.score import ScoreOptions
from ldm_vae.config.rules import require, require_divides
from ldm_vae.config.views import view_of
from ldm_vae.evaluation.features import choose_perceptual
from ldm_vae.evaluation.results import Protocol
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.evaluation import EvaluationImages, spread_indices
from ldm_vae.models.exact import enable_exact_tiling, tell_plan
from ldm_vae.models.families.family import Family
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import exact_float32, use_bf16
from ldm_vae.panel.sums import PanelImages
from ldm_vae.scoring.measure import How, Measured, measure
from ldm_vae.scoring.results import ScoreKind, score_kinds
from ldm_vae.system.cores import count_workers
from ldm_vae.system.launch import join_processes
from ldm_vae.system.telling import counted, tell


class Scorer:
    """An autoencoder with what its pictures are compared by, and what the command asked of it."""

    def __init__(self, options: ScoreOptions) -> None:
        self.options = options
        self.processes = join_processes()
        self.device = self.processes.device
        exact_float32()
        self.family = _load_family(options, device=self.device)
        self.channels = self.family.in_channels
        options.check_channels(self.channels)
        self.view = view_of(self.channels, chosen=options.perceptual_channels, numbers=options.reads_numbers)
        name, self.perceptual = self._network()
        self.how = How(
            bf16=use_bf16(options.mixed_precision, device=self.device),
            window=options.peak_window,
            samples=options.posterior_samples,
            compressor=options.compressor,
            rounded=not options.reads_numbers,
            view=self.view,
        )
        self.protocol = Protocol(
            resolution=options.resolution,
            factor=self.family.spatial_factor,
            bf16=self.how.bf16,
            perceptual=name,
            set_features=None,
            view=self.view,
            value_range=options.value_range,
        )
        # before the work, whether the score that pictures are put in order by will be there
        has_posterior = self.family.bottleneck.has_posterior
        score_kinds(options, self.protocol, variance=1.0 if has_posterior else None)

    def _network(self) -> tuple[str | None, nn.Module | None]:
        options = self.options
        if self.view is None:
            require(
                options.perceptual in ("auto", "none"),
                f"<perceptual_channels> is empty; of the {self.channels} channels name one or three for <perceptual> "
                f"{options.perceptual}",
            )
            tell(f"no network sees the {self.channels} channels; perceptual_channels chooses one or three of them")
            return None, None
        return choose_perceptual(
            options.perceptual, weights=options.perceptual_weights, device=self.device, view=self.view
        )

    def open(
        self, field: str, source: str, *, split: str | None, most: int | None
    ) -> tuple[ImageCollection, PanelImages]:
        """Open pictures, and say which of them are taken."""
        options = self.options
        collection = open_collection(
            source, split=split, held_out=True, image_column=options.image_column, field=field, rules=options
        )
        images = PanelImages(
            dataset=EvaluationImages(
                collection,
                channels=self.channels,
                resolution=options.resolution,
                multiple_of=self.family.spatial_factor,
            ),
            indices=spread_indices(len(collection), num_images=most),
            batch_size=options.batch_size,
            num_workers=count_workers(options.num_workers),
            perceptual=self.perceptual,
            strict=options.strict,
        )
        return collection, images

    def measure(
        self, images: PanelImages, collection: ImageCollection, *, title: str, ranked_by: ScoreKind | None = None
    ) -> Measured:
        """Measure pictures, and keep the maps of the first by a score.

        Raises:
            ValueError: None of them can be read.
        """
        options = self.options
        measured = measure(
            self.family,
            images,
            collection,
            how=self.how,
            title=title,
            rank=None if ranked_by is None else ranked_by.of,
            num_kept=max(options.num_maps, options.num_pictures),
        )
        field = "normal" if ranked_by is None else "data"
        if not measured.figures:
            first = (
                f"; the first: {measured.skipped[0].name}: {measured.skipped[0].reason}" if measured.skipped else ""
            )
            require(False, f"<{field}>: none of its pictures can be read{first}")
        return measured

    def tell_doubts(self, normal: Measured, data: Measured) -> None:
        """Tell what makes thresholds doubtful: few normal pictures, or pictures that are in both sets."""
        count, quantile = len(normal.figures), self.options.quantile
        if count * (1 - quantile) < 1:
            tell(f"normal: of {counted(count, 'picture')} none is expected above the quantile {quantile:g}; the "
                 f"thresholds are about the highest scores among them")  # fmt: skip
        known = {figures.digest for figures in normal.figures.values()}
        both = sum(figures.digest in known for figures in data.figures.values())
        if both:
            tell(f"data: {counted(both, 'picture')} of {len(data.figures):,} are normal ones too, pixel by pixel")


def _load_family(options: ScoreOptions, *, device: torch.device) -> Family:
    """Load the autoencoder onto the device, within the memory that it may take."""
    family = load_vae(options.vae, needs_scaling=False, **options.vae_arguments).family
    require(
        family.in_channels == family.out_channels,
        f"<vae>: {options.vae} makes {family.out_channels} channels of {family.in_channels}, which can't be compared",
    )
    if options.resolution is not None:
        require_divides(family.spatial_factor, options.resolution, name="resolution", whose="the factor")
    family.to(device, memory_format=torch.channels_last)
    if options.memory_gib is not None:
        enable_exact_tiling(family.model, memory_gib=options.memory_gib, tell=tell_plan)
    return family
