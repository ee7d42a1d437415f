"""Being part of a Ray cluster for a while."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from glm_export.errors import EnvironmentMissingError, one_line


@dataclass(frozen=True, slots=True)
class Nodes:
    """``cpus``: of each node that lives, whole ones."""

    cpus: tuple[int, ...] = field(default=())

    @property
    def most(self) -> int:
        """Of one node; 0 where there is none."""
        return max(self.cpus, default=0)

    def engines(self, cpus: int) -> int:
        """Processes of so many processors that there is place for."""
        return sum(node // cpus for node in self.cpus)


def require_ray() -> None:
    """See that Ray is there.

    Raises:
        EnvironmentMissingError: it is not.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError(
            f"a Ray cluster needs {error.name}, which is not installed; pip install 'glm-export[ray]'"
        ) from error


@contextmanager
def joined(address: str | None) -> Iterator[Nodes]:
    """A cluster, for as long as the block lasts: one that runs, or one of this machine alone.

    Args:
        address: as ``ray.init`` takes it; None begins one here.

    Raises:
        EnvironmentMissingError: Ray is not installed, or nothing answers at the address.
    """
    require_ray()
    import ray

    # Ray's own default is to tell its makers how it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EnvironmentMissingError(
            f"no Ray cluster answers at {address or 'this machine'} ({one_line(str(error))}); see `ray status`"
        ) from error
    try:
        yield Nodes(tuple(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]))
    finally:
        ray.shutdown()
