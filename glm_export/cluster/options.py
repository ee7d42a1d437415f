"""Work of one verb spread over a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glm_export.errors import InputError
from glm_export.spec.option import described, flag, listed


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Whether there are workers, and how many."""

    ray: bool = field(default=False, metadata=described("Let workers on a Ray cluster do it; needs the extra `ray`."))
    ray_address: str | None = field(
        default=None, metadata=described("With --ray: the cluster (`auto`, HOST:PORT); none begins one here.")
    )
    workers: int | None = field(
        default=None, metadata=described("With --ray: how many; as many as there are processors for.", least=1)
    )

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"ray_address": self.ray_address, "workers": self.workers}
        for name, value in given.items():
            if value is not None and not self.ray:
                raise InputError(f"{flag(WorkerOptions, name)} is for a Ray cluster; add --ray, or leave it out")
