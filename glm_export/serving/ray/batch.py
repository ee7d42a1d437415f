"""A file of requests, answered by engines on many machines: a block of lines each, every line once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any

from glm_export.cluster.options import WorkerOptions
from glm_export.errors import EnvironmentMissingError
from glm_export.serving.batch import AHEAD, Answers, Line, answer_lines, application
from glm_export.serving.in_process import App
from glm_export.serving.options import ServeOptions

BLOCK_ROWS = 4
"""Lines of a block for each row of an engine: what a worker's death costs, and what has to be asked again."""


class AnsweringWorker:
    """An engine in a process of its own. Ray makes it."""

    def __init__(self, source: str, options: ServeOptions) -> None:
        self._open = ExitStack()
        self._app: App | None = None
        self._source, self._options = source, options
        self._at_once = AHEAD * options.max_batch

    async def do(self, lines: list[Line]) -> list[Line]:
        """Answers of a block, in the order in which they were ready.

        Raises:
            GlmExportError: the model cannot be loaded; in a constructor Ray would take it for a death.
        """
        if self._app is None:
            self._app = self._open.enter_context(application(self._source, self._options))
        told: list[Line] = []
        await answer_lines(self._app, lines, told.append, self._at_once)
        return told


def by_workers(source: str, options: ServeOptions, asked: WorkerOptions) -> Answers:
    """Engines on a Ray cluster, for :func:`glm_export.serving.batch.answer_batch`.

    Args:
        source: an exported folder, engine, checkpoint or embedded model, found on every node.
        options: of each engine; without ``threads`` it has a node's processors.
        asked: how many, and where.

    Raises:
        GlmExportError: when lines are to be answered: Ray or the cluster is missing, or the model cannot be loaded.
    """

    def answering(lines: Iterator[Line], take: Callable[[Line], None]) -> None:
        from glm_export.cluster.join import joined
        from glm_export.cluster.pool import pooled

        with joined(asked.ray_address) as nodes:
            cpus = options.threads or nodes.most
            workers = asked.workers or nodes.engines(cpus)
            if not workers:
                raise EnvironmentMissingError(
                    f"no node has {cpus or 1} processors for an engine; add nodes, or give fewer --threads"
                )
            blocks = _blocks(lines, BLOCK_ROWS * options.max_batch)
            given: dict[str, Any] = {"num_cpus": cpus}
            for _, told in pooled(AnsweringWorker, (source, options), blocks, workers=workers, options=given):
                for line in told:
                    take(line)

    return answering


def _blocks(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    while block := list(islice(lines, size)):
        yield block
