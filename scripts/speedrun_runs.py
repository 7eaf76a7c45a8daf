"""The recipes that speedrun.py compares, and the words that name a run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

# The architecture and the objective that all recipes share: a small f8, L1 + KL, no GAN.
COMMON = {
    "report_to": "none",
    "model.block_out_channels": "[32, 64, 64, 64]",
    "model.layers_per_block": "1",
    "model.norm_num_groups": "32",
    "data.resolution": "128",
    "data.crop": "center",
    "data.num_workers": "1",
    "loss.perceptual": "none",
    "loss.kl_weight": "1e-6",
    "loss.disc_weight": "0",
    "train.batch_size": "4",
    "train.lr_warmup_steps": "30",
    "train.adam_beta1": "0.9",
    "train.adam_beta2": "0.99",
    "train.ema_decay": "0.98",
}
PUBLISHED = {"train.learning_rate": "1e-3", "train.lr_scheduler": "constant_with_warmup"}
GROUPS = {"model.norm_num_groups": "16"}  # 32, as published, normalise each of 32 channels for itself
DECAY = {"train.learning_rate": "1e-3", "train.lr_scheduler": "constant_with_decay"}
QUIET = {"model.init": "quiet"}
MUON = {"train.optimizer": "muon", "train.learning_rate": "2e-3"}
NO_ATTENTION = {"model.mid_block_add_attention": "false"}
RECIPES: dict[str, dict[str, str]] = {
    "published": COMMON | PUBLISHED,
    "groups": COMMON | PUBLISHED | GROUPS,
    "groups_quiet": COMMON | PUBLISHED | GROUPS | QUIET,
    "groups_quiet_decay": COMMON | GROUPS | QUIET | DECAY,
    "groups_quiet_decay_muon": COMMON | GROUPS | QUIET | DECAY | MUON,
    "fast": COMMON | GROUPS | QUIET | DECAY | MUON | NO_ATTENTION,
}
CHANGES = {  # that have a name
    "early": {"data.early_resolutions": "[64]", "data.early_fractions": "[0.57]"},
    "eq": {"loss.eq_probability": "0.5"},
    "additive": {"loss.equivariance_weight": "0.5"},
    "consistent": {
        "loss.equivariance_weight": "0.5",
        "loss.consistency_weight": "0.1",
        "loss.equivariance_every": "2",
    },
    "noise": {"loss.latent_noise": "relative", "loss.latent_noise_strength": "0.3"},
    "spectrum": {"loss.spectrum_weight": "0.01", "loss.kl_weight": "0"},
    "low_pass": {"loss.low_pass": "[0, 8, 10, 12]"},
    "gan": {
        "loss.perceptual": "efficientnet_lite0",
        "loss.perceptual_weight": "0.1",
        "loss.disc_weight": "0.5",
        "loss.disc_start": "0",
        "loss.disc_warmup_steps": "50",
        "train.disc_learning_rate": "2e-4",
    },
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe, its number of updates and its seed; `start` is the stage before, whose autoencoder it starts from."""

    recipe: str
    updates: int
    seed: int
    start: Run | None = None

    @property
    def label(self) -> str:
        """As on the command line."""
        own = f"{self.recipe}:{self.updates}"
        return own if self.start is None else f"{self.start.label},{own}"

    @property
    def name(self) -> str:
        """Of its folder."""
        stages = self.label.replace(":", "-").split(",")
        return ",".join(stage.rsplit("/", 1)[-1] for stage in stages) + f"-seed{self.seed}"

    @property
    def stages(self) -> list[Run]:
        """Those before, and itself."""
        return [*(self.start.stages if self.start else []), self]


def parse_run(label: str, *, seed: int) -> Run:
    """The last stage of a run."""
    run = None
    for stage in label.split(","):
        recipe, _, updates = stage.rpartition(":")
        if not recipe or not updates.isdigit():
            raise SystemExit(f"--runs: {label!r} is not RECIPE:UPDATES[,RECIPE:UPDATES ...]")
        run = Run(recipe=recipe, updates=int(updates), seed=seed, start=run)
    assert run is not None
    return run


def recipe_arguments(recipe: str) -> list[str]:
    """The command line of a recipe and its changes."""
    base, *changes = recipe.split("+")
    fields = dict(RECIPES.get(base, {}))
    for change in changes:
        fields |= CHANGES.get(change) or dict([change.split("=", 1)])
    words = [] if base in RECIPES else ["--config", base]
    return words + [word for name, value in fields.items() for word in (f"--{name}", value)]


def run_arguments(run: Run, options: argparse.Namespace) -> list[str]:
    """The command line of a run's last stage."""
    own = {
        "output_dir": str(options.output / "runs" / run.name),
        "seed": str(run.seed),
        "data.train": options.train,
        "train.max_train_steps": str(run.updates),
        "train.checkpointing_steps": str(options.every),
        "train.checkpoints_total_limit": "null",
        "train.log_steps": "10",
        "train.resume_from_checkpoint": "latest",
    }
    if run.start is not None:
        own["model.pretrained"] = str(options.output / "runs" / run.start.name / "autoencoder")
    return recipe_arguments(run.recipe) + [word for name, value in own.items() for word in (f"--{name}", value)]
