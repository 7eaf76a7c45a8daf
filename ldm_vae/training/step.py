"""One update of generator and discriminator: every network is run forward once, and backward once.

The notation is that of `losses/objective.py`; docs/objective.md has the formulas with their sources.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor

from ldm_vae.config.loss import LossConfig
from ldm_vae.config.train import TrainConfig
from ldm_vae.images.draws import DrawRules
from ldm_vae.images.training import TrainingBatch, grey_batch
from ldm_vae.images.transforms import Size
from ldm_vae.losses.adversarial import ADAPTIVE_WEIGHT_MAX
from ldm_vae.losses.objective import Loss
from ldm_vae.losses.rate import channel_kl, posterior_moments
from ldm_vae.models.bottlenecks.bottleneck import Latent
from ldm_vae.models.precision import autocast, use_bf16
from ldm_vae.training.adversarial import AdversarialPart
from ldm_vae.training.alignment import align
from ldm_vae.training.codes import of_global_batch
from ldm_vae.training.meter import ADVERSARIAL_FIGURES
from ldm_vae.training.results import MicroBatchResult, average
from ldm_vae.training.state import TrainingState


class TrainingStep:
    """Runs updates on a state.

    The graph is cut at the reconstruction y. The terms on images and the adversarial loss g are each differentiated
    down to y; lam is measured from their weight-gradients at the last layer, which need no more than y's gradient and
    the layer's input; then one backward takes grad_y rec + lam · grad_y g through decoder and encoder. `micro_batch`
    is this mathematics; `_update` is what is decided once for the global batch.
    """

    def __init__(
        self, state: TrainingState, *, loss_config: LossConfig, train_config: TrainConfig, accelerator: Accelerator
    ):
        self.state = state
        self.loss_config = loss_config
        self.train_config = train_config
        self.accelerator = accelerator
        self.bf16 = use_bf16(train_config.mixed_precision, device=accelerator.device)
        self.micro_batch_size, self.accumulation = train_config.accumulation(num_processes=accelerator.num_processes)
        self.disc_start = loss_config.disc_start_update(train_config.max_train_steps)
        self.rules = DrawRules.of(
            loss_config, seed=0, batch_size=train_config.batch_size, decoder_only=state.trainable.decoder_only
        )
        # The order is that of the one reduction over processes, whose sums depend on it from three processes on.
        self.averaged = (*state.objective.names, "g", "d", "loss", "logits_real", "logits_fake", "lam")
        self.averaged += state.objective.regularisers
        self.averaged += () if state.objective.alignment is None else ("lam_alignment",)

    def __call__(self, batches: Iterator[TrainingBatch]) -> None:
        """Make an update from the next micro-batches of `batches`."""
        adversarial = self.is_adversarial
        penalised = adversarial and self._penalises and self.state.step % self.loss_config.disc_r1_every == 0
        results = []
        for index in range(self.accumulation):
            with self._accumulating(last=index == self.accumulation - 1):
                results.append(self.micro_batch(next(batches), adversarial=adversarial, penalised=penalised))
        self._update(results, adversarial=adversarial)
        self.state.step += 1

    def micro_batch(self, batch: TrainingBatch, *, adversarial: bool, penalised: bool = False) -> MicroBatchResult:
        """Run forward and backward of one micro-batch, and add its gradients to those in the networks.

        Args:
            batch: The images, with all that was drawn for them.
            adversarial: Whether D takes part.
            penalised: Whether D's loss has its gradient penalty.
        """
        state, objective, device = self.state, self.state.objective, self.accelerator.device
        batch = batch.to(device)

        # Encode, sample and decode, once: y is to resemble x.
        with autocast(device, enabled=self.bf16):
            output = state.generator.wrapped(batch.images, batch.noise, batch.draws, batch.stored)
        x = output.images
        y = output.reconstruction.detach().requires_grad_()
        num_elements = x[0].numel()

        # Terms on images, down to y and s.
        image_loss, grad_y, grad_s = self._image_terms(x, y, output.likelihood_logvar.detach())
        figures = dict(image_loss.figures)

        # Adversarial loss g, down to y, and lam from the gradients of both at W.
        grad_w_reconstruction = grad_w_generator = torch.zeros_like(state.trainable.last_layer.weight)
        adversary = None
        if adversarial:
            assert state.discriminator is not None
            adversary = AdversarialPart(state.discriminator, y, bf16=self.bf16)
            grad_w_reconstruction = state.family.last_layer_gradient(output.features, grad_y)
            grad_w_generator = state.family.last_layer_gradient(output.features, adversary.grad_y)
            lam = self._lam(grad_w_reconstruction, grad_w_generator, num_elements=num_elements)
            grad_y = grad_y + lam * adversary.grad_y
            figures["lam"] = lam

        # Backward through decoder and encoder, once: from y, from s, and from the terms on latents.
        targets = state.trainable.targets(batch.images)
        latent_loss = objective.latent_loss(output, targets, step=state.stage_step)
        aligned = align(objective, output, targets, step=state.stage_step, accumulation=self.accumulation)
        backward(
            (output.reconstruction, grad_y / self.accumulation),
            (output.likelihood_logvar, grad_s / self.accumulation),
            (latent_loss.total, torch.full_like(latent_loss.total, 1 / self.accumulation)),
            *([] if aligned is None else aligned.roots),
        )
        figures |= latent_loss.figures | {"loss": image_loss.total + latent_loss.total}
        figures |= {} if aligned is None else aligned.figures

        # Discriminator, on the same x and y.
        if adversary is not None:
            adversary.train_discriminator(x, objective, penalised=penalised, accumulation=self.accumulation)
            figures |= adversary.figures

        return MicroBatchResult(
            figures=self._in_order(figures),
            measured=frozenset(figures),
            grad_reconstruction=grad_w_reconstruction,
            grad_generator=grad_w_generator,
            num_elements=num_elements,
            posterior=self._posterior_moments(output.latent),
            codes=output.latent.statistics,
            grad_encoder=None if aligned is None else aligned.gradients(state.family, batch.noise),
        )

    def _image_terms(self, x: Tensor, y: Tensor, s: Tensor) -> tuple[Loss, Tensor, Tensor]:
        """Return the terms on images with their gradients at y and at s, which is zero where s isn't learnt."""
        s.requires_grad_()
        with autocast(y.device, enabled=self.bf16):
            loss = self.state.objective.image_loss(x, y, likelihood_logvar=s, step=self.state.stage_step)
        grad_y, grad_s = torch.autograd.grad(loss.total, [y, s], allow_unused=True, materialize_grads=True)
        return loss, grad_y, grad_s

    def _in_order(self, figures: dict[str, Tensor]) -> Tensor:
        """Return a micro-batch's figures in the order of `averaged`, 0 for those that it doesn't have."""
        zero = torch.zeros((), device=self.accelerator.device)
        return torch.stack([figures.get(name, zero).detach().float() for name in self.averaged])

    def _lam(self, grad_reconstruction: Tensor, grad_generator: Tensor, *, num_elements: int) -> Tensor:
        """Return the weight of this step's g, the same on every process."""
        state, config = self.state, self.loss_config
        if state.stage_step < self.disc_start + config.disc_warmup_steps:
            return torch.zeros_like(state.lam)
        if config.adaptive_weight == "off":
            return torch.full_like(state.lam, config.disc_weight)
        if config.adaptive_weight == "lagged":
            return state.lam
        gradients = self.accelerator.reduce(torch.stack([grad_reconstruction, grad_generator]), reduction="mean")
        return state.objective.generator_weight(gradients[0], gradients[1], num_elements=num_elements)

    def _posterior_moments(self, latent: Latent) -> Tensor | None:
        """Return the micro-batch's moments, in updates that are reported or that the rate goes by."""
        state, train, rate = self.state, self.train_config, self.state.objective.rate
        reported = (state.step + 1) % train.log_steps == 0 or state.stage_step + 1 == train.max_train_steps
        if latent.posterior_logvar is None or not (reported or rate is not None):
            return None
        return posterior_moments(latent.mean.detach(), latent.posterior_logvar.detach())

    def _update(self, results: list[MicroBatchResult], *, adversarial: bool) -> None:
        """Update weights, average and lam if the step is finite. The device decides, and the host doesn't wait."""
        state = self.state
        num_elements = results[0].num_elements
        networks = state.networks if adversarial else [state.generator]

        # Average figures, and gradients at W and V, over micro-batches and processes, in one reduction.
        means, grad_reconstruction, grad_generator, grad_encoder = average(results, accelerator=self.accelerator)

        # Measure lam for the next step, and the norms of what DDP has averaged.
        next_lam = state.objective.generator_weight(grad_reconstruction, grad_generator, num_elements=num_elements)
        norms = [network.gradient_norm for network in networks]

        # Add up which codes the global batch took, where the bottleneck learns from them.
        bottleneck = state.family.bottleneck
        taken = [result.codes for result in results if result.codes is not None]
        codes = of_global_batch(taken, accelerator=self.accelerator)

        # Decide whether the step is finite, and add its figures to the sums.
        figures = dict(zip(self.averaged, means, strict=True)) | {
            "likelihood_logvar": state.trainable.likelihood_logvar.detach(),
            "grad_norm": norms[0],
            "disc_grad_norm": norms[-1],
        }
        adaptive = self.loss_config.adaptive_weight != "off"
        clamp = self.loss_config.disc_weight * ADAPTIVE_WEIGHT_MAX / num_elements if adaptive else math.inf
        figures["lam_clamped"] = figures["lam"] >= 0.999 * clamp
        checked = {**figures, "gradient": sum(norms)}
        if codes is not None:
            figures |= bottleneck.measure(codes)
        unmeasured = {*self.averaged} - results[0].measured | (set() if adversarial else {*ADVERSARIAL_FIGURES})
        finite = state.meter.update(
            {name: figures[name] for name in state.meter.names if name in figures and name not in unmeasured},
            finite=torch.stack([torch.isfinite(checked[name]) for name in state.meter.checked]),
        )

        # Update lam and weights, then their average.
        if adversarial:
            state.lam = torch.where(finite, next_lam, state.lam)
            if state.objective.lecam is not None:
                state.objective.lecam.update(figures["logits_real"], figures["logits_fake"], finite=finite)
        if state.objective.balance is not None and grad_encoder is not None:
            state.objective.balance.update(*grad_encoder, num_elements=num_elements, finite=finite)
        for network, norm in zip(networks, norms, strict=True):
            network.optimize(norm, max_grad_norm=self.train_config.max_grad_norm, finite=finite)
        if codes is not None:
            bottleneck.learn(codes, finite=finite)
        if state.ema is not None:
            state.ema.step(state.ema_parameters)
        self._update_posterior(results, finite=finite)

    def _update_posterior(self, results: list[MicroBatchResult], *, finite: Tensor) -> None:
        """Average the posterior's moments over micro-batches and processes, for the report and the next update."""
        state = self.state
        moments = [result.posterior for result in results if result.posterior is not None]
        state.posterior = None
        if moments:
            state.posterior = self.accelerator.reduce(torch.stack(moments).mean(0), reduction="mean")
            if state.objective.rate is not None:
                state.objective.rate.update(channel_kl(state.posterior), step=state.stage_step + 1, finite=finite)

    @contextlib.contextmanager
    def _accumulating(self, *, last: bool) -> Iterator[None]:
        """Have DDP average gradients over processes once, with the last micro-batch."""
        with contextlib.ExitStack() as stack:
            if not last:
                for network in self.state.networks:
                    stack.enter_context(self.accelerator.no_sync(network.wrapped))
            yield

    @property
    def is_adversarial(self) -> bool:
        """Whether the state's next update has a discriminator."""
        return self.state.discriminator is not None and self.state.stage_step >= self.disc_start

    @property
    def _penalises(self) -> bool:
        """Whether some updates have a gradient penalty."""
        return self.state.discriminator is not None and self.state.objective.r1_weight > 0

    def rehearse(self, *, resolution: int | Size) -> None:
        """Run a whole step on grey images, GAN included, and discard it.

        DDP orders its buckets by the first backward, which changes the order of sums in every later one: fresh and
        resumed runs must both have it behind them. A rehearsal also shows at the start of the run, instead of at
        disc_start, what doesn't compile or fit. Where networks are compiled, it runs one step for each scale of a
        transform, with a gradient penalty and without.
        """
        batch = self.grey_batch(self.micro_batch_size, resolution=resolution)
        adversarial = self.state.discriminator is not None
        penalties = [True, False] if self._penalises else [False]
        updates = [(draws, penalised) for penalised in penalties for draws in self.rules.rehearsed()]
        compiled = self.train_config.compiles(self.accelerator.device.type)
        for draws, penalised in updates if compiled else updates[:1]:
            batch.draws.update(draws)
            self.micro_batch(batch, adversarial=adversarial, penalised=penalised)
            self.forget_gradients()

    def largest_micro_batch(self, batch: TrainingBatch) -> MicroBatchResult:
        """Run a micro-batch with whatever an update of the run may have, but for the batch's draws."""
        return self.micro_batch(batch, adversarial=self.state.discriminator is not None, penalised=self._penalises)

    def grey_batch(self, size: int, *, resolution: int | Size) -> TrainingBatch:
        """Return `size` grey images, with zero for their posterior noise, and with all that an update may draw."""
        family = self.state.family
        width, height = (resolution, resolution) if isinstance(resolution, int) else resolution
        latent_shape = (family.latent_channels, height // family.spatial_factor, width // family.spatial_factor)
        return grey_batch(size, shape=(family.in_channels, height, width), latent_shape=latent_shape, rules=self.rules)

    def forget_gradients(self) -> None:
        """Discard the gradients that micro-batches left in the networks."""
        for network in self.state.networks:
            network.optimizer.zero_grad()


def backward(*roots: tuple[Tensor, Tensor]) -> None:
    """Run one backward from tensors, each with the gradient that comes to it; those without a graph are left out."""
    tensors, gradients = zip(*((tensor, grad) for tensor, grad in roots if tensor.requires_grad), strict=True)
    torch.autograd.backward(tensors, gradients)
