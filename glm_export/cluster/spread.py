"""A function applied on a cluster's nodes, to one thing after another; results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from glm_export.errors import EnvironmentMissingError, GlmExportError, one_line

Given = TypeVar("Given")
Made = TypeVar("Made")


def spread(
    function: Callable[[Given], Made], things: Iterable[Given], *, at_once: int, cpus: float = 1
) -> Iterator[Made]:
    """Apply a function to each thing, on any node.

    What a node that dies had under way is done again elsewhere, so the function may be called twice for a thing, and
    what it returned the first time is gone.

    Args:
        function: found on every node, of things and results that can be pickled.
        things: taken as there is room for them.
        at_once: how many are under way.
        cpus: processors of one.

    Yields:
        What it returned, in the order of the things.

    Raises:
        GlmExportError: what the function raised.
        EnvironmentMissingError: nodes died too often.
    """
    import ray
    from ray import exceptions

    remote: Any = ray.remote(num_cpus=cpus, max_retries=5)(function)
    under_way: deque[Any] = deque()
    rest = iter(things)

    def next_done() -> Any:
        try:
            return ray.get(under_way.popleft())
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, GlmExportError):
                raise error.cause from error
            raise
        except exceptions.RayError as error:
            raise EnvironmentMissingError(
                f"the cluster lost what was under way ({one_line(str(error))}); see `ray status`, and run it again"
            ) from error

    try:
        for thing in rest:
            under_way.append(remote.remote(thing))
            if len(under_way) >= at_once:
                yield next_done()
        while under_way:
            yield next_done()
    finally:
        for one in under_way:
            ray.cancel(one, force=True)
