"""The state of a run: networks, optimizers and everything else that changes while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from diffusers import EMAModel
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ldm_vae.config.data import check_resolution
from ldm_vae.config.run import Config
from ldm_vae.config.train import TrainConfig
from ldm_vae.losses.objective import Objective
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.checkpointing import checkpoint_activations
from ldm_vae.models.discriminators.discriminator import Discriminator
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.kernels.fused import use_kernels
from ldm_vae.models.precision import use_bf16
from ldm_vae.models.trainable import TrainableAutoencoder
from ldm_vae.training.discriminator import build_discriminator
from ldm_vae.training.interventions import build_interventions, pair_rules
from ldm_vae.training.meter import ADVERSARIAL_FIGURES, Meter
from ldm_vae.training.optimizers import build_optimizer, build_schedule
from ldm_vae.training.teaching import open_teacher
from ldm_vae.training.terms import build_objective

Network = TypeVar("Network", bound=nn.Module)


MOST_GRAPHS = 128
"""The most graphs that a run's networks are compiled to: one or two for each network, image size and gradient mode."""


@dataclass(kw_only=True)
class TrainedNetwork(Generic[Network]):
    """A network with its optimizer and schedule."""

    module: Network
    wrapped: nn.Module
    """The network inside DDP. Every forward that a backward follows goes through it."""
    optimizer: AdamW
    lr_scheduler: LambdaLR

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def gradient_norm(self) -> Tensor:
        """The norm of the gradients that micro-batches left."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients, foreach=True)

    def optimize(self, norm: Tensor, *, max_grad_norm: float, finite: Tensor) -> None:
        """Clip the gradient and make the optimizer's step if the training step is finite; otherwise change nothing.

        `grad_scale` and `found_inf` are how torch's GradScaler talks to a fused optimizer: the kernel divides the
        gradients by `grad_scale`, and does nothing where `found_inf` is 1. Both are tensors on the device, so the host
        needn't wait for their values.

        Args:
            norm: The gradient's norm.
            max_grad_norm: Largest norm; 0: nothing is clipped.
            finite: [], bool, whether the training step is finite.
        """
        optimizer = self.optimizer
        if max_grad_norm > 0:
            optimizer.grad_scale = ((norm + 1e-6) / max_grad_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        self.lr_scheduler.step()


class AveragedWeights(EMAModel):
    """Exponential moving average as in diffusers, but updated in one pass over memory and without a copy of all."""

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move the average by 1 - decay towards the parameters, given in the order that it was made with."""
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        torch._foreach_lerp_(self.shadow_params, list(parameters), 1 - self.cur_decay_value)


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """The best validation so far."""

    step: int
    """Number of updates before it."""
    metric: str
    """Figure by which it is the best: psnr, ssim or perceptual."""
    value: float
    """The figure's value."""


@dataclass(kw_only=True)
class TrainingState:
    """What a checkpoint holds."""

    generator: TrainedNetwork[TrainableAutoencoder]
    discriminator: TrainedNetwork[Discriminator] | None
    objective: Objective
    ema: EMAModel | None
    lam: Tensor  # [], the adaptive weight that the next step uses
    meter: Meter
    step: int = 0
    first_step: int = 0  # updates before the run's stage
    best: BestValidation | None = None
    posterior: Tensor | None = None  # [4, c], moments of the update's global batch, where it measured them

    @property
    def stage_step(self) -> int:
        """Updates made in the run's stage."""
        return self.step - self.first_step

    @property
    def networks(self) -> list[TrainedNetwork[Any]]:
        """The generator, and the discriminator if there is one."""
        return [network for network in (self.generator, self.discriminator) if network is not None]

    @property
    def trainable(self) -> TrainableAutoencoder:
        """The module behind the generator."""
        return self.generator.module

    @property
    def family(self) -> Family:
        """The autoencoder, with the last weights."""
        return self.trainable.family

    @property
    def autoencoder(self) -> DiffusersModel:
        """The diffusers model, with the last weights."""
        return self.family.model

    @property
    def frozen_networks(self) -> list[nn.Module]:
        """The networks that terms and the discriminator look through."""
        of_discriminator = None if self.discriminator is None else self.discriminator.module.frozen
        return [*self.objective.frozen_networks.values(), *([] if of_discriminator is None else [of_discriminator])]

    @property
    def ema_parameters(self) -> list[nn.Parameter]:
        """The parameters that the EMA averages, in the order of its own."""
        return [parameter for parameter in self.autoencoder.parameters() if parameter.requires_grad]

    def compile_networks(self) -> None:
        """Compile all networks, in place; names and weights stay as they are."""
        # torch counts graphs of all compiled modules as one function's, and runs those beyond its limit uncompiled.
        torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        self.autoencoder.to_json_string()  # adds to its config, on which what is compiled depends, at the first save
        self.trainable.compile_networks()
        if self.discriminator is not None:
            self.discriminator.module.compile_networks()
        for network in self.objective.frozen_networks.values():
            network.compile()

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rates of the last update, by their names in metrics.jsonl."""
        rates = {"lr": float(self.generator.lr_scheduler.get_last_lr()[0])}
        if self.discriminator is not None:
            rates["disc_lr"] = float(self.discriminator.lr_scheduler.get_last_lr()[0])
        return rates


def build_state(config: Config, *, accelerator: Accelerator) -> TrainingState:
    """Build networks, optimizers and schedules, on the accelerator's device, wrapped for its processes."""
    use_kernels(accelerator.device)
    family = build_autoencoder(config.model)
    check_resolution(config.data, spatial_factor=family.image_multiple)
    objective = build_objective(
        config,
        bottleneck=family.bottleneck,
        device=accelerator.device,
        latent_channels=family.latent_channels,
        spatial_factor=family.spatial_factor,
    )
    trainable = _trainable(config, family, objective, device=accelerator.device)
    checkpoint_activations(family, config.train.gradient_checkpointing)
    generator = _trained(
        trainable,
        config.train,
        optimizer_name=config.train.optimizer,
        inner_weights=family.inner_weights,
        learning_rate=config.train.learning_rate,
        num_steps=config.train.max_train_steps,
        accelerator=accelerator,
    )
    discriminator = _trained_discriminator(config, accelerator=accelerator)
    state = TrainingState(
        generator=generator,
        discriminator=discriminator,
        objective=objective,
        ema=None,
        lam=torch.zeros((), device=accelerator.device),
        meter=build_meter(
            objective,
            of_bottleneck=family.bottleneck.figures,
            adversarial=discriminator is not None,
            device=accelerator.device,
        ),
    )
    if config.train.ema_decay > 0:
        state.ema = AveragedWeights(state.ema_parameters, decay=config.train.ema_decay)
    return state


def _trainable(config: Config, family: Family, objective: Objective, *, device: torch.device) -> TrainableAutoencoder:
    """Return the module that DDP wraps: the autoencoder with whatever else the generator's loss trains."""
    codebook = family.bottleneck.begin_training(from_scratch=config.model.pretrained is None)
    return TrainableAutoencoder(
        family,
        decoder_only=config.model.decoder_only,
        learn_logvar=objective.trains_logvar,
        logvar_init=config.loss.logvar_init,
        term_networks=objective.trained_networks | ({} if codebook is None else {"codebook": codebook}),
        interventions=build_interventions(config, family=family),
        pair=pair_rules(config.loss),
        teacher=open_teacher(config.model, student=family, device=device),
        teach_encoder=config.model.teach_encoder,
        aligned=objective.alignment is not None,
        target_channels=config.data.target_channels,
    )


def _trained_discriminator(config: Config, *, accelerator: Accelerator) -> TrainedNetwork[Discriminator] | None:
    """Return the discriminator with its optimizer and schedule; None where the loss has none."""
    train = config.train
    if config.loss.disc_weight == 0:
        return None
    disc_start = config.loss.disc_start_update(train.max_train_steps)
    return _trained(
        build_discriminator(config, device=accelerator.device),
        train,
        optimizer_name="adamw",
        learning_rate=train.disc_learning_rate or train.learning_rate,
        num_steps=max(1, train.max_train_steps - disc_start),  # the schedule counts D's own updates
        accelerator=accelerator,
    )


def build_meter(
    objective: Objective, *, of_bottleneck: Sequence[str] = (), adversarial: bool, device: torch.device
) -> Meter:
    """Build the sums of the figures that a step measures, with the discriminator's where there is one."""
    names = [*objective.names, "loss", "grad_norm"]
    if objective.trains_logvar:
        names.append("likelihood_logvar")
    names += of_bottleneck
    if adversarial:
        names += [*ADVERSARIAL_FIGURES, *objective.regularisers]
    if objective.alignment is not None:
        names.append("lam_alignment")
    checked = [*objective.names, *(["g", "d", *objective.regularisers] if adversarial else []), "gradient"]
    return Meter(names, checked=checked, device=device)


def _trained(
    module: Network,
    train: TrainConfig,
    *,
    optimizer_name: str,
    inner_weights: Sequence[nn.Parameter] = (),
    learning_rate: float,
    num_steps: int,
    accelerator: Accelerator,
) -> TrainedNetwork[Network]:
    module.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = use_bf16(train.mixed_precision, device=accelerator.device)
    optimizer = build_optimizer(
        module, train, name=optimizer_name, learning_rate=learning_rate, bf16=bf16, inner_weights=inner_weights
    )
    lr_scheduler = build_schedule(optimizer, train, num_steps=num_steps)
    return TrainedNetwork(
        module=module, wrapped=accelerator.prepare_model(module), optimizer=optimizer, lr_scheduler=lr_scheduler
    )


def named_trained_parameters(network: TrainedNetwork[Any]) -> Iterable[tuple[str, nn.Parameter]]:
    """Return the trained parameters with their names, in the order of the optimizer."""
    return ((name, p) for name, p in network.module.named_parameters() if p.requires_grad)
