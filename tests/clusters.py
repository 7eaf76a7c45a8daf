"""A Ray cluster of this machine's, for the tests that need one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.launching import ENVIRONMENT, reserve_port


def client_address(cluster: Any) -> str:
    """Return the address for drivers that are no part of the cluster."""
    return f"ray://127.0.0.1:{cluster.head_node._ray_params.ray_client_server_port}"


def ray_nodes() -> Iterator[Any]:
    """Yield a cluster of two nodes, to which this process is connected."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)}.items():
            patch.setenv(name, value)
        cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": 10**8,
                "ray_client_server_port": reserve_port(),
            },
        )
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
        ray.init(address=cluster.address, log_to_driver=False)  # one job, whose processes the tests share
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
