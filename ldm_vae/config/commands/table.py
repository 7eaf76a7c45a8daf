"""Every command by its name: its options, its function, and what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command: a function of one dataclass of options, which returns what to print.

    Both are named, not imported, so that `--help` waits for none of them.
    """

    options: str
    function: str
    help: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "quickstart": Command(
        "ldm_vae.config.commands.quickstart:QuickstartOptions",
        "ldm_vae.quickstart:quickstart",
        "train, export, encode, decode and evaluate a small VAE, with nothing to download",
    ),
    "train": Command("ldm_vae.config.run:Config", "ldm_vae.training.loop:train", "train an autoencoder"),
    "export": Command(
        "ldm_vae.config.commands.export:ExportOptions",
        "ldm_vae.exporting.export:export",
        "export a run for diffusers, its scaling measured",
    ),
    "encode": Command(
        "ldm_vae.config.commands.encode:EncodeOptions",
        "ldm_vae.encoding.encode:encode",
        "encode images into shards of latents",
    ),
    "latents verify": Command(
        "ldm_vae.config.commands.latents:LatentsVerifyOptions",
        "ldm_vae.encoding.verify:verify",
        "check that a folder of latents is whole",
        positional=("latents",),
    ),
    "latents export": Command(
        "ldm_vae.config.commands.latents:LatentsExportOptions",
        "ldm_vae.latents.layouts.export:export_latents",
        "write latents in the layout of another trainer",
    ),
    "decode": Command(
        "ldm_vae.config.commands.decode:DecodeOptions",
        "ldm_vae.encoding.decode:decode",
        "decode latents into pictures",
    ),
    "sounds": Command(
        "ldm_vae.config.commands.sounds:SoundsOptions",
        "ldm_vae.evaluation.sounds:sounds",
        "encode sounds and decode them again, as files to listen to",
    ),
    "evaluate": Command(
        "ldm_vae.config.commands.evaluate:EvaluateOptions",
        "ldm_vae.evaluation.evaluate:evaluate",
        "measure one or several VAEs side by side",
    ),
    "density": Command(
        "ldm_vae.config.commands.density:DensityOptions",
        "ldm_vae.density.density:density",
        "bound the density that a VAE gives to pictures, in bits per dimension",
    ),
    "probe": Command(
        "ldm_vae.config.commands.probe:ProbeOptions",
        "ldm_vae.probing.probe:probe",
        "tell how well diffusion models would learn on the latents of VAEs",
    ),
    "explore sample": Command(
        "ldm_vae.config.commands.explore:ExploreSampleOptions",
        "ldm_vae.exploring.sample:sample",
        "draw pictures from the latent space",
    ),
    "explore interpolate": Command(
        "ldm_vae.config.commands.explore:ExploreInterpolateOptions",
        "ldm_vae.exploring.interpolate:interpolate",
        "go from one picture to another, as a strip and an animation",
        positional=("first", "second"),
    ),
    "explore edit": Command(
        "ldm_vae.config.commands.explore:ExploreEditOptions",
        "ldm_vae.exploring.edit:edit",
        "change pictures along a direction that examples give",
    ),
    "explore neighbours": Command(
        "ldm_vae.config.commands.explore:ExploreNeighboursOptions",
        "ldm_vae.exploring.neighbours:neighbours",
        "find the latents of a folder that are nearest to a picture",
        positional=("picture",),
    ),
    "explore augment": Command(
        "ldm_vae.config.commands.explore:ExploreAugmentOptions",
        "ldm_vae.exploring.augment:augment",
        "write variants of pictures, with their labels",
    ),
    "score": Command(
        "ldm_vae.config.commands.score:ScoreOptions",
        "ldm_vae.scoring.score:score",
        "tell how unlike normal pictures each picture is",
    ),
    "report": Command(
        "ldm_vae.config.commands.report:ReportOptions",
        "ldm_vae.reporting.report:report",
        "make one page of evaluations, probes, scores and runs: pictures, plots and tables",
        positional=("outputs",),
    ),
    "leaderboard": Command(
        "ldm_vae.config.commands.leaderboard:LeaderboardOptions",
        "ldm_vae.probing.leaderboard:leaderboard",
        "merge the results of probes of equal protocol into one table",
        positional=("probes",),
    ),
    "convert": Command(
        "ldm_vae.config.commands.convert:ConvertOptions",
        "ldm_vae.exporting.convert:convert",
        "convert between a diffusers folder and a single LDM file",
        positional=("input", "output"),
    ),
    "pipeline-check": Command(
        "ldm_vae.config.commands.pipeline_check:PipelineCheckOptions",
        "ldm_vae.exporting.pipelines:check_pipeline",
        "tell whether a VAE and a pipeline of diffusers fit",
        positional=("vae", "pipeline"),
    ),
    "find-batch-size": Command(
        "ldm_vae.config.commands.batch_size:FindBatchSizeOptions",
        "ldm_vae.training.batch_size:find_batch_size",
        "find the largest micro-batch that this device holds",
    ),
    "recipes": Command(
        "ldm_vae.config.commands.recipes:RecipesOptions",
        "ldm_vae.config.commands.recipes:recipes",
        "list the recipes to train by, or show one",
        positional=("name",),
    ),
    "completion": Command(
        "ldm_vae.config.commands.completion:CompletionOptions",
        "ldm_vae.config.commands.completion:completion",
        "print a script that completes commands and options in a shell",
        positional=("shell",),
    ),
}
