"""One update of generator and discriminator: every network is run forward once, and backward once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ldm_vae.config.loss import LossConfig
from ldm_vae.config.train import TrainConfig
from ldm_vae.images.training import TrainingBatch
from ldm_vae.losses.adversarial import ADAPTIVE_WEIGHT_MAX, discriminator_loss, generator_loss
from ldm_vae.models.autoencoder import spatial_factor
from ldm_vae.models.precision import autocast, use_bf16
from ldm_vae.training.meter import LOSS_TERMS
from ldm_vae.training.state import TrainedNetwork, TrainingState

AVERAGED = (*LOSS_TERMS, "loss", "logits_real", "logits_fake", "lam")


@dataclass(kw_only=True)
class MicroBatch:
    """What a micro-batch leaves behind, besides gradients in the networks."""

    figures: Tensor  # [len(AVERAGED)]
    grad_reconstruction: Tensor  # gradients at the last layer's weight
    grad_generator: Tensor


class TrainingStep:
    """Runs updates on a state.

    The graph is cut at the reconstruction y. The reconstruction loss and the adversarial loss are each differentiated
    down to y; lam is measured from their weight-gradients at the last layer, which need no more than y's gradient and
    the layer's input; then one backward takes grad_rec + lam · grad_g through decoder and encoder.
    """

    def __init__(self, state: TrainingState, *, loss: LossConfig, train: TrainConfig, accelerator: Accelerator):
        self.state = state
        self.loss = loss
        self.train = train
        self.accelerator = accelerator
        self.bf16 = use_bf16(train.mixed_precision, device=accelerator.device)
        self.micro_batch_size, self.accumulation = train.accumulation(num_processes=accelerator.num_processes)

    def __call__(self, batches: Iterator[TrainingBatch]) -> None:
        """Take the update's micro-batches from `batches`, and make it."""
        state = self.state
        adversarial = self.is_adversarial
        micro_batches = []
        for index in range(self.accumulation):
            batch = next(batches)
            with self._accumulating(last=index == self.accumulation - 1):
                micro_batches.append(self.micro_batch(batch, adversarial=adversarial))
        self._update(micro_batches, num_elements=batch.images[0].numel(), adversarial=adversarial)
        state.step += 1

    @property
    def is_adversarial(self) -> bool:
        """Whether the state's next update has a discriminator."""
        return self.state.discriminator is not None and self.state.step >= self.loss.disc_start

    def rehearse(self, *, resolution: int) -> None:
        """Run a whole step on grey images, GAN included, and discard it.

        DDP orders its buckets by the first backward, which changes the order of sums for every later one: fresh and
        resumed runs must both have it behind them. It also shows at the start, not at disc_start, what does not
        compile or fit.
        """
        batch = self.grey_batch(self.micro_batch_size, resolution=resolution)
        self.micro_batch(batch, adversarial=self.state.discriminator is not None)
        self.forget_gradients()

    def grey_batch(self, size: int, *, resolution: int) -> TrainingBatch:
        """So many grey images, without noise."""
        model = self.state.autoencoder
        images = torch.zeros(size, model.config.in_channels, resolution, resolution)
        side = resolution // spatial_factor(model)
        noise = torch.zeros(size, model.config.latent_channels, side, side)
        return TrainingBatch(images=images, noise=noise, skipped=[])

    def forget_gradients(self) -> None:
        """Discard what micro-batches left in the networks."""
        for network in self.state.networks:
            network.optimizer.zero_grad()

    def micro_batch(self, batch: TrainingBatch, *, adversarial: bool) -> MicroBatch:
        """Forward and backward of one micro-batch; gradients are added to the networks'."""
        state, objective = self.state, self.state.objective
        device = self.accelerator.device
        # the layout changes on the device: on the way to it, the copy would leave page-locked memory and wait
        images = batch.images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        noise = batch.noise.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)

        # Forward, once
        with autocast(device, enabled=self.bf16):
            output = state.generator.wrapped(images, noise)

        # Reconstruction loss, down to y
        y = output.reconstruction.detach().requires_grad_()
        log_variance = output.log_variance.detach().requires_grad_()
        with autocast(device, enabled=self.bf16):
            reconstruction = objective.reconstruction_loss(images, y, log_variance)
        grad_y, grad_log_variance = torch.autograd.grad(
            reconstruction.total, [y, log_variance], allow_unused=True, materialize_grads=True
        )

        # Adversarial loss, down to y, and the gradients at W
        zero = torch.zeros((), device=device)
        figures = {"g": zero, "d": zero, "logits_real": zero, "logits_fake": zero, "lam": zero}
        weight = state.trainable.last_layer.weight
        grad_w_reconstruction = grad_w_generator = torch.zeros_like(weight)
        if adversarial:
            assert state.discriminator is not None
            with autocast(device, enabled=self.bf16):
                figures["g"] = generator_loss(state.discriminator.module.logits(y))
            (grad_g,) = torch.autograd.grad(figures["g"], y)
            grad_w_reconstruction = self._weight_gradient(output.features, grad_y)
            grad_w_generator = self._weight_gradient(output.features, grad_g)
            figures["lam"] = self._lam(grad_w_reconstruction, grad_w_generator, num_elements=images[0].numel())
            grad_y = grad_y + figures["lam"] * grad_g

        # Backward through decoder and encoder, once
        kl = objective.kl_loss(output.mean, output.logvar, num_elements=images[0].numel())
        roots = [
            (output.reconstruction, grad_y / self.accumulation),
            (output.log_variance, grad_log_variance / self.accumulation),
            (objective.kl_weight * kl, torch.full_like(kl, 1 / self.accumulation)),
        ]
        outputs, gradients = zip(*((root, grad) for root, grad in roots if root.requires_grad), strict=True)
        torch.autograd.backward(outputs, gradients)

        # Discriminator, on the same y
        if adversarial:
            assert state.discriminator is not None
            with autocast(device, enabled=self.bf16):
                logits_real, logits_fake = state.discriminator.wrapped(images, y.detach())
            figures["d"] = discriminator_loss(logits_real, logits_fake, kind=objective.disc_loss)
            (figures["d"] / self.accumulation).backward()
            figures |= {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}

        figures |= {"rec": reconstruction.pixel, "perceptual": reconstruction.perceptual, "kl": kl}
        figures["loss"] = reconstruction.total + objective.kl_weight * kl
        return MicroBatch(
            figures=torch.stack([figures[name].detach().float() for name in AVERAGED]),
            grad_reconstruction=grad_w_reconstruction,
            grad_generator=grad_w_generator,
        )

    def _lam(self, grad_reconstruction: Tensor, grad_generator: Tensor, *, num_elements: int) -> Tensor:
        """The weight of this step's g, the same on every process."""
        state = self.state
        if state.step < self.loss.disc_start + self.loss.disc_warmup_steps:
            return torch.zeros_like(state.lam)
        if self.loss.adaptive_weight == "off":
            return torch.full_like(state.lam, self.loss.disc_weight)
        if self.loss.adaptive_weight == "lagged":
            return state.lam
        gradients = self.accelerator.reduce(torch.stack([grad_reconstruction, grad_generator]), reduction="mean")
        return state.objective.generator_weight(gradients[0], gradients[1], num_elements=num_elements)

    def _update(self, micro_batches: list[MicroBatch], *, num_elements: int, adversarial: bool) -> None:
        """Average over micro-batches and processes, decide on the device whether the step is finite, and update."""
        state = self.state
        weight = state.trainable.last_layer.weight
        flat = torch.cat(
            [
                torch.stack([m.figures for m in micro_batches]).mean(0),
                torch.stack([m.grad_reconstruction for m in micro_batches]).mean(0).flatten(),
                torch.stack([m.grad_generator for m in micro_batches]).mean(0).flatten(),
            ]
        )
        figures, grad_reconstruction, grad_generator = self.accelerator.reduce(flat, reduction="mean").split(
            [len(AVERAGED), weight.numel(), weight.numel()]
        )
        networks = self.state.networks[: 2 if adversarial else 1]
        norms = [_gradient_norm(network) for network in networks]
        measured = state.objective.generator_weight(grad_reconstruction, grad_generator, num_elements=num_elements)

        terms = dict(zip(AVERAGED, figures, strict=True))
        checked = [terms[name] for name in LOSS_TERMS] + [sum(norms)]
        finite = state.meter.update(
            {
                **terms,
                "log_variance": state.trainable.log_variance.detach(),
                "grad_norm": norms[0],
                "disc_grad_norm": norms[-1] if adversarial else torch.zeros_like(norms[0]),
                "adversarial": torch.full_like(state.lam, float(adversarial)),
                "lam_clamped": measured >= 0.999 * self.loss.disc_weight * ADAPTIVE_WEIGHT_MAX / num_elements,
            },
            finite_terms=torch.stack([torch.isfinite(term) for term in checked]),
        )
        if adversarial:
            state.lam = torch.where(finite, measured, state.lam)
        for network, norm in zip(networks, norms, strict=True):
            self._optimize(network, norm, finite=finite)
        if state.ema is not None:
            state.ema.step(state.ema_parameters)

    def _optimize(self, network: TrainedNetwork[Any], norm: Tensor, *, finite: Tensor) -> None:
        """Clip and step, or leave weights and moments as they are; without asking the device which."""
        optimizer = network.optimizer
        if self.train.max_grad_norm > 0:
            optimizer.grad_scale = ((norm + 1e-6) / self.train.max_grad_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad()
        network.lr_scheduler.step()

    def _weight_gradient(self, features: Tensor, grad_output: Tensor) -> Tensor:
        """Gradient at the last layer's weight of a loss whose gradient at y is `grad_output`."""
        layer = self.state.trainable.last_layer
        gradient = conv2d_weight(
            features, layer.weight.shape, grad_output.to(features.dtype), stride=1, padding=layer.padding
        )
        return gradient.float()

    @contextlib.contextmanager
    def _accumulating(self, *, last: bool) -> Iterator[None]:
        """Gradients are averaged over processes once, with the last micro-batch."""
        with contextlib.ExitStack() as stack:
            if not last:
                for network in self.state.networks:
                    stack.enter_context(self.accelerator.no_sync(network.wrapped))
            yield


def _gradient_norm(network: TrainedNetwork[Any]) -> Tensor:
    gradients = [parameter.grad for parameter in network.parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients, foreach=True)
