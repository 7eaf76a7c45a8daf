"""Latents of a codebook are stored as numbers of codes, which every reader of them takes back to the codes."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ldm_vae import LatentDataset
from ldm_vae.cli import main
from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.encoding.encode import encode
from ldm_vae.encoding.plan import index_dtype
from ldm_vae.images.transforms import to_tensor
from ldm_vae.latents.layouts.export import export_latents
from tests.encodings import RESOLUTION, options
from tests.latents.test_layouts import read_mds
from tests.pictures import save_pictures
from tests.tiny import tiny_family


def test_numbers_of_codes_take_the_smallest_type_that_holds_them() -> None:
    held = {"uint8": 2**8, "uint16": 2**16, "int32": 2**31}
    for number in (2, 255, 256, 257, 16_384, 65_536, 65_537, 1 << 20):
        smallest = next(name for name, codes in held.items() if number <= codes)
        assert index_dtype(number) == smallest


def test_numbers_go_through_every_reader(tmp_path: Path) -> None:
    family = tiny_family(family="vq", codebook_size=300, codebook_dim=3)
    torch.nn.init.normal_(family.model.quantize.embedding.weight, std=0.3)
    family.model.save_pretrained(tmp_path / "vae")
    photos = save_pictures(tmp_path / "photos", count=5, size=(RESOLUTION, RESOLUTION))
    latents = tmp_path / "latents"
    encode(options(str(tmp_path / "vae"), photos, latents, flip=True))

    # As the class itself quantises.
    model = VQModel.from_pretrained(tmp_path / "vae").eval()
    images = torch.stack([to_tensor(Image.open(path)) for path in sorted(Path(photos).glob("*.png"))])
    side = RESOLUTION // 2

    def quantised(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            codes, _, (_, _, numbers) = model.quantize(model.encode(images).latents)
        return codes, numbers.view(len(images), side, side)

    (codes, numbers), (_, of_mirrored) = quantised(images), quantised(images.flip(-1))
    assert numbers.unique().numel() > 2
    dataset = LatentDataset(latents, normalize="none", verify=True)
    for row in range(5):
        assert torch.equal(dataset.indices(row), numbers[row])
        assert torch.equal(dataset.indices(row, flipped=True), of_mirrored[row])
        torch.testing.assert_close(dataset.latents(row), codes[row], rtol=0, atol=1e-6)
    shard = load_file(next(latents.glob("*.safetensors")))
    assert shard["indices"].dtype == shard["indices_flip"].dtype == torch.uint16
    assert shard["indices"].shape[1:] == (1, side, side)

    main(["decode", "--vae", str(tmp_path / "vae"), "--latents", str(latents), "--output", str(tmp_path / "decoded")])
    with torch.no_grad():
        made = model.decode(codes).sample.clamp(-1, 1)
    decoded = torch.stack([to_tensor(Image.open(path)) for path in sorted((tmp_path / "decoded").glob("*.png"))])
    torch.testing.assert_close(decoded, made, rtol=0, atol=1.1 / 127.5)

    # Other trainers' layouts: numbers with their codebook, or the codes.
    for layout in ("parquet", "webdataset", "mds", "lightningdit"):
        output = tmp_path / layout
        told = export_latents(LatentsExportOptions(latents=str(latents), output=str(output), layout=layout))
        if layout == "lightningdit":
            stored = load_file(min(output.glob("*.safetensors")))["latents"]
            torch.testing.assert_close(stored, codes[: len(stored)], rtol=0, atol=1e-6)
            assert not (output / "codebook.npy").exists()
            continue
        assert told.notes == ["column indices numbers the rows of codebook.npy, which are the codes"]
        if layout == "mds":
            found = [sample["indices"] for sample in read_mds(output)]
        else:
            cache = str(tmp_path / f"cache-{layout}")
            files = sorted(map(str, output.glob("*.tar"))) or None
            source = str(output) if files is None else "webdataset"
            loaded = datasets.load_dataset(source, data_files=files, split="train", cache_dir=cache)
            found = [row["indices.npy" if files else "indices"] for row in loaded]
        of_file = np.load(output / "codebook.npy")[np.asarray(found, dtype=np.int64)[:, 0]]
        np.testing.assert_allclose(np.moveaxis(of_file, -1, 1), codes.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="holds other things"):
        export_latents(LatentsExportOptions(latents=str(latents), output=str(tmp_path / "mds"), layout="mds"))
