"""A Ray cluster: found or started, and what it has for those who compute on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ldm_vae.config.rules import FieldError, RunError
from ldm_vae.system.text import one_line

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What each actor gets of a cluster as it is now."""

    num_actors: int
    gpus: float
    """GPUs of each actor: one where the cluster has any, else none."""
    batches_ahead: int
    """Batches that each actor has decoded, or asked for, beside the one that it encodes."""


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Yield the package `ray`, connected; what was connected or started here is let go when the block ends.

    Args:
        address: `auto` for the cluster that runs on this machine or that RAY_ADDRESS names, `local` to start one for
            the length of the block, or `ray://HOST:PORT`.

    Raises:
        FieldError: Ray isn't installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise FieldError("<engine> ray needs a package: pip install 'ldm-vae[ray]'") from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address == "local":
                ray.init(address="local", include_dashboard=False, **options)
            else:
                ray.init(address=address, **options)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError, by the kind of address
            raise FieldError(
                f"<ray.address> is {address}, where no Ray cluster answers ({one_line(error)[:200]}); start one with "
                f"`ray start --head`, or take local"
            ) from None
    try:
        yield ray
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
        if isinstance(cause, (ValueError, OSError)):  # what a local encode would have raised
            raise cause from None
        raise RunError(f"the Ray cluster failed: {one_line(error)[-400:]}") from None
    finally:
        if ours:
            ray.shutdown()


def on_device(ray: Any, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function of a module gives where an actor would be: on a GPU, where the cluster has any."""
    task = ray.remote(function).options(num_cpus=0, num_gpus=shares(ray).gpus, max_retries=-1)
    return ray.get(task.remote(*arguments))


def shares(ray: Any) -> Shares:
    """Divide a cluster: an actor for each GPU, or for each node where there are none; the CPUs decode for them."""
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    nodes = sum(node["Alive"] for node in ray.nodes())
    num_actors = max(1, gpus or nodes)
    ahead = max(2, 2 * int(resources.get("CPU", 1)) // num_actors)
    return Shares(num_actors=num_actors, gpus=1.0 if gpus else 0.0, batches_ahead=ahead)
