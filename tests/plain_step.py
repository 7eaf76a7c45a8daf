"""The training step once more, as the papers have it: diffusers' model, torch's AdamW, autograd for each gradient.

Nothing of the package is used here but the numbers of its configs. What the package does in one forward and one
backward is done here in the plainest way, a gradient at a time, on the whole batch at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn


class SmoothDistance(nn.Module):
    """A frozen random network's distance without kinks, which stands for a perceptual one: two pictures to [B]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 16, 3, stride=2)])
        self.requires_grad_(False)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the mean squared distance of features, summed over layers."""
        distance = torch.zeros(len(images))
        for layer in self.layers:
            images, reconstruction = F.silu(layer(images)), F.silu(layer(reconstruction))
            distance = distance + (images - reconstruction).square().mean(dim=(1, 2, 3))
        return distance


def smooth_patch_gan(channels: int, *, in_channels: int = 3) -> nn.Sequential:
    """Return a PatchGAN of two strided layers, with group norm, and with SiLU for its kinks."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
        nn.GroupNorm(2 * channels, 2 * channels),
        nn.SiLU(),
        nn.Conv2d(2 * channels, 4 * channels, 4, stride=1, padding=1, bias=False),
        nn.GroupNorm(min(32, 4 * channels), 4 * channels),
        nn.SiLU(),
        nn.Conv2d(4 * channels, 1, 4, padding=1),
    )


class PlainRun:
    """A run of the plain step.

    Args:
        model: The autoencoder, with its first weights.
        discriminator: The discriminator, with its first weights.
        distance: The perceptual distance, None for none.
        config: The numbers: those of the run that this one is compared with.
    """

    def __init__(self, model: AutoencoderKL, discriminator: nn.Module, distance: nn.Module | None, config: Any):
        self.model, self.discriminator, self.distance = model, discriminator, distance
        self.loss, self.train = config.loss, config.train
        if config.model.decoder_only:
            for frozen in (model.encoder, model.quant_conv):
                frozen.requires_grad_(False)
        learns = self.loss.learn_logvar or self.loss.likelihood != "none"
        self.logvar = torch.tensor(float(self.loss.logvar_init), requires_grad=learns)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.trained]
        self.parameters = [*self.trained, *([self.logvar] if learns else [])]
        self.optimizer = self._adamw(self.parameters)
        self.disc_optimizer = self._adamw(list(discriminator.parameters()))
        self.lam = 0.0  # measured in the update before
        self.step = 0
        self.anchors: tuple[float, ...] | None = None  # mean logits of images and reconstructions
        self.measured: list[float] = []

    def _adamw(self, parameters: list[Tensor]) -> torch.optim.AdamW:
        train = self.train
        return torch.optim.AdamW(
            parameters,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_epsilon,
            weight_decay=train.weight_decay,
            foreach=False,
        )

    def update(self, images: Tensor, noise: Tensor) -> None:
        """Make one update on the images of a step, [B, C, H, W] in [-1, 1], with their posterior noise."""
        loss, train, num_elements = self.loss, self.train, images[0].numel()

        # rec + w_kl·kl, and rec / exp(s) + s where s is learnt; or a likelihood, which has s in it
        posterior = self.model.encode(images).latent_dist
        y = self.model.decode(posterior.mean + posterior.std * noise).sample
        if loss.likelihood != "none":
            rec = self._likelihood(images, y)
        else:
            rec = (images - y).abs().mean() if loss.reconstruction == "l1" else (images - y).square().mean()
        if self.distance is not None:
            rec = rec + loss.perceptual_weight * self.distance(images, y).mean()
        if loss.learn_logvar:
            rec = rec / self.logvar.exp() + self.logvar
        total = rec + loss.kl_weight * posterior.kl().mean() / num_elements

        # + lam·g
        since_start = self.step - loss.disc_start
        if since_start >= 0:
            g = -self.discriminator(y).mean()
            weight = self.model.decoder.conv_out.weight
            (of_rec,) = torch.autograd.grad(rec, weight, retain_graph=True)
            (of_g,) = torch.autograd.grad(g, weight, retain_graph=True)
            balance = min(of_rec.norm().item() / (of_g.norm().item() + 1e-4), 1e4 / num_elements)
            measured = loss.disc_weight * balance
            lam = {"lagged": self.lam, "same_step": measured, "off": loss.disc_weight}[loss.adaptive_weight]
            if since_start >= loss.disc_warmup_steps:
                total = total + lam * g
            self.lam = measured
            self.measured.append(balance * num_elements)
        gradients = torch.autograd.grad(total, self.parameters)

        # d
        disc_gradients = None
        if since_start >= 0:
            real, fake = self.discriminator(images), self.discriminator(y.detach())
            if loss.disc_loss == "hinge":
                d = (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()) / 2
            else:
                d = (-F.logsigmoid(real).mean() - F.logsigmoid(-fake).mean()) / 2
            d = d + self._lecam(real, fake) + self._r1(images)
            disc_gradients = torch.autograd.grad(d, list(self.discriminator.parameters()))

        rate = train.learning_rate * self._schedule(self.step, train.max_train_steps)
        self._optimize(self.optimizer, gradients, rate)
        if disc_gradients is not None:
            rate = (train.disc_learning_rate or train.learning_rate) * self._schedule(
                since_start, train.max_train_steps - loss.disc_start
            )
            self._optimize(self.disc_optimizer, disc_gradients, rate)

        # The average's decay rises with the number of updates n: 0, 2/11, 3/12, … up to ema_decay.
        self.step += 1
        decay = 0.0 if self.step == 1 else min(self.step / (9 + self.step), train.ema_decay)
        for average, parameter in zip(self.average, self.trained, strict=True):
            average.copy_(decay * average + (1 - decay) * parameter.detach())

    def _likelihood(self, images: Tensor, y: Tensor) -> Tensor:
        """Nats a dimension of 256 levels: a normal density, in the middle of a level's noise, or a logistic mass."""
        images, y, logvar = images.double(), y.double(), self.logvar.double()
        if self.loss.likelihood == "gaussian":
            variance = logvar.exp()
            density = torch.distributions.Normal(y, variance.sqrt()).log_prob(images).mean()
            return (math.log(127.5) - density + (2 / 255) ** 2 / 12 / (2 * variance)).float()
        scale = (3 * logvar.exp()).sqrt() / math.pi
        upper, lower = (torch.sigmoid((images + side / 255 - y) / scale) for side in (1, -1))
        upper, lower = upper.where(images < 0.999, 1.0), lower.where(images > -0.999, 0.0)
        return -(upper - lower).log().mean().float()

    def _lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """Distance of logits from the other ones' averages, which go by the updates before."""
        penalty = torch.zeros(())
        now = (real.mean().item(), fake.mean().item())
        if self.anchors is not None:
            penalty = torch.relu(real - self.anchors[1]) ** 2 + torch.relu(self.anchors[0] - fake) ** 2
        decay = self.loss.disc_lecam_decay
        self.anchors = tuple(decay * a + (1 - decay) * b for a, b in zip(self.anchors or now, now, strict=True))
        return self.loss.disc_lecam_weight * penalty.mean()

    def _r1(self, images: Tensor) -> Tensor:
        """Half the squared gradient of an image's logits over their number, in every n-th update n times."""
        if self.loss.disc_r1_weight == 0 or self.step % self.loss.disc_r1_every:
            return torch.zeros(())
        images = images.clone().requires_grad_()
        norms = []
        for index in range(len(images)):
            logits = self.discriminator(images)[index]
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            norms.append((gradient[index] ** 2).sum() / logits.numel())
        return self.loss.disc_r1_every * self.loss.disc_r1_weight / 2 * sum(norms) / len(norms)

    def _optimize(self, optimizer: torch.optim.AdamW, gradients: tuple[Tensor, ...], rate: float) -> None:
        parameters = optimizer.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        if self.train.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, self.train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()

    def _schedule(self, step: int, num_steps: int) -> float:
        """Part of the peak rate at an update, of `num_steps`."""
        train, warmup = self.train, self.train.lr_warmup_steps
        if train.lr_scheduler == "constant":
            return 1.0
        if step < warmup:
            return step / warmup
        if train.lr_scheduler == "constant_with_warmup":
            return 1.0
        if train.lr_scheduler == "constant_with_decay":
            return min(1.0, (num_steps - step) / round(train.lr_decay_fraction * num_steps))
        part = (step - warmup) / (num_steps - warmup)
        return {"linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2}[train.lr_scheduler]
