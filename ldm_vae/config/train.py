"""Settings of how a run goes: its updates, optimizers, precision, validations and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from ldm_vae.config.names import BestMetric, CheckpointingLevel, MixedPrecision, Optimizer, Schedule, WhenUseful
from ldm_vae.config.rules import Options, at_least, between, place, positive, require


@dataclass(kw_only=True)
class TrainConfig(Options):
    """How the run goes.

    A step is one update of the autoencoder, whatever the number of processes and micro-batches.
    """

    section: ClassVar[str] = "train"

    batch_size: int = positive(12)
    """Images in an update, over all processes and micro-batches."""
    max_train_steps: int = positive(250000)
    """Updates in the whole run."""
    learning_rate: float = positive(5.4e-5)
    """Peak learning rate of the autoencoder."""
    resume_from_checkpoint: Optional[str] = None
    """Checkpoint in output_dir that the run goes on from: `latest`, or the name of one. With `latest` a run that has
    none yet starts from the beginning."""
    micro_batch_size: Optional[int] = positive(None)
    """Images that a process holds at once; it runs as many micro-batches in an update as batch_size needs. Without it
    a process holds its whole part of batch_size at once."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the convolutions. `bf16` is autocast, `auto` takes it where the hardware has it. `no` is float32,
    in which GPUs that have TF32 multiply with it by torch's default. Weights are always float32."""
    gradient_checkpointing: CheckpointingLevel = "none"
    """Recompute activations in the backward to save memory: those of each residual and attention block (`blocks`), or
    those of each level and within it of each block (`full`)."""
    memory_budget_gib: Optional[float] = positive(None)
    """The most memory, in GiB, that a process may use on its device. With it, gradient_checkpointing is raised as far
    as a measured estimate says is needed."""
    compile: WhenUseful = "auto"
    """Compile the networks with torch.compile; `auto` does so on CUDA."""
    checkpointing_steps: int = positive(5000)
    """Updates between checkpoints."""
    checkpoint_store: Optional[str] = place(None)
    """Folder or address (`s3://…`) to which each checkpoint is uploaded, whole or not at all, with the run's figures;
    `resume_from_checkpoint` latest takes the newest whole one of there and of output_dir."""
    checkpoints_total_limit: Optional[int] = positive(3)
    """Number of newest checkpoints to keep; the best one is kept besides. With null all are kept."""
    validation_steps: int = positive(5000)
    """Updates between validations, and between sample grids."""
    validation_memory_gib: Optional[float] = positive(None)
    """The most memory of the device, in GiB beside the weights, that the model may take in a validation. Larger
    pictures go through it strip by strip, with the same result. Without it there is no bound."""
    panel_steps: Optional[int] = positive(None)
    """Updates between panels: measures, on the validation images at data.resolution, of how well a diffusion model
    could learn on the latents. Each passes over the images about 15 times. Without it there are none."""
    best_metric: BestMetric = "auto"
    """Figure of the validation by which a checkpoint is the best one. `auto` takes the perceptual distance if there is
    one, otherwise PSNR."""
    log_steps: int = positive(50)
    """Updates between lines in metrics.jsonl and the tracker."""
    ema_decay: float = between(0, 1, 0.9999, ends="[)")
    """Decay of the average of the weights (EMA), which is what is validated and exported. With 0 there is no
    average."""
    lr_scheduler: Schedule = "constant"
    """Schedule of the learning rates, by the names of diffusers. `constant_with_decay` is not among theirs: the rate
    is constant, and falls in a straight line to 0 at the end."""
    lr_warmup_steps: int = at_least(0, 0)
    """Updates of linear warm-up, for every schedule but `constant`."""
    lr_decay_fraction: float = between(0, 1, 0.4, ends="(]")
    """Last part of the updates, over which `constant_with_decay` falls."""
    disc_learning_rate: Optional[float] = positive(None)
    """Peak learning rate of the discriminator. Without it the discriminator has the autoencoder's."""
    optimizer: Optimizer = "adamw"
    """Optimizer of the autoencoder. `muon` orthogonalises the update of each inner convolution and attention weight,
    and leaves the rest to AdamW; it needs the extra of the same name. The discriminator always has AdamW."""
    adam_beta1: float = between(0, 1, 0.5, ends="[)")
    """Decay of AdamW's first moment; 0.5 is published with the adversarial loss."""
    adam_beta2: float = between(0, 1, 0.9, ends="[)")
    """Decay of AdamW's second moment."""
    adam_epsilon: float = positive(1e-8)
    """Number that AdamW adds to the root of the second moment."""
    weight_decay: float = at_least(0, 0.0)
    """Decoupled weight decay of both optimizers."""
    max_grad_norm: float = at_least(0, 1.0)
    """Largest norm of the autoencoder's gradient, and of the discriminator's; larger gradients are clipped to it. With
    0 nothing is clipped."""
    deterministic: bool = False
    """Use deterministic kernels only, so that a resumed run is bit-equal on CUDA too. It makes training slower."""
    max_nonfinite_steps: int = positive(20)
    """Stop the run after so many updates in a row that were not finite and were skipped."""
    timeout_minutes: float = positive(10.0)
    """Longest time, in minutes, that a process waits for the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        micro_batch_size = self.micro_batch_size or self.batch_size
        require(
            self.batch_size % micro_batch_size == 0,
            f"<train.batch_size> is {self.batch_size}, which <train.micro_batch_size> {micro_batch_size} "
            f"does not divide",
        )

    def compiles(self, device_type: str) -> bool:
        """Return whether the networks are compiled on a device of this type (`cuda`, `cpu`)."""
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
