"""An engine on a machine of the cluster: the server's own application, asked by a call instead of a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ray import serve

from glm_export.serving.http.app import create_app
from glm_export.serving.http.served import opened
from glm_export.serving.in_process import Answer, Call, answered, pieces
from glm_export.serving.metrics.exposition import exposition
from glm_export.serving.metrics.record import LOG
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.autoscaling import UNREAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request on its way to a replica. ``pieces``: of its beginning, for the router."""

    call: Call
    pieces: tuple[bytes, ...] = ()


class EngineReplica:
    """One model, its engine and its doors. Ray Serve makes it, asks it how it does, and ends it when it is idle."""

    def __init__(self, name: str, source: str, options: ServeOptions, *, access_log: bool = False) -> None:
        """Load the model.

        Args:
            name: what requests call it.
            source: an exported folder, engine, checkpoint or embedded model, on this machine.
            options: as of a server; who may ask is known before a request comes here.
            access_log: whether each request is a line of the replica's log.

        Raises:
            GlmExportError: it cannot be loaded.
        """
        if access_log:
            LOG.addHandler(logging.StreamHandler())
            LOG.setLevel(logging.INFO)
        self._drain_s = options.drain_seconds
        self._open = ExitStack()
        self._models = self._open.enter_context(opened([source], options, [name]))
        (self._model,) = self._models.values()
        self._app = create_app(self._models, options, frozenset())

    async def whole(self, asked: Asked) -> Answer:
        """All of an answer."""
        return await answered(self._app, asked.call)

    async def streamed(self, asked: Asked) -> AsyncIterator[Answer | bytes]:
        """An answer as it comes: its beginning, then pieces of its body."""
        async for piece in pieces(self._app, asked.call):
            yield piece

    async def exposition(self) -> tuple[str, bytes]:
        """The replica's name, and what this engine has done, in Prometheus' text format."""
        name = serve.get_replica_context().replica_id.unique_id
        return name, exposition({name: model.worker for name, model in self._models.items()})

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's autoscaler looks at, besides requests."""
        return {UNREAD: float(self._model.worker.unread_tokens)}

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises.

        Raises:
            RuntimeError: nobody drives the engine any more.
        """
        if not self._model.worker.alive:
            raise RuntimeError(f"the engine of {self._model.name} has ended; the replica is to be replaced")

    async def __del__(self) -> None:
        """Ray Serve ends a replica that has answered what it accepted."""
        opened_models: Any = getattr(self, "_open", None)
        if opened_models is not None:
            await asyncio.to_thread(self._model.worker.drain, self._drain_s)
            opened_models.close()
