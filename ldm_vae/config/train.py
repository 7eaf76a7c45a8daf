"""How the run goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from ldm_vae.config.names import BestMetric, CheckpointingLevel, MixedPrecision, Optimizer, Schedule, WhenUseful
from ldm_vae.config.rules import Options, at_least, between, positive, require


@dataclass(kw_only=True)
class TrainConfig(Options):
    """How the run goes. A step is one update of the generator, whatever the number of processes and micro-batches."""

    section: ClassVar[str] = "train"

    batch_size: int = positive(12)
    """Images an update, over all processes and micro-batches."""
    micro_batch_size: Optional[int] = positive(None)
    """Images that a process holds at once; accumulation follows. None: batch_size over the processes."""
    max_train_steps: int = positive(250000)
    """Updates in all."""
    optimizer: Optimizer = "adamw"
    """Of the autoencoder. `muon` orthogonalises the update of each inner convolution and attention weight and leaves
    the rest to AdamW; it needs the extra of that name. The discriminator's is AdamW always."""
    learning_rate: float = positive(5.4e-5)
    """Peak learning rate of the autoencoder."""
    disc_learning_rate: Optional[float] = positive(None)
    """Peak learning rate of the discriminator; none: the autoencoder's."""
    lr_scheduler: Schedule = "constant"
    """Schedule, by diffusers' names; `constant_with_decay` is ours: constant, then linear to 0 at the end."""
    lr_decay_fraction: float = between(0, 1, 0.4, ends="(]")
    """Last part of the updates, over which `constant_with_decay` falls."""
    lr_warmup_steps: int = at_least(0, 0)
    """Updates of linear warm-up, for every schedule but `constant`."""
    adam_beta1: float = between(0, 1, 0.5, ends="[)")
    """First moment's decay (0.5 as published with the GAN)."""
    adam_beta2: float = between(0, 1, 0.9, ends="[)")
    """Second moment's decay."""
    adam_epsilon: float = positive(1e-8)
    """Added to the root of the second moment."""
    weight_decay: float = at_least(0, 0.0)
    """Decoupled weight decay."""
    max_grad_norm: float = at_least(0, 1.0)
    """Largest norm of the autoencoder's gradient, and of the discriminator's; 0: no clipping."""
    mixed_precision: MixedPrecision = "auto"
    """bf16 autocast of the convolutions; `auto`: where the hardware has it; `no`: float32, by torch's default with
    TF32 products in the convolutions of GPUs that have it. Weights are float32 always."""
    ema_decay: float = between(0, 1, 0.9999, ends="[)")
    """Decay of the float32 average of the weights, which is what is validated and exported; 0: none."""
    gradient_checkpointing: CheckpointingLevel = "none"
    """Recompute activations in the backward: of each residual and attention block, or of each level and in it of each
    block."""
    memory_budget_gib: Optional[float] = positive(None)
    """Most memory a process may use on its device. Where one is given, gradient_checkpointing is raised as far as a
    measured estimate says it takes."""
    compile: WhenUseful = "auto"
    """torch.compile of the networks; `auto`: on CUDA."""
    deterministic: bool = False
    """Deterministic kernels only (CUDA): a resumed run is then bit-equal there too, and slower."""
    log_steps: int = positive(50)
    """Updates between lines in metrics.jsonl and the tracker."""
    validation_steps: int = positive(5000)
    """Updates between validations and sample grids."""
    validation_memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that the model may take in a validation. Larger
    pictures go through it strip by strip, with the same result. Without it there is no bound."""
    best_metric: BestMetric = "auto"
    """What makes a checkpoint the best one; `auto`: the perceptual distance if there is one, else PSNR."""
    checkpointing_steps: int = positive(5000)
    """Updates between checkpoints."""
    checkpoints_total_limit: Optional[int] = positive(3)
    """Checkpoints kept, the best one apart; none: all."""
    resume_from_checkpoint: Optional[str] = None
    """`latest`, or the name of a checkpoint in output_dir; `latest` starts afresh where there is none."""
    max_nonfinite_steps: int = positive(20)
    """A row of so many skipped, non-finite updates stops the run."""
    timeout_minutes: float = positive(10.0)
    """Longest wait of a process for the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        micro_batch_size = self.micro_batch_size or self.batch_size
        require(
            self.batch_size % micro_batch_size == 0,
            f"<train.batch_size> is {self.batch_size}, which <train.micro_batch_size> {micro_batch_size} "
            f"does not divide",
        )

    def compiles(self, device_type: str) -> bool:
        """Whether the networks are compiled on a device of this type (`cuda`, `cpu`)."""
        return self.compile == "on" or (self.compile == "auto" and device_type == "cuda")

    def accumulation(self, *, num_processes: int) -> tuple[int, int]:
        """Return the size of a micro-batch, and how many of them each process runs in an update.

        The two times the number of processes give `batch_size`.

        Raises:
            FieldError: The processes or the micro-batches don't divide `batch_size`.
        """
        require(
            self.batch_size % num_processes == 0,
            f"<train.batch_size> is {self.batch_size}, which the {num_processes} processes don't divide; "
            f"take a multiple of {num_processes}",
        )
        local_batch_size = self.batch_size // num_processes
        micro_batch_size = self.micro_batch_size or local_batch_size
        require(
            local_batch_size % micro_batch_size == 0,
            f"<train.micro_batch_size> is {micro_batch_size}, which does not divide the {local_batch_size} images a "
            f"process has of <train.batch_size> {self.batch_size}",
        )
        return micro_batch_size, local_batch_size // micro_batch_size
