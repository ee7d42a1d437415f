"""How a server is spread over a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from glm_export.errors import InputError
from glm_export.spec.option import described, listed, require_known

ROUTINGS = ("prefix", "load", "random")
PROXIES = ("HeadOnly", "EveryNode")


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Replicas, where they run, and which of them a request goes to."""

    ray_address: str | None = field(
        default=None, metadata=described("Cluster to join (`auto`, HOST:PORT, ray://…); none begins one here.")
    )
    replicas: int | None = field(default=None, metadata=described("Engines of each model, always.", least=1, most=4096))
    min_replicas: int | None = field(
        default=None, metadata=described("Engines of each model at least, where load says how many.", least=1)
    )
    max_replicas: int | None = field(
        default=None, metadata=described("Engines of each model at most, where load says how many.", least=1)
    )
    target_tokens: int = field(
        default=4096,
        metadata=described("Of prompts that wait to be read, for each engine; more of them want more.", least=1),
    )
    upscale_seconds: float = field(default=10.0, metadata=described("Load lasts this long before engines are added."))
    downscale_seconds: float = field(default=300.0, metadata=described("And is gone this long before one ends."))
    cpus: int | None = field(
        default=None, metadata=described("Processors of an engine, and its threads where --threads is left out.")
    )
    gpus: float = field(default=0.0, metadata=described("Graphics processors of an engine, or a part of one."))
    routing: str = field(
        default="prefix",
        metadata=described(
            "A request goes where its beginning was read, or to the engine with less.", choices=ROUTINGS
        ),
    )
    ingress_replicas: int = field(
        default=1, metadata=described("Processes before the engines; one stands on the head node.", least=1)
    )
    proxies: str = field(
        default="HeadOnly", metadata=described("Nodes that listen at --host and --port.", choices=PROXIES)
    )
    app_name: str = field(default="glm-export", metadata=described("Of the application; its like is updated."))
    detach: bool = field(default=False, metadata=described("Leave it running, and end."))

    def __post_init__(self) -> None:
        require_known(self, "routing", "proxies")
        bounds = self.min_replicas is not None or self.max_replicas is not None
        if bounds and self.replicas is not None:
            raise InputError("--replicas says how many engines always, --min-replicas and --max-replicas let load say")
        if self.min_replicas is not None and self.max_replicas is None:
            raise InputError("--min-replicas wants --max-replicas: the most that load may bring")
        if (self.max_replicas or 0) < (self.min_replicas or 0) and bounds:
            raise InputError(f"--min-replicas {self.min_replicas} are more than --max-replicas {self.max_replicas}")
        if self.detach and self.ray_address is None:
            raise InputError("--detach leaves an application on a cluster that goes on; say which by --ray-address")

    @property
    def autoscales(self) -> bool:
        """Whether load says how many engines there are."""
        return self.max_replicas is not None

    @property
    def most_replicas(self) -> int:
        """Of each model."""
        return self.max_replicas or self.replicas or 1
