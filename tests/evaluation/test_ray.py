"""`evaluate --engine ray`: the figures of one process to the last digit, and the same pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.config.commands.evaluate import EvaluateOptions
from ldm_vae.config.commands.shared import RayOptions
from ldm_vae.evaluation.evaluate import evaluate
from tests.clusters import ray_nodes
from tests.encodings import save_photos, save_vae
from tests.test_every_family import MODELS
from tests.tiny import tiny_family

pytest.importorskip("ray")
pytestmark = [pytest.mark.processes, pytest.mark.cluster]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield from ray_nodes()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resolution", [[16, 32], None])
def test_figures_are_those_of_one_process(cluster: Any, tmp_path: Path, resolution: list[int] | None) -> None:
    tiny_family(family="vq", **MODELS["vq"]).model.save_pretrained(tmp_path / "vq")
    vaes = [save_vae(tmp_path / "kl"), str(tmp_path / "vq")]
    photos = save_photos(tmp_path / "photos", count=41, broken=9)
    arguments: dict[str, Any] = {
        "vae": vaes,
        "data": photos,
        "resolution": resolution,
        "batch_size": 2,
        "report": False,
    }
    evaluate(EvaluateOptions(output=str(tmp_path / "local"), **arguments, num_workers=0))
    on_ray = {"engine": "ray", "ray": RayOptions(address=cluster.address)}
    summary = evaluate(EvaluateOptions(output=str(tmp_path / "ray"), **arguments, num_workers=0, **on_ray))
    assert [skipped.index for skipped in summary.skipped] == [9]
    local, remote = files(tmp_path / "local"), files(tmp_path / "ray")
    told = [json.loads(each.pop("metrics.json")) for each in (local, remote)]
    for each in told:
        del each["options"]
    assert told[1] == told[0]
    assert remote == local


def test_mistakes_are_one_line(cluster: Any, tmp_path: Path) -> None:
    vae, photos = save_vae(tmp_path / "vae"), save_photos(tmp_path / "photos", count=3, broken=1)
    on_ray: dict[str, Any] = {"vae": [vae], "data": photos, "output": str(tmp_path / "out"), "engine": "ray"}
    with pytest.raises(ValueError, match="panel is not for engine ray; give it to a local evaluate"):
        EvaluateOptions(**on_ray, panel=True, resolution=[16])
    with pytest.raises(ValueError, match=r"the image 0001\.png can't be read: "):
        evaluate(EvaluateOptions(**on_ray, strict=True, ray=RayOptions(address=cluster.address)))
    assert not (tmp_path / "out").exists()
