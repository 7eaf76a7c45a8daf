"""What a distilled autoencoder costs and gives beside its teacher, on the same pictures.

    python scripts/bench_distil.py --teacher TEACHER --student EXPORT --data photos

For each of both: parameters of the decoder, milliseconds to decode a picture, and PSNR. Without a GPU the time is the
processor's, which other programs don't lengthen. The student's decoder is measured on the teacher's latents, where it
takes the place of the teacher's, and on its own encoder's where that was taught too.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from ldm_vae.images.collection import open_collection
from ldm_vae.images.evaluation import EvaluationImages
from ldm_vae.metrics.reconstruction import psnr
from ldm_vae.models.families.family import Family
from ldm_vae.models.inference import InferenceAutoencoder, local_device
from ldm_vae.models.load import load_vae
from ldm_vae.models.teacher import RunningTeacher
from ldm_vae.system.markdown import markdown_table
from ldm_vae.system.pixels import to_pixels

TIMED = 5


def decoder_parameters(family: Family) -> int:
    names = family.decoder_names
    return sum(weight.numel() for name, weight in family.model.named_parameters() if name.startswith(names))


@torch.no_grad()
def milliseconds(family: Family, latents: Tensor) -> float:
    """Return the median time of decoding a batch, over its pictures; the kernels' choice isn't counted."""
    decoder = InferenceAutoencoder(family, bf16=False)
    clock = time.process_time if latents.device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(TIMED + 1):
        start = clock()
        decoder.decode(latents).cpu()
        times.append(clock() - start)
    return 1000 * sorted(times[1:])[TIMED // 2] / len(latents)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True, help="an export of a run with model.teacher")
    parser.add_argument("--data", required=True, help="pictures that neither was trained on")
    parser.add_argument("--resolution", type=int, default=256)
    options = parser.parse_args()

    device = local_device()
    teacher, student = (
        load_vae(source, needs_encoder=source != options.student).family.to(device)
        for source in (options.teacher, options.student)
    )
    lessons = RunningTeacher(teacher, device=device)
    images = EvaluationImages(
        open_collection(options.data, held_out=True), channels=teacher.in_channels, resolution=options.resolution
    )
    quality: dict[str, list[float]] = {"teacher": [], "student on its latents": [], "student on its own": []}
    distances = []
    for index in range(len(images)):
        picture = images[index].image[None].to(device)
        taught = lessons.latent(picture, None, {})
        decoded = {
            "teacher": teacher.reconstruct(picture).images,
            "student on its latents": student.decode(taught.mean),
        }
        if student.has_encoder:
            own = student.encode_latent(picture)
            decoded["student on its own"] = student.decode(own.mean)
            distances.append((own.mean - taught.mean).square().mean().item())
        for name, made in decoded.items():
            quality[name].append(psnr(to_pixels(picture), to_pixels(made)).item())

    batch = torch.stack([images[index].image for index in range(min(4, len(images)))]).to(device)
    own_latents, normalised = teacher.encode_latent(batch).mean, lessons.latent(batch, None, {}).mean
    means = {name: sum(values) / len(values) for name, values in quality.items() if values}
    rows = [
        ["", "decoder's parameters", "decode (ms a picture)", "PSNR (dB)"],
        ["teacher", f"{decoder_parameters(teacher):,}", f"{milliseconds(teacher, own_latents):.1f}",
         f"{means['teacher']:.2f}"],
        ["student, on the teacher's latents", f"{decoder_parameters(student):,}",
         f"{milliseconds(student, normalised):.1f}", f"{means['student on its latents']:.2f}"],
    ]  # fmt: skip
    distance = ""
    if distances:
        rows.append(["student, on its own latents", "", "", f"{means['student on its own']:.2f}"])
        distance = f"; mean squared distance of latents {sum(distances) / len(distances):.4f}"
    print(markdown_table(rows))
    print(f"\n{len(images)} pictures of {options.resolution} pixels{distance}")


if __name__ == "__main__":
    main()
