from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ldm_vae.config.reading import ReadingRules
from ldm_vae.images.collection import ImageCollection, open_collection
from ldm_vae.images.fetching import address_roots, is_address
from ldm_vae.images.guard import UnreadableImage
from ldm_vae.images.streaming import StreamingImages, open_stream
from ldm_vae.images.training import Augmentation
from tests.pictures import encoded, write_grey

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_cells(path: Path, cells: list[dict[str, object] | None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(cells, CELL)}), path)
    return path


def outcome(collection: ImageCollection, i: int) -> int | str:
    """The grey value of an image, or why it can't be read."""
    try:
        return collection.read(i, channels=1).getpixel((0, 0))  # type: ignore[return-value]
    except UnreadableImage as error:
        return error.reason


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server of one picture, and the paths that were asked for."""
    asked: list[str] = []
    picture = encoded(Image.new("L", (4, 4), 77), "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", f"file://{tmp_path}/far.png")
                self.end_headers()
            elif self.path == "/gone":
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(picture)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def test_nothing_is_fetched_or_read_outside_unless_asked(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    for name in ("far.png", "data/near.png", "data/sub/deep.png", "data of others/x.png"):
        write_grey(tmp_path / name, 5)
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "far.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path)
    far = str(tmp_path / "far.png")
    own = ["near.png", "sub/deep.png", str(tmp_path / "data" / "near.png"), f"file://{tmp_path}/data/near.png"]
    outside = [
        far,
        "../far.png",
        "../data of others/x.png",
        str(tmp_path / "data of others" / "x.png"),
        "link.png",
        "folder/far.png",
        f"file://{far}",
        f"file://localhost{far}",
        "/etc/passwd",
    ]
    remote = [f"{address}/x.png", "s3://bucket/x.png", "ftp://127.0.0.1/x", "hf://datasets/a/b/x.png", "gs://a/b"]
    remote += [f"zip://x.png::{address}/a.zip", f"filecache::{address}/x.png", f"zip://x.png::{far}"]
    cells = [{"bytes": None, "path": path} for path in (*own, *outside, *remote)]
    source = str(write_cells(tmp_path / "data" / "x.parquet", [*cells, None, {"bytes": b"", "path": far}]))
    collection = open_collection(source)
    outcomes = [outcome(collection, i) for i in range(len(collection))]
    assert outcomes[: len(own)] == [5] * len(own)
    for reason in outcomes[len(own) : len(own) + len(outside)]:
        assert "outside of the data's own folder" in str(reason)
    for reason in outcomes[len(own) + len(outside) : -2]:
        assert "nothing is fetched unless allow_remote is set" in str(reason)
    assert outcomes[-2:] == ["it is empty", "it is empty"]
    assert asked == []
    assert collection.source_stat(len(own)) is None
    assert collection.content_digest(len(own)) is None
    allowed = open_collection(source, rules=ReadingRules(allow_outside=True))
    assert [outcome(allowed, i) for i in range(len(own), len(own) + len(outside) - 1)] == [5] * (len(outside) - 1)
    assert "nothing is fetched" in str(outcome(allowed, len(own) + len(outside)))


def test_what_is_fetched_when_asked(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, _ = server
    write_grey(tmp_path / "far.png", 5)
    paths = [f"{address}/x.png", f"{address}/gone", f"{address}/redirect", "http://127.0.0.1:1/x.png", "nosuch://a/b"]
    local = ["local:///etc/hosts", f"simplecache::file://{tmp_path}/far.png"]
    cells = [{"bytes": None, "path": path} for path in (*paths, *local)]
    source = write_cells(tmp_path / "data" / "x.parquet", cells)
    collection = open_collection(str(source), rules=ReadingRules(allow_remote=True))
    outcomes = [outcome(collection, i) for i in range(len(collection))]
    assert outcomes[0] == 77
    for reason in outcomes[1:5]:
        assert "it can't be fetched: " in str(reason)
    for reason in outcomes[5:]:
        assert "allow_outside" in str(reason)
    assert "file" in str(outcomes[2])  # a redirection leads to no file here


def test_one_bad_address_does_not_end_a_stream(tmp_path: Path) -> None:
    good = {"bytes": encoded(Image.new("L", (4, 4), 9), "PNG"), "path": None}
    write_cells(tmp_path / "x.parquet", [{"bytes": None, "path": "http://127.0.0.1:1/x"}, good])
    images = StreamingImages(
        open_stream(str(tmp_path)),
        Augmentation(channels=1, resolution=4, latent_channels=1, spatial_factor=4, seed=1),
    )
    sample = next(images.samples(start=0))
    assert [skipped.name for skipped in sample.skipped] == ["http://127.0.0.1:1/x"]


def test_addresses_are_told_from_paths() -> None:
    assert all(map(is_address, ["http://a/b", "S3://a", "filecache::x", "hf://datasets/a/b", "file:/a"[:5] + "//a"]))
    assert not any(map(is_address, ["a/b.png", "/a/b", "C:\\a.png", "a:b.png", "2020-01-01T10:00.png", ""]))
    assert address_roots("zip://a.png::https://x/y.zip") == ["https://x/y.zip"]


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array([[{"bytes": b"x", "path": None}]], pa.list_(CELL)), "lists"),
        (pa.array([1]), "values of type int64"),
        (pa.array([0.5]), "values of type float64"),
        (pa.array([True]), "values of type bool"),
        (pa.array([[1.0, 2.0]]), "lists"),
        (pa.array([{"a": 1, "b": 2}]), "structs of a, b"),
        (pa.array([None], pa.null()), "values of type null"),
    ],
)
@pytest.mark.parametrize("open_data", [open_collection, open_stream])
def test_a_column_without_images_is_one_line(tmp_path: Path, column: pa.Array, what: str, open_data: object) -> None:
    pq.write_table(pa.table({"x": column, "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f"^data: the column 'x' of .* holds {what}, no images") as caught:
        open_data(str(tmp_path), image_column="x")  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_columns_of_bytes_and_of_paths(tmp_path: Path, kind: pa.DataType) -> None:
    write_grey(tmp_path / "data" / "a.png", 5)
    content = (tmp_path / "data" / "a.png").read_bytes()
    value = content if "binary" in str(kind) else "a.png"
    pq.write_table(pa.table({"x": pa.array([value], kind)}), tmp_path / "data" / "a.parquet")
    assert outcome(open_collection(str(tmp_path / "data" / "a.parquet"), image_column="x"), 0) == 5
