"""The whole path on photographs that are at hand: the commands, one after the other, with small settings."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.config.commands.encode import EncodeOptions
from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.commands.export import ExportOptions
from ldm_vae.config.commands.quickstart import QuickstartOptions
from ldm_vae.config.parsing import load_config
from ldm_vae.config.recipes import find_recipe
from ldm_vae.config.rules import require
from ldm_vae.encoding.decode import decode
from ldm_vae.encoding.encode import encode
from ldm_vae.evaluation.evaluate import evaluate
from ldm_vae.exporting.export import export
from ldm_vae.models.load import load_vae
from ldm_vae.reporting.report import write_report
from ldm_vae.system.output_kinds import QUICKSTART, RUN, is_marked
from ldm_vae.system.outputs import OutputFolder
from ldm_vae.training.loop import train
from ldm_vae.training.summary import TrainSummary

RECIPE = "quickstart"
RUN_FOLDER = "run"
TRAINING_PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
TILE = 128  # pixels
MAX_SIDE = 512
COLOUR_ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))  # seven photographs hold few colours; these are three times as many
KEPT_OUT = "coffee.png"
KEPT_OUT_BOX = (0, 0, 576, 384)  # left, top, right, bottom: sides that every factor up to 64 divides


@dataclass(frozen=True, kw_only=True)
class QuickstartSummary:
    """Where everything is."""

    picture: Path
    metrics: Path
    export: Path
    latents: Path
    decoded: Path
    report: Path | None
    psnr: float

    def __str__(self) -> str:
        """Return where everything is, in lines."""
        report = [] if self.report is None else [f"  report, to open in a browser          {self.report}"]
        return "\n".join(
            [
                "",
                f"PSNR {self.psnr:.2f} dB on a photograph that training never saw.",
                f"  picture (original | reconstruction)  {self.picture}",
                f"  metrics                              {self.metrics}",
                f"  export, which diffusers loads        {self.export}",
                f"  latents                              {self.latents}",
                f"  latents decoded again                {self.decoded}",
                *report,
            ]
        )


@dataclass(frozen=True, kw_only=True)
class StoppedQuickstart:
    """A quickstart whose training a signal ended; nothing after the training was begun."""

    options: QuickstartOptions
    training: TrainSummary

    def __str__(self) -> str:
        """Return in a line where the run is kept and which command goes on with it."""
        words = ["ldm-vae", "quickstart", "--output", self.options.output, "--resume", "true"]
        words += ["--data", self.options.data] if self.options.data is not None else []
        words += [] if self.options.report else ["--report", "false"]
        return self.training.stop_words(go_on=shlex.join(words))


def quickstart(options: QuickstartOptions) -> QuickstartSummary | StoppedQuickstart:
    """Train, export, encode, decode, evaluate, and load the export with diffusers.

    Raises:
        ValueError: The photographs aren't installed, the output holds something else, or nothing to go on with.
    """
    output = OutputFolder(options.output, kind=QUICKSTART)
    config = dataclasses.replace(load_config(find_recipe(RECIPE)), report=False)
    training, kept_out = photographs_in(output.path)
    if options.resume:
        require(
            is_marked(output.path, QUICKSTART) and is_marked(output.path / RUN_FOLDER, RUN),
            f"<resume>: {options.output} holds no quickstart that was stopped while it trained; leave <resume> out",
        )
    else:
        output.check(overwrite=options.overwrite)
        output.begin([], mark=json.dumps({"recipe": RECIPE}).encode())
        gather_photographs(training, kept_out)

    source = options.data or str(training)
    trained = train(
        dataclasses.replace(
            config,
            output_dir=str(output.path / RUN_FOLDER),
            data=dataclasses.replace(config.data, train=source, validation=str(kept_out)),
            train=dataclasses.replace(config.train, resume_from_checkpoint="latest" if options.resume else None),
        )
    )
    if trained.stopped_by:
        return StoppedQuickstart(options=options, training=trained)
    print(trained)
    summary = use(output.path, training=source, kept_out=kept_out, resolution=2 * config.data.resolution)
    if not options.report:
        return summary
    return dataclasses.replace(summary, report=write_report([output.path]))


def use(output: Path, *, training: str, kept_out: Path, resolution: int) -> QuickstartSummary:
    """Call the commands that follow the training, in their order, as the command line would; all can be repeated.

    Args:
        output: The quickstart's folder, which holds the run.
        training: The images of the training.
        kept_out: A folder of the photograph that it never saw.
        resolution: Side in pixels of the images that are encoded.
    """
    folder = output / "export"
    print(export(ExportOptions(run=str(output / RUN_FOLDER), output=str(folder), overwrite=True)))

    latents, decoded = output / "latents", output / "decoded"
    print(encode(EncodeOptions(vae=str(folder), data=training, output=str(latents), resolution=resolution)))
    print(decode(DecodeOptions(vae=str(folder), latents=str(latents), output=str(decoded), overwrite=True)))

    measured = output / "evaluation"
    evaluation = evaluate(
        EvaluateOptions(vae=[str(folder)], data=str(kept_out), output=str(measured), report=False, overwrite=True)
    )
    print(evaluation)

    family = load_vae(folder).family
    print(
        f"diffusers loads it: {family.class_name()}, f{family.spatial_factor}, "
        f"{family.latent_channels} latent channels, scaling_factor {family.scaling['scaling_factor']:.4f}"
    )
    return QuickstartSummary(
        picture=evaluation.grids[0],
        metrics=evaluation.metrics,
        export=folder,
        latents=latents,
        decoded=decoded,
        report=None,
        psnr=evaluation.evaluations[0]["psnr"],
    )


def photographs_in(output: Path) -> tuple[Path, Path]:
    """Return the folders of a quickstart's photographs to train on, and of the one kept out."""
    return output / "photographs" / "training", output / "photographs" / "kept_out"


def gather_photographs(training: Path, kept_out: Path) -> None:
    """Put scikit-image's photographs into two folders: tiles of those to train on, and part of the one kept out."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise ValueError("the quickstart's photographs come with scikit-image: pip install 'ldm-vae[quickstart]'")
    source = Path(package.origin).parent / "data"
    for path in (training, kept_out):
        path.mkdir(parents=True)
    for name in TRAINING_PHOTOGRAPHS:
        with Image.open(source / name) as image:
            channels = image.convert("RGB").split()
        for order in COLOUR_ORDERS:
            recoloured = Image.merge("RGB", [channels[channel] for channel in order])
            cut_into_tiles(recoloured, training / f"{Path(name).stem}-{''.join('rgb'[channel] for channel in order)}")
    with Image.open(source / KEPT_OUT) as image:
        image.convert("RGB").crop(KEPT_OUT_BOX).save(kept_out / KEPT_OUT)


def cut_into_tiles(image: Image.Image, stem: Path) -> None:
    """Write an image, reduced to a short side of at most `MAX_SIDE`, as square tiles.

    There is little to decode for each crop then, and it is about as sharp as the photographs a model is used on.
    """
    reduction = max(1.0, min(image.size) / MAX_SIDE)
    image = image.resize((round(image.width / reduction), round(image.height / reduction)), Image.Resampling.LANCZOS)
    for top in range(0, image.height - TILE + 1, TILE):
        for left in range(0, image.width - TILE + 1, TILE):
            image.crop((left, top, left + TILE, top + TILE)).save(f"{stem}-{top:04d}-{left:04d}.png")
