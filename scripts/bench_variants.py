"""The variants that bench_train.py measures: ours and the published step, on one synthetic batch again and again."""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lpips
import torch
from bench_gauges import Marks, size_of, tensors_of
from reference_step import ReferenceStep
from roofline import Floor
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from ldm_vae.config.parsing import parse
from ldm_vae.config.run import Config
from ldm_vae.losses.perceptual import PerceptualDistance
from ldm_vae.models.build import build_autoencoder
from ldm_vae.models.frozen.lpips import LpipsFeatures
from ldm_vae.training.perceptual import load_perceptual, perceptual_term
from ldm_vae.training.processes import join_processes
from ldm_vae.training.state import build_meter, build_state
from ldm_vae.training.step import TrainingStep


@dataclass(kw_only=True)
class Timing:
    """Some steps of one variant, in seconds a step."""

    seconds: float
    cpu_seconds: float  # of the whole process
    sections: dict[str, float]  # of the last step; empty for the published one


@dataclass(kw_only=True)
class Memory:
    """Bytes, at the most."""

    peak: int
    state: int  # weights, their gradients, optimizers and EMA

    @property
    def activations(self) -> int:
        """What the peak has above the state."""
        return self.peak - self.state


class Ours:
    """The real step on a real state."""

    def __init__(self, options: list[str], arguments: argparse.Namespace) -> None:
        config = make_config(
            arguments,
            mixed_precision="bf16" if "bf16" in options else "no",
            compile="off",
            gradient_checkpointing=next((option for option in options if option in ("blocks", "full")), "none"),
        )
        if arguments.device == "cpu":
            os.environ["ACCELERATE_USE_CPU"] = "true"
        accelerator = join_processes(config).accelerator
        self.device = accelerator.device
        self.state = build_state(config, accelerator=accelerator)
        perceptual = make_perceptual(arguments.perceptual)
        if isinstance(perceptual, lpips.LPIPS):
            perceptual = PerceptualDistance(LpipsFeatures(perceptual), heads=perceptual.lins)
        if perceptual is not None:
            perceptual.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            terms = [*self.state.objective.terms, perceptual_term(perceptual, weight=config.loss.perceptual_weight)]
            objective = self.state.objective = dataclasses.replace(self.state.objective, terms=terms)
            self.state.meter = build_meter(
                objective, adversarial=self.state.discriminator is not None, device=self.device
            )
        if "compile" in options:
            self.state.compile_networks()
        self.step = TrainingStep(
            self.state, loss_config=config.loss, train_config=config.train, accelerator=accelerator
        )
        self.batch = self.step.grey_batch(config.train.batch_size, resolution=config.data.resolution)
        self.batch.images.uniform_(-1, 1)
        self.batch.noise.normal_()
        if self.device.type == "cuda":
            self.batch = self.batch.pin_memory()
        self.marks = Marks(self.device)
        if "compile" not in options:  # a hook would break the compiled graph
            self._mark_sections()

    def __call__(self) -> None:
        self.marks.start("forward")
        self.step(iter([self.batch]))

    def networks(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
        """What is trained, and by which optimizer."""
        for network in self.state.networks:
            yield network.module, network.optimizer

    def averages(self) -> list[Tensor]:
        """The EMA's weights."""
        return [] if self.state.ema is None else self.state.ema.shadow_params

    def _mark_sections(self) -> None:
        """Let hooks say where the step has got to."""
        generator, discriminator = self.state.generator, self.state.discriminator
        assert discriminator is not None
        mark = self.marks.mark

        def after_forward(_module: nn.Module, _inputs: Any, output: Any) -> None:
            output.reconstruction.register_hook(lambda _: mark("backward"))
            mark("reconstruction loss, to y")

        def before_layers(_module: nn.Module, _inputs: Any) -> None:
            if self.marks.current == "reconstruction loss, to y":
                mark("adversarial loss, to y")

        generator.module.register_forward_hook(after_forward)
        discriminator.module.layers.register_forward_pre_hook(before_layers)
        discriminator.module.register_forward_pre_hook(lambda *_: mark("discriminator"))
        generator.optimizer.register_step_pre_hook(lambda *_: mark("optimizers and EMA"))


class Reference:
    """The published step."""

    def __init__(self, options: list[str], arguments: argparse.Namespace) -> None:
        config = make_config(arguments, mixed_precision="no", compile="off", gradient_checkpointing="none")
        self.device = torch.device(arguments.device)
        torch.backends.cudnn.benchmark = True
        self.step = ReferenceStep(
            build_autoencoder(config.model).model,
            config=config,
            perceptual=make_perceptual(arguments.perceptual),
            bf16="bf16" in options,
            device=self.device,
        )
        shape = (config.train.batch_size, config.model.in_channels, config.data.resolution, config.data.resolution)
        self.images = torch.rand(shape) * 2 - 1
        if self.device.type == "cuda":
            self.images = self.images.pin_memory()
        self.marks = Marks(self.device)

    def __call__(self) -> None:
        self.marks.start("step")
        self.step(self.images)

    def networks(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
        """What is trained, and by which optimizer."""
        yield self.step.autoencoder, self.step.optimizer
        yield self.step.discriminator, self.step.disc_optimizer

    def averages(self) -> list[Tensor]:
        """No EMA."""
        return []


class Subject:
    """A variant in its process."""

    def __init__(self, variant: str, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        self.memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        kind, *options = variant.split("-")
        self.steps, self.bf16 = arguments.steps, "bf16" in options
        self.run = (Ours if kind == "ours" else Reference)(options, arguments)
        for _ in range(arguments.warmup):
            self.run()
        if self.run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # forget what cuDNN took to choose its kernels

    def time(self) -> Timing:
        """Run some steps."""
        self._synchronise()
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(self.steps):
            self.run()
        sections = self.run.marks.seconds()
        self._synchronise()
        if self.run.device.type == "cuda":
            torch.cuda.empty_cache()  # the others' turn
        return Timing(
            seconds=(time.perf_counter() - start) / self.steps,
            cpu_seconds=(time.process_time() - cpu_start) / self.steps,
            sections=sections,
        )

    def memory(self) -> Memory:
        """The most that was held so far."""
        state = sum(size_of(self.run.averages()) + size_of(tensors_of(*network)) for network in self.run.networks())
        if self.run.device.type == "cuda":
            return Memory(peak=torch.cuda.max_memory_allocated(), state=state)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Memory(peak=peak - self.memory_before, state=state)

    def floor(self) -> Floor:
        """Of a step."""
        return Floor.of(self.run, device=self.run.device, precision="bf16" if self.bf16 else "tf32")

    def profile(self) -> str:
        """Where the time of a step goes: the operators that took most of it."""
        on_cuda = self.run.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        with torch.profiler.profile(activities=activities) as profiler:
            self.run()
            self._synchronise()
        sort_by = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
        return profiler.key_averages().table(sort_by=sort_by, row_limit=12, max_name_column_width=40)

    def _synchronise(self) -> None:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize()


def make_config(arguments: argparse.Namespace, **train: str) -> Config:
    """The recipe on one batch a step, with the GAN from the first one on."""
    fixed = {
        "report_to": "none",
        "data.resolution": arguments.resolution,
        "loss.perceptual": "none",  # ours is put in afterwards
        "loss.disc_start": 0,
        "loss.disc_weight": 0.5,  # also where the recipe has no GAN
        "train.batch_size": arguments.batch_size,
        **{f"train.{name}": value for name, value in train.items()},
    }
    words = [f"--{name}={value}" for name, value in fixed.items()] + [f"--{setting}" for setting in arguments.set]
    return parse(Config, ["--config", arguments.config, *words], prog="bench_train")


def make_perceptual(name: str) -> nn.Module | None:
    """The frozen network of the perceptual distance: called with images and reconstruction, a distance an image."""
    if name == "none":
        return None
    if name == "lpips_vgg_random":
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    return load_perceptual("efficientnet_lite0")
