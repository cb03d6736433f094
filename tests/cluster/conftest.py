# SPDX-License-Identifier: Apache-2.0
"""Two local nodes of a Ray cluster, with a processor each; the head has none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

# Processes that Ray starts take these from here; they must find what the tests find.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# By this, processes of these tests are known.
os.environ["STC_TESTS"] = str(os.getpid())
for folder in ("session", "video", "serve", "evaluation"):
    sys.path.append(str(Path(__file__).parents[1] / folder))


if find_spec("ray") is None:  # `make test-ray` puts it into a folder of its own
    collect_ignore_glob = ["test_*.py"]


class Nodes:
    """A cluster whose nodes can be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address: str = self.cluster.address
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill(self) -> str:
        """Kill the last node with all its processes, as if its plug was pulled; its id."""
        node = self.workers.pop()
        self.cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def add(self) -> None:
        self.workers.append(self.cluster.add_node(num_cpus=1))


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.cluster.shutdown()


@pytest.fixture
def nodes(_cluster: Nodes) -> Iterator[Nodes]:
    """Two nodes, and nobody connected afterwards."""
    import ray

    while len(_cluster.workers) < 2:
        _cluster.add()
    yield _cluster
    ray.shutdown()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llava import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
