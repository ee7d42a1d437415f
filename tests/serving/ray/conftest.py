"""A Ray cluster of several nodes on this machine, and what one machine answers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.serving.http.app import create_app
from glm_export.serving.http.served import opened
from glm_export.serving.in_process import Call, answered
from glm_export.serving.options import ServeOptions

ROOT = Path(__file__).parents[3]


@dataclass
class Nodes:
    """``cluster``: Ray's own, of a head without processors and nodes for engines. ``added``: those, by age."""

    cluster: Any
    added: list[Any] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, cpus: int = 1) -> None:
        self.added.append(self.cluster.add_node(num_cpus=cpus, object_store_memory=80 << 20))

    def kill(self, number: int) -> None:
        """All processes of a node, at once, as when its power fails."""
        self.cluster.remove_node(self.added.pop(number), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Three nodes: a head, and two for an engine each."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        logging.getLogger("ray").setLevel(logging.ERROR)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20},
        )
        made = Nodes(cluster)
        made.add()
        made.add()
        yield made
        cluster.shutdown()


@pytest.fixture(scope="session")
def ort_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in the dialect whose rows stand alone."""
    return api.export("demo", tmp_path_factory.mktemp("ray") / "poems", dialect="ort", logits="all").folder


@pytest.fixture(scope="session")
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def one_machine() -> Callable[..., list[dict[str, Any]]]:
    """What the server answers without a cluster."""

    def answers(source: Path, options: ServeOptions, path: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        with opened([str(source)], options) as models:
            app = create_app(models, options, frozenset())

            async def all_of_them() -> list[Any]:
                calls = [Call(path=path, body=json.dumps(body).encode()) for body in bodies]
                return list(await asyncio.gather(*(answered(app, call) for call in calls)))

            return [json.loads(answer.body) for answer in asyncio.run(all_of_them())]

    return answers
