"""Workers that keep something dear (a model) between one thing and the next, on any node; results come as they are."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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
    from ray import exceptions

    remote: Any = ray.remote(**options, max_concurrency=AHEAD)(worker)
    pool = [remote.remote(*arguments) for _ in range(workers)]
    under_way: dict[Any, tuple[Any, Given]] = {}
    given_back: deque[Given] = deque()
    rest, deaths = iter(things), 0

    def hand_out() -> None:
        for actor in pool:
            while sum(whose is actor for whose, _ in under_way.values()) < AHEAD:
                thing = given_back.popleft() if given_back else next(rest, None)
                if thing is None:
                    return
                under_way[actor.do.remote(thing)] = actor, thing

    try:
        hand_out()
        while under_way:
            (ready,), _ = ray.wait(list(under_way), num_returns=1)
            actor, thing = under_way.pop(ready)
            try:
                made = ray.get(ready)
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, GlmExportError):
                    raise error.cause from error
                raise
            except exceptions.RayError as error:
                given_back.append(thing)
                if actor in pool:
                    deaths += 1
                    pool[pool.index(actor)] = remote.remote(*arguments)
                if deaths > MOST_DEATHS:
                    raise EnvironmentMissingError("workers die one after another; see `ray status`") from error
            else:
                deaths = 0
                yield thing, made
            hand_out()
    finally:
        for actor in pool:
            with contextlib.suppress(exceptions.RayError):
                ray.kill(actor)
