"""`probe`: a panel of measures, and small diffusion models trained on the latents of several autoencoders."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from safetensors.torch import load_file

from ldm_vae.config.commands.probe import ProbeOptions
from ldm_vae.config.rules import require, require_divides
from ldm_vae.config.views import photographs_view
from ldm_vae.evaluation.features import choose_perceptual, load_all_set_features
from ldm_vae.evaluation.grid import save_grid
from ldm_vae.evaluation.results import package_versions
from ldm_vae.evaluation.subjects import check_channels
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.evaluation import EvaluationImages, spread_indices
from ldm_vae.images.transforms import to_image
from ldm_vae.models.fingerprint import fingerprint
from ldm_vae.models.inference import InferenceAutoencoder
from ldm_vae.models.load import load_vae
from ldm_vae.models.precision import exact_float32, use_bf16
from ldm_vae.panel.measures import describe_measures, format_panel
from ldm_vae.panel.panel import measure_panels
from ldm_vae.panel.sums import PanelImages
from ldm_vae.probing.control import ScrambledAutoencoder
from ldm_vae.probing.folder import METRICS, SAMPLES, ProbeFolder
from ldm_vae.probing.prepare import Subject, prepare
from ldm_vae.probing.protocol import choose_budget, with_hash
from ldm_vae.probing.results import Probed, ProbeSummary, compare, probe_table
from ldm_vae.probing.samples import score_names
from ldm_vae.probing.trainings import Trainings, pictures_file
from ldm_vae.system.cores import count_workers
from ldm_vae.system.launch import join_processes
from ldm_vae.system.markdown import markdown_text
from ldm_vae.system.pixels import from_pixels
from ldm_vae.system.text import printable, short_name

_CONTROL = "control"


def probe(options: ProbeOptions) -> ProbeSummary:
    """Measure how well diffusion models would learn on the latents of autoencoders; write metrics.json and tables.

    Raises:
        ValueError: In one line, for an output that is taken, data or weights that can't be read, and autoencoders that
            don't fit the data, the resolution or each other.
    """
    return _Probe(options).run()


class _Probe:
    """A probe at work."""

    def __init__(self, options: ProbeOptions) -> None:
        self.options, self.budget = options, choose_budget(options)
        self.processes = join_processes()
        self.device = self.processes.device
        exact_float32()
        self.bf16 = use_bf16(options.mixed_precision, device=self.device)
        self.train_bf16 = self.bf16 and self.device.type == "cuda"
        self.subjects = self._load()
        self.view = photographs_view(
            self.subjects[0].autoencoder.family.out_channels,
            numbers=options.reads_numbers,
            targets=options.target_channels,
        )
        self.folder = ProbeFolder(
            options.output, request=self._request(), overwrite=options.overwrite, processes=self.processes
        )

    def run(self) -> ProbeSummary:
        options = self.options
        collection = open_collection(
            options.data, split=options.split, image_column=options.image_column, rules=options
        )
        images = self._images(collection, num_images=self.budget.num_images)
        panel = self._panel(collection, images) if options.panel_images else None
        protocol: dict[str, Any] = {"panel": None if panel is None else panel["protocol"], "probe": None}
        panels = [None] * len(self.subjects) if panel is None else panel["panels"]
        skipped = [] if panel is None else panel["skipped"]
        probed = [self._probed(subject, panel=each) for subject, each in zip(self.subjects, panels, strict=True)]
        scores: list[str] = []
        if not options.no_diffusion:
            features = load_all_set_features(
                inception_weights=options.inception_weights, device=self.device, view=self.view
            )
            require(bool(features), "no network to compare pictures in: pip install 'ldm-vae[quickstart]'")
            scores = score_names(features)
            prepared = prepare(
                self.subjects, images, compared=self._compared(images), features=features, work=self.folder.work
            )
            skipped = [asdict(skip) for skip in prepared.skipped]
            trainings = Trainings(
                subjects=self.subjects,
                budget=self.budget,
                options=options,
                prepared=prepared,
                features=features,
                folder=self.folder,
                processes=self.processes,
                bf16=self.bf16,
                train_bf16=self.train_bf16,
            )
            protocol["probe"], found = trainings.run()
            probed = [replace(each, **results) for each, results in zip(probed, found, strict=True)]
        return self._finish(probed, protocol=with_hash(protocol), scores=scores, skipped=skipped)

    # What there is

    def _load(self) -> list[Subject]:
        options = self.options
        sources = [*([] if options.reference is None else [options.reference]), *options.vae]
        names = [short_name(source) for source in sources]
        if len(set(names)) < len(names):
            names = (
                [f"{i}:{source}" for i, source in enumerate(sources)] if len(set(sources)) < len(names) else sources
            )
        folders = options.latents or [None] * len(sources)  # type: ignore[list-item]
        subjects = [
            self._subject(source, name=name, folder=folder, control=False)
            for source, name, folder in zip(sources, names, folders, strict=True)
        ]
        if options.control:
            subjects.append(self._subject(sources[0], name=f"{names[0]} ({_CONTROL})", folder=None, control=True))
        families = [subject.autoencoder.family for subject in subjects]
        check_channels([subject.source for subject in subjects], families, targets=options.target_channels)
        options.check_channels(families[0].in_channels)
        return subjects

    def _subject(self, source: str, *, name: str, folder: str | None, control: bool) -> Subject:
        family = load_vae(source, needs_scaling=self.options.normalize == "scaling").family
        side, factor = self.budget.resolution, family.spatial_factor
        require_divides(factor, side, name="resolution", whose=f"{name}'s factor")
        digests = fingerprint(family)
        autoencoder = (
            ScrambledAutoencoder(family, bf16=self.bf16, device=self.device)
            if control
            else InferenceAutoencoder(family, bf16=self.bf16, device=self.device)
        )
        whole = f"{digests.whole} {_CONTROL}" if control else digests.whole
        return Subject(
            source=source,
            name=name,
            fingerprint=whole,
            encoder=digests.encoder,
            autoencoder=autoencoder,
            folder=folder,
        )

    def _request(self) -> dict[str, Any]:
        """Return all that the figures depend on and that is known before the data is read."""
        left_out = ("output", "overwrite", "num_workers", "report", "vae", "reference", "budget")
        asked = {name: value for name, value in asdict(self.options).items() if name not in left_out}
        autoencoders = {subject.name: subject.fingerprint for subject in self.subjects}
        return {
            **asked,
            **asdict(self.budget),
            "autoencoders": autoencoders,
            "bf16": self.bf16,
            "device": self.device.type,
        }

    def _images(self, collection: ImageCollection, *, num_images: int) -> PanelImages:
        options = self.options
        channels = self.subjects[0].autoencoder.family.in_channels
        return PanelImages(
            dataset=EvaluationImages(
                collection,
                channels=channels,
                resolution=self.budget.resolution,
                target_channels=options.target_channels,
            ),
            indices=spread_indices(len(collection), num_images=num_images),
            batch_size=options.batch_size,
            num_workers=count_workers(options.num_workers),
            perceptual=None,
            label=collection.label,
            strict=options.strict,
        )

    def _compared(self, images: PanelImages) -> set[int]:
        return {images.indices[i] for i in spread_indices(len(images.indices), num_images=self.budget.num_samples)}

    # The panel

    def _panel(self, collection: ImageCollection, images: PanelImages) -> dict[str, Any]:
        options = self.options
        name, perceptual = choose_perceptual(
            options.perceptual, weights=options.perceptual_weights, device=self.device, view=self.view
        )
        chosen = spread_indices(len(images.indices), num_images=options.panel_images)
        images = replace(images, indices=[images.indices[i] for i in chosen], perceptual=perceptual)

        def measure() -> dict[str, Any]:
            panels, skipped, data = measure_panels([subject.autoencoder for subject in self.subjects], images)
            return {
                "protocol": images.protocol(bf16=self.bf16, perceptual=name) | {"data": data},
                "panels": [asdict(panel) for panel in panels],
                "skipped": [asdict(skip) for skip in skipped],
            }

        return self.folder.once("panel", measure)

    def _probed(self, subject: Subject, *, panel: dict[str, Any] | None) -> Probed:
        return Probed(
            vae=subject.source,
            name=subject.name,
            vae_fingerprint=subject.fingerprint,
            factor=subject.factor,
            latent_shape=list(subject.shape(self.budget.resolution)),
            panel=panel,
            reconstruction={},
            trainings=[],
        )

    # The results

    def _finish(
        self, probed: list[Probed], *, protocol: dict[str, Any], scores: list[str], skipped: list[dict[str, Any]]
    ) -> ProbeSummary:
        tables = [probe_table(probed, scores=scores)] if scores else []
        if probed[0].panel is not None:
            figures = [each.panel["figures"] for each in probed if each.panel is not None]
            tables.append(format_panel([markdown_text(each.name) for each in probed], figures))
        tables.append(f"protocol {protocol['sha256'][:12]}, budget {self.options.budget}, {self.device.type}")
        table = "\n\n".join(tables)
        metrics = {
            "kind": "probe",
            "protocol": protocol,
            "budget": self.options.budget,
            "scores": scores,
            "reference": probed[0].name,
            "autoencoders": [self._record(each, among=probed, scores=scores) for each in probed],
            "measures": {} if probed[0].panel is None else describe_measures(),
            "skipped": skipped,
            "settings": asdict(self.options),
            "device": self.device.type,
            "processes": self.processes.num_processes,
            "versions": package_versions(),
        }
        if scores and self.processes.is_main_process:
            self._draw(probed)
        report = self.folder.finish(metrics=metrics, table=table, report=self.options.report)
        return ProbeSummary(
            probed=probed,
            table=table,
            metrics=self.folder.path / METRICS,
            report=report,
            problem=self._problem(probed, scores),
        )

    def _record(self, each: Probed, *, among: list[Probed], scores: list[str]) -> dict[str, Any]:
        """Return an autoencoder's results for metrics.json."""
        record = asdict(each)
        for name in scores:
            verdict = compare(each, among[0], among=among, score=name)
            record.setdefault("scores", {})[name] = {
                "mean": each.mean(name),
                "std": math.sqrt(each.variance(name)),
                "difference": verdict.difference,
                "margin": verdict.margin,
                "verdict": "reference" if each is among[0] else str(verdict),
            }
        return record

    def _draw(self, probed: list[Probed]) -> None:
        """Write samples of each autoencoder in a column, those of a row from the same noise where shapes agree."""
        columns = [load_file(pictures_file(self.folder.work, number))["pictures"] for number in range(len(probed))]
        rows = [[to_image(from_pixels(picture)) for picture in row] for row in zip(*columns, strict=True)]
        save_grid(self.folder.path / SAMPLES, rows, titles=[printable(each.name) for each in probed])

    def _problem(self, probed: list[Probed], scores: list[str]) -> str | None:
        if not scores:
            return None
        broken = [each.name for each in probed if not all(math.isfinite(each.mean(score)) for score in scores)]
        if broken:
            return f"vae: samples of {', '.join(map(printable, broken))} hold NaN or infinity"
        if self.options.control and str(compare(probed[-1], probed[0], among=probed, score=scores[0])) != "worse":
            return (
                "the control, whose latents are scrambled, isn't told apart from the reference: this budget is too "
                "small to compare autoencoders by; give more steps, samples or seeds"
            )
        return None
