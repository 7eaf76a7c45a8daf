"""Actors and tasks on a Ray cluster: what they hold, how they compute, and what becomes of them when they die."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ldm_vae.system import ray_actors
from ldm_vae.system.cores import usable_cores
from ldm_vae.system.ray_actors import RayActor, RayActors
from tests.clusters import ray_nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.processes, pytest.mark.cluster]


class Holder(RayActor):
    """Tells what it was given, where and with how many threads; the piece 13 ends its process, once."""

    def set_up(self, *arguments: Any) -> None:
        self._word, self._died = arguments

    def wait(self, piece: int) -> int:
        time.sleep(0.2)
        return piece

    def tell(self, arguments: list[Any], piece: int) -> tuple[str, int, int, int]:
        self.ready(arguments)
        if piece == 13 and not os.path.exists(self._died):
            open(self._died, "x").close()
            os._exit(1)
        return self._word, self.batches_ahead, piece, torch.get_num_threads()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield from ray_nodes()


@pytest.mark.parametrize("threads", ["3", None])
def test_actors_hold_what_they_were_given_also_when_they_are_started_anew(
    cluster: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, threads: str | None
) -> None:
    """Each piece comes once; Ray has nothing to warn of; they compute with the threads that a command takes."""
    import ray

    if threads is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    actors = RayActors(ray, Holder, arguments=["a word", str(tmp_path / "died")])
    told = list(actors.each(lambda actor, piece: actor.tell.remote(actors.arguments, piece), range(20)))
    expected = [("a word", 2, piece, int(threads or usable_cores())) for piece in range(20)]
    assert sorted(told, key=lambda each: each[2]) == expected
    assert (tmp_path / "died").exists()
    assert "object store" not in "".join(capfd.readouterr())


def test_what_an_actor_has_that_waits_for_a_gpu_is_done_by_others(
    cluster: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with a GPU goes and doesn't come back; each piece comes once all the same."""
    import ray

    monkeypatch.setattr(ray_actors, "_LOOK_SECONDS", 0.5)
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=10**8) for _ in range(2)]
    actors = RayActors(ray, Holder, arguments=["a word", str(tmp_path / "died")])
    told = []
    for piece in actors.each(lambda actor, piece: actor.wait.remote(piece), range(24)):
        told.append(piece)
        if len(told) == 4:
            cluster.remove_node(nodes.pop(), allow_graceful=False)
    assert sorted(told) == list(range(24))
    cluster.remove_node(nodes.pop(), allow_graceful=False)
