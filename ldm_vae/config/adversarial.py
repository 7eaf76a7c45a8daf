"""Settings of the discriminator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from ldm_vae.config.names import AdaptiveWeight, Discriminator, DiscriminatorLoss, DiscriminatorNorm
from ldm_vae.config.rules import Options, at_least, between, local_path, positive, require


@dataclass(kw_only=True)
class AdversarialFields(Options):
    """The discriminator, its balance against the terms on images, and what keeps it from running away."""

    section: ClassVar[str] = "loss"

    disc_weight: float = at_least(0, 0.5)
    """Weight of the adversarial loss, which multiplies the adaptive weight. With 0 there is no discriminator."""
    discriminator: Discriminator = "patch"
    """What the discriminator looks at: pixels, as a PatchGAN (`patch`), or features of a frozen network, of which it
    trains heads alone."""
    discriminator_weights: Optional[str] = local_path(None)
    """Folder of the frozen network, as transformers writes it; `efficientnet_lite0` needs none."""
    disc_start: float = at_least(0, 50001)
    """Updates before the discriminator is trained: their number, or below 1 a part of train.max_train_steps, such as
    0.5."""
    disc_warmup_steps: int = at_least(0, 0)
    """Updates, from disc_start on, in which the discriminator is trained and doesn't yet reach the autoencoder."""
    disc_loss: DiscriminatorLoss = "hinge"
    """Loss of the discriminator."""
    disc_norm: DiscriminatorNorm = "group"
    """Norm in the discriminator. `batch` is the published one of `patch`, whose result depends on how the batch is
    cut."""
    disc_channels: int = positive(64)
    """Width of the discriminator's first layer, or of its heads on a frozen network's features."""
    disc_num_layers: int = positive(3)
    """Strided layers of the discriminator `patch`; with 3 it judges patches of 70 pixels."""
    disc_lecam_weight: float = at_least(0, 0.0)
    """Weight of the LeCam regulariser in the discriminator's loss, which draws the logits of images and those of
    reconstructions towards the average of the other ones over past updates. 0.001 is common."""
    disc_lecam_decay: float = between(0, 1, 0.999, ends="[)")
    """Part of the average logits that an update keeps."""
    disc_r1_weight: float = at_least(0, 0.0)
    """Weight of the R1 penalty in the discriminator's loss: half the squared gradient of its logits at the images,
    whose gradient takes a second backward through it. With 0 there is none."""
    disc_r1_every: int = positive(1)
    """Number n for which the R1 penalty is part of every n-th update, with n times its weight."""
    adaptive_weight: AdaptiveWeight = "lagged"
    """When the adversarial gradient is measured against the reconstruction's, at the last layer, to balance both: in
    the step before (`lagged`), in the same step, as published (`same_step`, which works without accumulation only), or
    not at all (`off`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.discriminator == "patch" or self.disc_norm == "group",
            f"<loss.disc_norm> is batch, which is for the discriminator patch; {self.discriminator} has group",
        )
        whole = self.disc_start == int(self.disc_start)
        require(
            whole or self.disc_start < 1,
            f"<loss.disc_start> is {self.disc_start:g}; it must be a whole number of updates, or a part of the run "
            f"below 1",
        )
        if whole:
            self.disc_start = int(self.disc_start)

    def disc_start_update(self, max_train_steps: int) -> int:
        """Return the number of updates before the discriminator is trained, of so many."""
        if self.disc_start < 1:
            return round(self.disc_start * max_train_steps)
        return int(self.disc_start)
