"""`decode` on a tiny autoencoder: pictures against diffusers itself, their names, and what is refused."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ldm_vae.cli import main
from ldm_vae.config.commands.decode import DecodeOptions
from ldm_vae.config.commands.latents import LatentsExportOptions
from ldm_vae.encoding import decode as decode_module
from ldm_vae.encoding.decode import decode, picture_names
from ldm_vae.encoding.encode import encode
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.latents.layouts.export import export_latents
from ldm_vae.system.paths import inside
from tests.encodings import contents, options, save_vae
from tests.faults import full_disk
from tests.pictures import picture, save_pictures
from tests.stores import check_ends_of_writing, fresh_places


@pytest.fixture(scope="module")
def latents(vae: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("latents")
    encode(options(vae, save_pictures(folder / "photos", count=6), folder / "latents"))
    return str(folder / "latents")


def test_pictures_are_what_diffusers_decodes(vae: str, latents: str, tmp_path: Path) -> None:
    summary = decode(DecodeOptions(vae=vae, latents=latents, output=str(tmp_path), batch_size=4))
    assert summary.num_images == 6
    autoencoder = AutoencoderKL.from_pretrained(vae).eval()
    dataset = LatentDataset(latents, normalize="none")
    for row in range(6):
        with torch.no_grad():
            image = autoencoder.decode(dataset.moments(row)["mean"][None]).sample[0]
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
        written = np.asarray(Image.open(tmp_path / f"{row:04d}.png")).astype(float)
        assert np.abs(written - pixels).max() < 0.51
    lines = [json.loads(line) for line in (tmp_path / "pictures.jsonl").open()]
    assert lines[3] == {"picture": "0003.png", "row": 3, "sample": 3, "source": "0003.png"}


@pytest.mark.parametrize(("place", "after"), [("here", True), ("memory", False)])
def test_a_process_may_end_at_any_call_of_the_store(
    vae: str, latents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, after: bool
) -> None:
    """Each picture that is there then is whole, and `overwrite` decodes all again."""
    loaded = decode_module.load_vae(vae)
    monkeypatch.setattr(decode_module, "load_vae", lambda *_, **__: loaded)
    arguments: dict[str, Any] = {"vae": vae, "latents": latents, "num_images": 3}
    decode(DecodeOptions(output=str(tmp_path / "whole"), **arguments))
    left = check_ends_of_writing(
        decode_module,
        lambda output, overwrite: decode(DecodeOptions(output=output, overwrite=overwrite, **arguments)),
        expected=contents(tmp_path / "whole"),
        fresh=fresh_places(tmp_path, place=place),
        after=after,
    )
    assert len(left) >= 3


def test_buckets_grey_and_subfolders(tmp_path: Path) -> None:
    vae = save_vae(tmp_path / "vae", in_channels=1, out_channels=1)
    for name, size in (("x/a.png", (40, 20)), ("x/b.png", (20, 40)), ("y/a.png", (20, 20))):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(1, size=size, mode="L").save(tmp_path / "data" / name)
    encode(options(vae, str(tmp_path / "data"), tmp_path / "latents", buckets=True, bucket_step=4))
    decode(DecodeOptions(vae=vae, latents=str(tmp_path / "latents"), output=str(tmp_path / "out")))
    found = {str(path.relative_to(tmp_path / "out")): Image.open(path) for path in (tmp_path / "out").rglob("*.png")}
    assert {name: image.size for name, image in found.items()} == {
        "x/a.png": (20, 12), "x/b.png": (12, 20), "y/a.png": (16, 16)
    }  # fmt: skip
    assert {image.mode for image in found.values()} == {"L"}


def test_names() -> None:
    sources = ["a.jpg", "a.png", "b/C.jpg", "b/c.webp", "../../etc/é.jpg", "row 7", "", "..", "d.tar.gz", "D:\\e.png"]
    names = picture_names([{"source": source, "sample": i} for i, source in enumerate(sources)])
    assert names == [
        "sample-00000000.png", "sample-00000001.png", "sample-00000002.png", "sample-00000003.png", "etc/é.png",
        "row 7.png", "sample-00000006.png", "sample-00000007.png", "d.tar.png", "D_/e.png",
    ]  # fmt: skip
    taken = picture_names(
        [{"source": s, "sample": i} for i, s in enumerate(["a.jpg", "a.png", "sample-00000000.jpg"])]
    )
    assert len(set(taken)) == 3
    nested = picture_names([{"source": s, "sample": i} for i, s in enumerate(["a.jpg", "A.png/b.jpg"])])
    assert nested == ["sample-00000000.png", "A.png/b.png"]  # a file can't be called as a folder
    longest = "猫" * 80 + "x" * 11  # 251 bytes: with .png as long as a name may be
    assert picture_names([{"source": longest + ".jpg", "sample": 0}]) == [longest + ".png"]
    for source in (longest + "xxxxx", "d/" + "猫" * 85, "d/" * 600 + "a.png"):
        assert picture_names([{"source": source, "sample": 7}]) == ["sample-00000007.png"]


SOURCES = st.text(st.sampled_from("aA.é猫 /\\:\0\n~-") | st.characters(), max_size=20)


@given(st.lists(SOURCES | st.sampled_from(["../../x.png", "/etc/x", "C:\\x", "..", "a\0/../b"]), max_size=8))
def test_no_source_gives_a_name_outside_or_one_twice(sources: list[str]) -> None:
    names = picture_names([{"source": source, "sample": i} for i, source in enumerate(sources)])
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)
    for name in names:
        assert name.endswith(".png")
        assert inside("/nowhere", name)


def test_names_as_long_as_names_may_be_are_decoded(vae: str, tmp_path: Path) -> None:
    names = ["猫" * 80 + ".png", "a" * 251 + ".png", "a.png"]
    (tmp_path / "data").mkdir()
    for i, name in enumerate(names):
        picture(i).save(tmp_path / "data" / name)
    encode(options(vae, str(tmp_path / "data"), tmp_path / "latents"))
    decode(DecodeOptions(vae=vae, latents=str(tmp_path / "latents"), output=str(tmp_path / "out")))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "pictures.jsonl"}


def test_overwrite_removes_nothing_outside_whatever_is_listed(vae: str, latents: str, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "mine.txt"
    outside.write_text("kept")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("kept")
    arguments = {"vae": vae, "latents": latents, "output": str(out), "overwrite": True}
    decode(DecodeOptions(**arguments))
    (out / "link").symlink_to(tmp_path / "elsewhere")
    before = sorted(path.name for path in out.iterdir())
    for name in ("../mine.txt", str(outside), "link/mine.txt", "a/../../mine.txt", "..\\mine.txt", "C:\\a", "\0", ""):
        lines = [{"picture": "0001.png"}, {"picture": name}]
        (out / "pictures.jsonl").write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(ValueError, match=r"pictures\.jsonl: '.*; nothing outside .* is touched"):
            decode(DecodeOptions(**arguments))
        assert sorted(path.name for path in out.iterdir()) == before
    (out / "pictures.jsonl").write_text('{"picture":')
    with pytest.raises(ValueError, match="is damaged, so it isn't known which pictures an earlier decode wrote"):
        decode(DecodeOptions(**arguments))
    assert outside.read_text() == (tmp_path / "elsewhere" / "mine.txt").read_text() == "kept"


def test_pictures_are_not_written_through_a_link(vae: str, tmp_path: Path) -> None:
    (tmp_path / "data" / "x").mkdir(parents=True)
    picture(0).save(tmp_path / "data" / "x" / "a.png")
    encode(options(vae, str(tmp_path / "data"), tmp_path / "latents"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"'x/a\.png' leads out of its folder through a link"):
        decode(DecodeOptions(vae=vae, latents=str(tmp_path / "latents"), output=str(tmp_path / "out"), overwrite=True))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_is_refused_and_what_is_replaced(vae: str, latents: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = {"vae": vae, "latents": latents, "output": str(out)}
    decode(DecodeOptions(**arguments))
    (out / "mine.txt").write_text("kept")
    with pytest.raises(
        ValueError, match=r"holds other things \(pictures\.jsonl\); take an empty folder, or overwrite it"
    ):
        decode(DecodeOptions(**arguments))
    decode(DecodeOptions(**arguments, num_images=2, overwrite=True))
    assert {path.name for path in out.iterdir()} == {"0000.png", "0001.png", "pictures.jsonl", "mine.txt"}

    (out / "0000.png").rename(out / "0002.png")  # mine now, and a picture would be called so
    with pytest.raises(ValueError, match=r"holds 0002\.png, which no decode wrote; take another folder"):
        decode(DecodeOptions(**arguments, overwrite=True))
    assert {path.name for path in out.iterdir()} == {"0001.png", "0002.png", "pictures.jsonl", "mine.txt"}

    other = save_vae(tmp_path / "vae", seed=1)
    with pytest.raises(ValueError, match="is not the autoencoder that"):
        decode(DecodeOptions(**{**arguments, "vae": other, "output": str(tmp_path / "b")}))
    assert not (tmp_path / "b").exists()
    decode(DecodeOptions(**{**arguments, "vae": other, "output": str(tmp_path / "b")}, other_vae=True))
    wide = save_vae(tmp_path / "wide", latent_channels=8)
    with pytest.raises(ValueError, match="decodes 8 latent channels, but"):
        decode(DecodeOptions(**{**arguments, "vae": wide, "output": str(tmp_path / "c")}, other_vae=True))

    trained = AutoencoderKL.from_pretrained(vae)  # by its decoder alone: its latents are still these
    torch.nn.init.zeros_(trained.decoder.conv_out.weight)
    trained.save_pretrained(tmp_path / "trained")
    decode(DecodeOptions(**{**arguments, "vae": str(tmp_path / "trained"), "output": str(tmp_path / "d")}))
    with pytest.raises(ValueError, match="num_images is 0"):
        DecodeOptions(**arguments, num_images=0)


def test_pictures_that_are_no_finite_numbers_are_told(
    vae: str, latents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = AutoencoderKL.from_pretrained(vae)
    torch.nn.init.constant_(broken.decoder.conv_out.bias, float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    arguments = {"vae": str(tmp_path / "broken"), "latents": latents, "output": str(tmp_path / "out")}
    summary = decode(DecodeOptions(**arguments))
    assert (summary.num_images, len(summary.skipped)) == (0, 6)
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").open()]
    assert lines[3] == {"row": 3, "source": "0003.png", "reason": "it decodes to no finite numbers"}
    assert list((tmp_path / "out").glob("*.png")) == []
    with pytest.raises(SystemExit) as end:
        main(["decode", *(word for name, value in arguments.items() for word in (f"--{name}", value)), "--overwrite",
              "true"])  # fmt: skip
    assert end.value.code == 1
    assert "6 of 6 latents decode to no finite numbers" in capsys.readouterr().err


def test_a_single_row_that_is_not_finite_costs_itself_alone(vae: str, tmp_path: Path) -> None:
    """Values so large that float32 overflows in the decoder, in one of six rows."""
    encode(options(vae, save_pictures(tmp_path / "photos", count=6), tmp_path / "latents"))
    path = tmp_path / "latents" / "latents-00000.safetensors"
    size = path.stat().st_size
    mean = LatentDataset(tmp_path / "latents", normalize="none")[2].latents
    content = path.read_bytes().replace(mean.numpy().tobytes(), torch.full_like(mean, 1e38).numpy().tobytes())
    path.write_bytes(content)
    assert path.stat().st_size == size
    summary = decode(DecodeOptions(vae=vae, latents=str(tmp_path / "latents"), output=str(tmp_path / "out")))
    assert summary.skipped == ["0002.png"]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"{i:04d}.png" for i in range(6) if i != 2}


@pytest.mark.parametrize("layout", ["lightningdit", "kohya", "parquet", "webdataset"])
def test_a_full_disk_names_file_and_folder(tmp_path: Path, layout: str) -> None:
    """In encode, decode and latents export."""
    vae = save_vae(tmp_path / "vae", widths=(4, 4, 8, 8))
    photos = save_pictures(tmp_path / "photos", count=3)
    arguments = options(vae, photos, tmp_path / "latents", flip=True, resolution=64)
    output = str(tmp_path / "out")
    export = LatentsExportOptions(latents=str(tmp_path / "latents"), output=output, layout=layout)  # type: ignore[arg-type]

    def full(run: Callable[[], object], *, file: str) -> None:
        with full_disk(after_bytes=2500), pytest.raises(OSError, match=file):
            run()

    full(lambda: encode(arguments), file=r"latents/latents-00000\.safetensors can't be written: File too large")
    encode(arguments)
    decoding = DecodeOptions(vae=vae, latents=str(tmp_path / "latents"), output=output)
    full(lambda: decode(decoding), file=r"out/0000\.png can't be written: File too large")
    shutil.rmtree(output)
    full(lambda: export_latents(export), file=rf"{output}/\S+ can't be written: File too large")
    assert not list(Path(output).glob(".*.tmp"))
