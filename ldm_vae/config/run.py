"""A training run: its sections, and the rules across them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

from ldm_vae.config.data import DataConfig, check_resolution
from ldm_vae.config.loss import LossConfig
from ldm_vae.config.model import ModelConfig
from ldm_vae.config.names import Tracker
from ldm_vae.config.rules import Options, at_least, local_path, require
from ldm_vae.config.stages import check_stage
from ldm_vae.config.train import TrainConfig
from ldm_vae.config.views import View, view_of


@dataclass(kw_only=True)
class Config(Options):
    """Train an autoencoder.

    Example: ldm-vae train --config kl_f8 --data.train photos --output_dir runs/mine

    A file may have `stages`, a list: each of its entries has sections with what that stage has of its own. They follow
    one another, for train.max_train_steps updates each; --stages.2.train.learning_rate 1e-4 changes the second one.
    """

    output_dir: str = local_path("runs/vae")
    """Folder of the run, for its config, metrics, samples, logs and checkpoints."""
    overwrite: bool = False
    """Start anew where output_dir holds a run; its checkpoints and metrics are removed."""
    seed: int = at_least(0, 0)
    """Seed of everything random: first weights, order, crops, flips and posterior noise."""
    report_to: Tracker = "tensorboard"
    """Tracker of the figures beside metrics.jsonl; wandb needs the extra of the same name."""
    report: bool = True
    """Write report.html at the end, a page with the curves and samples of the run, which needs no network."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: list[Config] = field(default_factory=list, metadata={"row": True})
    """All settings of each stage, in their order; empty where the run has but one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, stage in enumerate(self.stages, 1):
            require(not stage.stages, f"stage {number} has stages of its own; put them all into one list")
            check_stage(stage, run=self, number=number)
        if self.model.pretrained is None:
            check_resolution(self.data, spatial_factor=self.model.image_multiple)

        self.data.check_channels(self.model.in_channels)
        self._check_targets()
        self._check_view()
        if self.data.mel_frames is not None:
            self._check_sounds()
        require(
            self.model.posterior != "fixed" or self.train.weight_decay == 0,
            "<train.weight_decay> would move the deviation of a fixed <model.posterior>; set it to 0",
        )
        self._check_latents_that_stay()
        numbers = "data.mel_frames" if self.data.mel_frames is not None else "data.value_range"
        require(
            self.loss.likelihood == "none" or (self.data.mel_frames is None and not self.data.reads_numbers),
            f"<loss.likelihood> is that of pictures of 8 bits, which <{numbers}> makes no use of; set it to none",
        )
        require(
            self.train.panel_steps is None or self.data.validation is not None,
            "<train.panel_steps> measures validation images; name them with <data.validation>",
        )
        require(
            self.train.best_metric != "perceptual" or self.loss.perceptual != "none",
            "<train.best_metric> is perceptual, but <loss.perceptual> is none; take psnr, ssim or auto",
        )

    def _check_view(self) -> None:
        """Raise `FieldError` where a network looks at images of which it isn't known what it sees."""
        looks = {
            "perceptual": self.loss.perceptual != "none" and self.loss.perceptual_weight != 0,
            "alignment": self.loss.alignment != "none",
            "discriminator": self.loss.disc_weight > 0 and self.loss.discriminator != "patch",
        }
        which = next((name for name, does in looks.items() if does), "perceptual")
        require(
            self.view is not None or not any(looks.values()),
            f"<loss.perceptual_channels> is empty; of <model.{'in' if self.model.out_channels is None else 'out'}"
            f"_channels> {self.model.made_channels} name one or three for the network of <loss.{which}> to see, or "
            f"leave that network out",
        )

    def _check_sounds(self) -> None:
        """Raise `FieldError` for what is for images alone."""
        for name, number in (("in_channels", self.model.in_channels), ("out_channels", self.model.made_channels)):
            require(
                number == 1,
                f"<data.mel_frames> makes images of one channel of sounds; set <model.{name}> to 1, which is {number}",
            )
        for name in ("eq_probability", "equivariance_weight", "consistency_weight", "low_pass"):
            require(
                not getattr(self.loss, name),
                f"<loss.{name}> is for square images, but with <data.mel_frames> the data are sounds; leave it out",
            )
        require(
            self.train.panel_steps is None,
            "<train.panel_steps> is for square images, but with <data.mel_frames> the data are sounds; leave it out",
        )

    def _check_latents_that_stay(self) -> None:
        """Raise `FieldError` for a term on latents that aren't trained, or are a teacher's."""
        for place, why in (
            (self.model.decoder_only, "<model.decoder_only> leaves as it is"),
            (self.model.teacher is not None, "<model.teacher> replaces with its own"),
        ):
            require(
                self.loss.alignment == "none" or not place,
                f"<loss.alignment> trains the encoder's latents, which {why}; set it to none",
            )
        require(
            self.loss.spectrum_weight == 0 or self.model.teacher is None,
            "<loss.spectrum_weight> shapes the latents, which are those of <model.teacher>; leave it out",
        )
        whose = "decoder_only" if self.model.decoder_only else "teacher"
        for name in ("consistency_weight", "spectrum_weight"):
            require(
                getattr(self.loss, name) == 0 or self.model.trains_encoder,
                f"<loss.{name}> trains the encoder, which <model.{whose}> leaves as it is; set it to 0",
            )
        require(
            self.model.teacher is None
            or self.model.trains_encoder
            or self.loss.imitation_weight == type(self.loss).imitation_weight,
            f"<loss.imitation_weight> is {self.loss.imitation_weight}, but the encoder isn't trained; set "
            f"<model.teach_encoder> to true, or leave it out",
        )

    def _check_targets(self) -> None:
        """Raise `FieldError` unless it is said which of the images' channels the model is to make."""
        targets, taken, made = self.data.target_channels, self.model.in_channels, self.model.made_channels
        require(
            bool(targets) or made == taken,
            f"<data.target_channels> is empty, but the model makes <model.out_channels> {made} of <model.in_channels> "
            f"{taken}; name the {made} channels of the images that these are compared with, counted from 0",
        )
        require(
            all(channel < taken for channel in targets),
            f"<data.target_channels> is {targets}; images of <model.in_channels> {taken} have channels 0 to "
            f"{taken - 1}",
        )
        require(
            len(targets) in (0, made),
            f"<data.target_channels> names {len(targets)} channels, and the model makes {made}; set "
            f"<model.out_channels> to {len(targets)}",
        )

    @property
    def view(self) -> View | None:
        """What networks for photographs see of what the model makes; None where that isn't chosen."""
        return view_of(
            self.model.made_channels,
            chosen=self.loss.perceptual_channels,
            numbers=self.data.reads_numbers,
            targets=self.data.target_channels,
            field="loss.perceptual_channels",
        )

    def check_processes(self, num_processes: int) -> None:
        """Raise `FieldError` unless `num_processes` can share the batch, in the way that the loss needs."""
        _, accumulation = self.train.accumulation(num_processes=num_processes)
        require(
            self.loss.adaptive_weight != "same_step" or self.loss.disc_weight == 0 or accumulation == 1,
            f"<loss.adaptive_weight> is same_step, which needs the whole batch at once, but <train.micro_batch_size> "
            f"makes {accumulation} micro-batches; take lagged, or leave <train.micro_batch_size> out",
        )

    @property
    def row(self) -> list[Config]:
        """The settings of each stage; those of the run itself where it has but one."""
        return self.stages or [self]

    @property
    def early_stages(self) -> list[tuple[int, int]]:
        """The early stages in order, as (update, resolution): the side that images have before the update."""
        stages = zip(accumulate(self.data.early_fractions), self.data.early_resolutions, strict=True)
        return [(round(part * self.train.max_train_steps), resolution) for part, resolution in stages]
