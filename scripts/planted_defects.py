"""Plants defects on photographs, and measures how well `ldm-vae score` tells them from the untouched ones.

    python scripts/planted_defects.py plant --data PHOTOS --output test --masks masks --resolution 64
    ldm-vae score --vae VAE --data test --normal OTHER_PHOTOS --output scores --resolution 64 --num_maps 100000
    python scripts/planted_defects.py measure --scores scores --masks masks

Each photograph is written as it is, into `normal`, and with one defect of each kind, into folders of the kinds' names.
All is a function of the seed and of the photograph's number.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from ldm_vae.images.transforms import crop_box, resize_crop
from ldm_vae.metrics.anomaly import detection
from ldm_vae.system.markdown import markdown_table

NORMAL = "normal"


def scratch(picture: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a thin broken line, brighter or darker than what it crosses."""
    side = min(picture.size)
    points = [rng.uniform(0.1, 0.9, 2) * picture.size]
    inwards = np.array(picture.size) / 2 - points[0]
    heading = np.arctan2(inwards[1], inwards[0]) + rng.normal(0, 0.5)
    for _ in range(int(rng.integers(2, 5))):
        heading += rng.normal(0, 0.35)
        step = rng.uniform(0.12, 0.22) * side * np.array([np.cos(heading), np.sin(heading)])
        points.append(np.clip(points[-1] + step, 0, np.array(picture.size) - 1))
    mask = Image.new("L", picture.size, 0)
    line = [tuple(point) for point in points]
    ImageDraw.Draw(mask).line(line, fill=255, width=max(1, round(side / 48)))
    return _painted(picture, mask, rng, opacity=rng.uniform(0.6, 1.0))


def blot(picture: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Lay an uneven spot of one colour over a part."""
    side = min(picture.size)
    radius = rng.uniform(0.06, 0.12) * side
    centre = rng.uniform(0.15, 0.85, 2) * picture.size
    mask = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(mask)
    for _ in range(6):
        x, y = centre + rng.normal(0, radius / 2, 2)
        part = radius * rng.uniform(0.5, 1.0)
        draw.ellipse([x - part, y - part, x + part, y + part], fill=255)
    soft = mask.filter(ImageFilter.GaussianBlur(radius / 8))
    return _painted(picture, soft, rng, opacity=rng.uniform(0.5, 0.9))


def patch(picture: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Paste a turned piece of the picture itself elsewhere."""
    side = round(rng.uniform(0.15, 0.25) * min(picture.size))
    spare = np.array(picture.size) - side
    source, target = (rng.integers(0, spare, endpoint=True) for _ in range(2))
    piece = picture.crop((*source.tolist(), *(source + side).tolist())).transpose(Image.Transpose.ROTATE_90)
    box = (*target.tolist(), *(target + side).tolist())
    planted, mask = picture.copy(), Image.new("L", picture.size, 0)
    planted.paste(piece, box)
    mask.paste(255, box)
    return planted, mask


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], tuple[Image.Image, Image.Image]]] = {
    "scratch": scratch,
    "blot": blot,
    "patch": patch,
}


def _painted(
    picture: Image.Image, mask: Image.Image, rng: np.random.Generator, *, opacity: float
) -> tuple[Image.Image, Image.Image]:
    """Return the picture with a colour over a mask, far from what is there, and the mask."""
    pixels = np.asarray(picture, dtype=np.float64)
    weight = np.asarray(mask, dtype=np.float64) / 255 * opacity
    weight = weight.reshape(*weight.shape, *[1] * (pixels.ndim - 2))
    there = (pixels * weight).sum(axis=(0, 1)) / weight.sum()
    colour = np.where(there < 128, rng.uniform(200, 255, there.shape), rng.uniform(0, 55, there.shape))
    painted = (pixels * (1 - weight) + colour * weight).round().astype(np.uint8)
    return Image.fromarray(painted), mask.point(lambda level: 255 if level > 127 else 0)


def plant(picture: Image.Image, kind: str, *, number: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """Return a picture (L or RGB) with a defect, and the mask of where it is: white on black, mode L.

    Args:
        picture: The picture, of 16 pixels a side at least.
        kind: One of `KINDS`.
        number: The picture's number.
        seed: With kind and number it decides the defect.
    """
    return KINDS[kind](picture, np.random.default_rng([seed, number, list(KINDS).index(kind)]))


def plant_all(data: Path, output: Path, masks: Path, *, resolution: int, seed: int, mode: str = "RGB") -> None:
    """Write all photographs of a folder untouched and with each kind of defect, as PNG, and the defects' masks."""
    paths = sorted(path for path in data.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    for folder in (output / NORMAL, *(base / kind for base in (output, masks) for kind in KINDS)):
        folder.mkdir(parents=True)
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            picture = opened.convert(mode)
        box = crop_box(picture.size, resolution=resolution, crop="center")
        picture = resize_crop(picture, box, resolution=resolution)
        name = f"{path.stem}.png"
        picture.save(output / NORMAL / name)
        for kind in KINDS:
            planted, mask = plant(picture, kind, number=number, seed=seed)
            planted.save(output / kind / name)
            mask.save(masks / kind / name)
    print(f"{output}: {len(paths)} photographs, untouched and with each of {', '.join(KINDS)}")


def measure(scores: Path, masks: Path) -> str:
    """Return a Markdown table of AUROC by score and kind of defect, and by pixel for the maps that were kept."""
    lines = [json.loads(line) for line in (scores / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [["score", "all", *KINDS]]
    for name in [*lines[0]["scores"], "complexity_bits"]:
        row = [name]
        for kinds in (list(KINDS), *([kind] for kind in KINDS)):
            chosen = [line for line in lines if line["label"] in (NORMAL, *kinds)]
            values = torch.tensor([(line["scores"] | line["figures"])[name] for line in chosen], dtype=torch.float64)
            row.append(_auroc(values, torch.tensor([line["label"] != NORMAL for line in chosen])))
        rows.append(row)
    for name in ("pixel", "perceptual"):
        row = [f"pixels of the {name} map"]
        for kinds in (list(KINDS), *([kind] for kind in KINDS)):
            errors, defects = _pixels(lines, name, scores=scores, masks=masks, kinds=kinds)
            row.append(_auroc(errors, defects))
        rows.append(row)
    return markdown_table(rows)


def _pixels(
    lines: list[dict[str, object]], name: str, *, scores: Path, masks: Path, kinds: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors of all pixels of pictures with defects, and whether each belongs to the defect."""
    errors, defects = [torch.zeros(0)], [torch.zeros(0, dtype=torch.bool)]
    for line in lines:
        if line["label"] in kinds and "map" in line:
            with np.load(scores / str(line["map"])) as maps:
                if name in maps:
                    errors.append(torch.from_numpy(maps[name]).float().flatten())
                    defects.append(torch.from_numpy(np.asarray(Image.open(masks / str(line["name"]))) > 0).flatten())
    return torch.cat(errors), torch.cat(defects)


def _auroc(values: torch.Tensor, is_anomaly: torch.Tensor) -> str:
    found = detection(values, is_anomaly)
    return "" if found is None else f"{found.auroc:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant", help="write photographs with and without defects")
    planting.add_argument("--data", type=Path, required=True, help="folder of photographs")
    planting.add_argument("--output", type=Path, required=True, help="new folder of pictures, a folder a kind")
    planting.add_argument("--masks", type=Path, required=True, help="new folder of masks, beside it")
    planting.add_argument("--resolution", type=int, default=64, help="side of the pictures in pixels")
    planting.add_argument("--seed", type=int, default=0)
    measuring = commands.add_parser("measure", help="AUROC by kind of defect, of what `ldm-vae score` wrote")
    measuring.add_argument("--scores", type=Path, required=True, help="output of `ldm-vae score`")
    measuring.add_argument("--masks", type=Path, required=True, help="masks that `plant` wrote")
    options = parser.parse_args()
    if options.command == "plant":
        plant_all(options.data, options.output, options.masks, resolution=options.resolution, seed=options.seed)
    else:
        print(measure(options.scores, options.masks))


if __name__ == "__main__":
    main()
