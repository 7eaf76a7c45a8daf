"""What a training run is: dataclasses that a YAML file and the command line fill. No torch: `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, Optional


def require(condition: bool, message: str) -> None:
    """Raise `ValueError(message)` unless `condition`: for what a user can get wrong."""
    if not condition:
        raise ValueError(message)


@dataclass(kw_only=True)
class ModelConfig:
    """The autoencoder. With `pretrained` the architecture is the pretrained model's, and only the first five fields
    and `decoder_only` count."""

    pretrained: Optional[str] = None
    """Folder, hub id or single LDM file to start from; none: from scratch."""
    in_channels: int = 3
    """Image channels: 1 (grey), 3 (RGB) or 4 (RGBA)."""
    latent_channels: Optional[int] = None
    """Channels of the latent. None: 4 from scratch, the pretrained model's otherwise. Another number than the
    pretrained model's keeps its channels and adds new ones (or drops the last)."""
    block_out_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    """Width of each resolution level; n levels give a spatial factor of 2^(n-1)."""
    layers_per_block: int = 2
    """Residual blocks a level in the encoder (the decoder has one more)."""
    norm_num_groups: int = 32
    """Groups of every group norm; must divide every width."""
    attention_levels: list[int] = field(default_factory=list)
    """Levels (0 is full resolution) with self-attention after each residual block, as in the published f16 and f32."""
    mid_block_add_attention: bool = True
    """Self-attention in the middle block, as published."""
    use_quant_conv: bool = True
    """1x1 convolutions on both sides of the latent, as published (SD3 and FLUX have none)."""
    init: Literal["torch", "quiet"] = "torch"
    """First weights, from scratch only: torch's, or `quiet` ones: fan-in, every residual block the identity, a sharp
    posterior. With `pretrained` it has no effect."""
    decoder_only: bool = False
    """Train the decoder and post_quant_conv alone; encoder and quant_conv, and so every latent, stay bit-unchanged."""

    def __post_init__(self) -> None:
        require(self.in_channels in (1, 3, 4), f"model.in_channels is {self.in_channels}; it must be 1, 3 or 4")
        require(
            self.latent_channels is None or self.latent_channels > 0,
            f"model.latent_channels is {self.latent_channels}; it must be positive",
        )
        require(
            len(self.block_out_channels) > 0 and min(self.block_out_channels) > 0,
            f"model.block_out_channels is {self.block_out_channels}; it needs at least one positive width",
        )
        require(self.layers_per_block > 0, f"model.layers_per_block is {self.layers_per_block}; it must be positive")
        for width in self.block_out_channels:
            require(
                self.norm_num_groups > 0 and width % self.norm_num_groups == 0,
                f"model.norm_num_groups is {self.norm_num_groups}, which does not divide the width {width} in "
                f"model.block_out_channels",
            )
        for level in self.attention_levels:
            require(
                0 <= level < len(self.block_out_channels),
                f"model.attention_levels names {level}; there are levels 0 to {len(self.block_out_channels) - 1}",
            )

    @property
    def spatial_factor(self) -> int:
        """Image pixels a latent pixel, along one side (for a model from scratch)."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(kw_only=True)
class DataConfig:
    """The images: whatever `datasets.load_dataset` reads."""

    train: Optional[str] = None
    """Images to train on: a folder of images, a hub id, or parquet or webdataset files (a glob is fine)."""
    validation: Optional[str] = None
    """Images to validate on, never trained on; none: no validation."""
    split: Optional[str] = None
    """Split of `train`; none: `train`, or the only one."""
    validation_split: Optional[str] = None
    """Split of `validation`; none: `validation`, `test` or the only one."""
    image_column: Optional[str] = None
    """Column that holds the images; none: the only image column there is."""
    resolution: int = 256
    """Side of the square training crops, in pixels."""
    early_resolutions: list[int] = field(default_factory=list)
    """Smaller sides to begin with, one after the other: most is learnt there, in a fraction of the time. For models
    without attention, which are good at any size."""
    early_fractions: list[float] = field(default_factory=list)
    """Part of train.max_train_steps that is trained at each of early_resolutions, before those at resolution."""
    crop: Literal["random_resized", "random", "center"] = "random"
    """`random` and `center` first resize the short side to `resolution`; `random_resized` takes a random part."""
    crop_min_area: float = 0.25
    """Smallest part of the image's area that a `random_resized` crop covers."""
    flip: bool = True
    """Mirror half of the images left to right."""
    num_workers: int = 2
    """Decoding processes for each training process; 0: in the training process itself."""
    streaming: bool = False
    """Read the source as a stream, without a local copy and without random access."""
    shuffle_buffer: int = 0
    """Images a stream is shuffled within, undecoded; 0 keeps its order. A resumed run reads up to its place again."""
    validation_images: int = 256
    """At most so many validation images are used, the first ones."""
    strict: bool = False
    """Stop at the first unreadable image instead of skipping, counting and listing it."""

    def __post_init__(self) -> None:
        require(self.resolution > 0, f"data.resolution is {self.resolution}; it must be positive")
        require(
            all(0 < side < self.resolution for side in self.early_resolutions),
            f"data.early_resolutions is {self.early_resolutions}; they must be positive and smaller than "
            f"data.resolution, which is {self.resolution}",
        )
        require(
            len(self.early_fractions) == len(self.early_resolutions),
            f"data.early_fractions has {len(self.early_fractions)} entries for {len(self.early_resolutions)} "
            f"data.early_resolutions",
        )
        require(
            all(fraction > 0 for fraction in self.early_fractions) and sum(self.early_fractions) < 1,
            f"data.early_fractions is {self.early_fractions}; they must be positive, and together less than 1",
        )
        require(0 < self.crop_min_area <= 1, f"data.crop_min_area is {self.crop_min_area}; it must lie in (0, 1]")
        for name in ("num_workers", "shuffle_buffer"):
            require(getattr(self, name) >= 0, f"data.{name} is {getattr(self, name)}; it can't be negative")
        require(self.validation_images > 0, f"data.validation_images is {self.validation_images}; it must be positive")
        require(
            self.shuffle_buffer == 0 or self.streaming,
            "data.shuffle_buffer is for data.streaming; without it the whole collection is shuffled anyway",
        )


@dataclass(kw_only=True)
class LossConfig:
    """The objective: the published kl-f8 loss divided by the image's number of elements."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Pixel distance, averaged over all elements."""
    perceptual: Literal["none", "lpips_vgg", "lpips_alex", "lpips_squeeze", "efficientnet_lite0"] = "lpips_vgg"
    """Network of the perceptual distance; `efficientnet_lite0` needs no download."""
    perceptual_weights: Optional[str] = None
    """Local file with the LPIPS trunk's weights; none: torch's usual cache, then a download."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance beside the pixel distance."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence a pixel element."""
    learn_logvar: bool = False
    """Learn a log-variance s of the reconstruction: rec / exp(s) + s."""
    logvar_init: float = 0.0
    """Start of s."""
    disc_weight: float = 0.5
    """Weight of the adversarial loss, before the adaptive one; 0: no discriminator."""
    disc_start: int = 50001
    """First generator update in which the discriminator is trained."""
    disc_warmup_steps: int = 0
    """Updates that the discriminator is trained for, from `disc_start` on, before it reaches the generator."""
    disc_loss: Literal["hinge", "vanilla"] = "hinge"
    """Loss of the discriminator."""
    disc_norm: Literal["group", "batch"] = "group"
    """Norm of the discriminator; `batch` is the published one, and depends on how the batch is cut."""
    disc_channels: int = 64
    """Width of the discriminator's first layer."""
    disc_num_layers: int = 3
    """Strided layers of the discriminator; 3 judges patches of 70 pixels."""
    adaptive_weight: Literal["lagged", "same_step", "off"] = "lagged"
    """Balance of the adversarial gradient against the reconstruction's at the last layer: measured in the step before,
    in the same step (the published order, without accumulation only), or not at all."""

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "kl_weight", "disc_weight", "disc_start", "disc_warmup_steps"):
            require(getattr(self, name) >= 0, f"loss.{name} is {getattr(self, name)}; it can't be negative")
        for name in ("disc_channels", "disc_num_layers"):
            require(getattr(self, name) > 0, f"loss.{name} is {getattr(self, name)}; it must be positive")


@dataclass(kw_only=True)
class TrainConfig:
    """How the run goes. A step is one update of the generator, whatever the number of processes and micro-batches."""

    batch_size: int = 12
    """Images an update, over all processes and micro-batches."""
    micro_batch_size: Optional[int] = None
    """Images that a process holds at once; accumulation follows. None: batch_size over the processes."""
    max_train_steps: int = 250000
    """Updates in all."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Of the autoencoder. `muon` orthogonalises the update of each inner convolution and attention weight and leaves
    the rest to AdamW; it needs the extra of that name. The discriminator's is AdamW always."""
    learning_rate: float = 5.4e-5
    """Peak learning rate of the autoencoder."""
    disc_learning_rate: Optional[float] = None
    """Peak learning rate of the discriminator; none: the autoencoder's."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "constant_with_decay", "linear", "cosine", "polynomial"
    ] = "constant"
    """Schedule, by diffusers' names; `constant_with_decay` is ours: constant, then linear to 0 at the end."""
    lr_decay_fraction: float = 0.4
    """Last part of the updates, over which `constant_with_decay` falls."""
    lr_warmup_steps: int = 0
    """Updates of linear warm-up, for every schedule but `constant`."""
    adam_beta1: float = 0.5
    """First moment's decay (0.5 as published with the GAN)."""
    adam_beta2: float = 0.9
    """Second moment's decay."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Largest norm of the autoencoder's gradient, and of the discriminator's; 0: no clipping."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """bf16 autocast of the convolutions; `auto`: where the hardware has it; `no`: float32, by torch's default with
    TF32 products in the convolutions of GPUs that have it. Weights are float32 always."""
    ema_decay: float = 0.9999
    """Decay of the float32 average of the weights, which is what is validated and exported; 0: none."""
    gradient_checkpointing: Literal["none", "blocks", "full"] = "none"
    """Recompute activations in the backward: of each residual and attention block, or of each level and in it of each
    block."""
    memory_budget_gib: Optional[float] = None
    """Most memory a process may use on its device. Where one is given, gradient_checkpointing is raised as far as a
    measured estimate says it takes."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the networks; `auto`: on CUDA."""
    deterministic: bool = False
    """Deterministic kernels only (CUDA): a resumed run is then bit-equal there too, and slower."""
    log_steps: int = 50
    """Updates between lines in metrics.jsonl and the tracker."""
    validation_steps: int = 5000
    """Updates between validations and sample grids."""
    best_metric: Literal["auto", "psnr", "ssim", "perceptual"] = "auto"
    """What makes a checkpoint the best one; `auto`: the perceptual distance if there is one, else PSNR."""
    checkpointing_steps: int = 5000
    """Updates between checkpoints."""
    checkpoints_total_limit: Optional[int] = 3
    """Checkpoints kept, the best one apart; none: all."""
    resume_from_checkpoint: Optional[str] = None
    """`latest`, or the name of a checkpoint in output_dir; `latest` starts afresh where there is none."""
    max_nonfinite_steps: int = 20
    """A row of so many skipped, non-finite updates stops the run."""
    timeout_minutes: float = 10.0
    """Longest wait of a process for the others."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_train_steps", "log_steps", "validation_steps", "checkpointing_steps",
                     "max_nonfinite_steps", "learning_rate", "adam_epsilon", "timeout_minutes"):  # fmt: skip
            require(getattr(self, name) > 0, f"train.{name} is {getattr(self, name)}; it must be positive")
        for name in ("lr_warmup_steps", "weight_decay", "max_grad_norm"):
            require(getattr(self, name) >= 0, f"train.{name} is {getattr(self, name)}; it can't be negative")
        require(
            0 < self.lr_decay_fraction <= 1,
            f"train.lr_decay_fraction is {self.lr_decay_fraction}; it must lie in (0, 1]",
        )
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"train.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("micro_batch_size", "checkpoints_total_limit", "disc_learning_rate", "memory_budget_gib"):
            value = getattr(self, name)
            require(value is None or value > 0, f"train.{name} is {value}; it must be positive")
        micro_batch_size = self.micro_batch_size or self.batch_size
        require(
            self.batch_size % micro_batch_size == 0,
            f"train.batch_size is {self.batch_size}, which train.micro_batch_size {micro_batch_size} does not divide",
        )

    def compiles(self, device_type: str) -> bool:
        """Whether the networks are compiled on a device of this type (`cuda`, `cpu`)."""
        return self.compile == "on" or (self.compile == "auto" and device_type == "cuda")

    def accumulation(self, *, num_processes: int) -> tuple[int, int]:
        """Return (micro_batch_size, micro-batches a process and update), so that processes x micro-batch x
        accumulation is the global batch. Raises `ValueError` where that can't be."""
        require(
            self.batch_size % num_processes == 0,
            f"train.batch_size is {self.batch_size}, which the {num_processes} processes don't divide; "
            f"take a multiple of {num_processes}",
        )
        local_batch_size = self.batch_size // num_processes
        micro_batch_size = self.micro_batch_size or local_batch_size
        require(
            local_batch_size % micro_batch_size == 0,
            f"train.micro_batch_size is {micro_batch_size}, which does not divide the {local_batch_size} images a "
            f"process has of train.batch_size {self.batch_size}",
        )
        return micro_batch_size, local_batch_size // micro_batch_size


@dataclass(kw_only=True)
class Config:
    """A training run."""

    output_dir: str = "runs/vae"
    """Folder of the run: config, metrics, samples, logs, checkpoints."""
    overwrite: bool = False
    """Start anew in an output_dir that holds a run, whose checkpoints and metrics are then removed."""
    seed: int = 0
    """Seed of everything random: initial weights, order, crops, flips, posterior noise."""
    report_to: Literal["none", "tensorboard", "wandb"] = "tensorboard"
    """Tracker, through accelerate; wandb needs the extra of that name."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed is {self.seed}; it can't be negative")
        if self.model.pretrained is None:
            check_resolution(self.data, spatial_factor=self.model.spatial_factor)

    @property
    def early_stages(self) -> list[tuple[int, int]]:
        """(update, resolution): the side of the images before that update, one stage after the other."""
        stages = zip(accumulate(self.data.early_fractions), self.data.early_resolutions, strict=True)
        return [(round(part * self.train.max_train_steps), resolution) for part, resolution in stages]


def check_resolution(data: DataConfig, *, spatial_factor: int) -> None:
    """Raise `ValueError` unless the model's spatial factor divides the resolutions."""
    named = [("resolution", data.resolution), *(("early_resolutions", side) for side in data.early_resolutions)]
    for name, side in named:
        below = side // spatial_factor * spatial_factor
        nearest = " or ".join(str(n) for n in (below, below + spatial_factor) if n > 0)
        require(
            side % spatial_factor == 0,
            f"data.{name} is {side}, which the model's factor {spatial_factor} does not divide; take {nearest}",
        )
