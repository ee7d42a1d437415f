"""Workers that keep something dear (a model) between one thing and the next, on any node; results come as they are."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from glm_export.errors import EnvironmentMissingError, GlmExportError

Given = TypeVar("Given")
AHEAD = 2
"""Things a worker has: one that ends is followed at once."""
MOST_DEATHS = 20
"""Of workers in a row, none of which did anything."""


def pooled(
    worker: type, arguments: tuple[Any, ...], things: Iterable[Given], *, workers: int, options: dict[str, Any]
) -> Iterator[tuple[Given, Any]]:
    """Let workers do things, each thing until it is done once.

    What a worker that dies had under way goes to another, and one more is begun in its place.

    Args:
        worker: a class, found on every node; its ``do`` takes a thing, ``async``.
        arguments: of its constructor.
        things: taken as there is room for them.
        workers: how many.
        options: of each, as ``ray.remote`` takes them: ``num_cpus``, ``num_gpus``.

    Yields:
        Things, each once, with what was made of them, in the order in which that was ready.

    Raises:
        GlmExportError: what a worker raised.
        EnvironmentMissingError: one worker after another died.
    """
    import ray

    remote: Any = ray.remote(**options, max_concurrency=AHEAD)(worker)
    pool = _Pool(lambda: remote.remote(*arguments), iter(things), workers)
    try:
        pool.hand_out()
        while pool.under_way:
            done = pool.next_done()
            pool.hand_out()
            if done is not None:
                yield done
    finally:
        pool.end()


class _Pool(Generic[Given]):
    """Workers, what each has under way, and what has to be given to another."""

    def __init__(self, begin: Callable[[], Any], things: Iterator[Given], workers: int) -> None:
        self._begin, self._things = begin, things
        self._workers = [begin() for _ in range(workers)]
        self._given_back: deque[Given] = deque()
        self._deaths = 0
        self.under_way: dict[Any, tuple[Any, Given]] = {}

    def hand_out(self) -> None:
        """Give every worker as much as it may have."""
        for worker in self._workers:
            while sum(whose is worker for whose, _ in self.under_way.values()) < AHEAD:
                thing = self._given_back.popleft() if self._given_back else next(self._things, None)
                if thing is None:
                    return
                self.under_way[worker.do.remote(thing)] = worker, thing

    def next_done(self) -> tuple[Given, Any] | None:
        """What is ready first; None where that is a worker's death."""
        import ray
        from ray import exceptions

        (ready,), _ = ray.wait(list(self.under_way), num_returns=1)
        worker, thing = self.under_way.pop(ready)
        try:
            made = ray.get(ready)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, GlmExportError):
                raise error.cause from error
            raise
        except exceptions.RayError as error:
            self._given_back.append(thing)
            if worker in self._workers:
                self._deaths += 1
                self._workers[self._workers.index(worker)] = self._begin()
            if self._deaths > MOST_DEATHS:
                raise EnvironmentMissingError("workers die one after another; see `ray status`") from error
            return None
        self._deaths = 0
        return thing, made

    def end(self) -> None:
        """All of them."""
        import ray
        from ray import exceptions

        for worker in self._workers:
            with contextlib.suppress(exceptions.RayError):
                ray.kill(worker)
