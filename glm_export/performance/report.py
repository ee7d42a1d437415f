"""What is measured, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from glm_export.errors import InputError
from glm_export.machine.facts import Machine

if TYPE_CHECKING:  # runtimes are imported where they are used
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure. ``threads`` None: as many as a session takes by itself."""

    prompt_tokens: int = 512
    context: int = 128
    new_tokens: int = 64
    batch: int = 1
    rounds: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise InputError(f"{field.name} must be at least 1, found {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """Medians over the rounds; a step's percentiles are over the steps of all rounds.

    Sizes are bytes. ``step_weight_bytes`` are the weights a decode step reads: an embedding table counts with the rows
    it gives. ``libraries_anonymous_bytes`` was held before the model was opened, and is part of the peak. Figures of
    memory and bandwidth are None where the system does not tell.
    """

    model: str
    runtime: str
    dialect: str | None
    dtype: str
    device: str
    options: BenchOptions
    load_s: float
    prefill_tokens_s: float
    first_token_s: float
    decode_tokens_s: float
    step_p50_ms: float
    step_p90_ms: float
    step_p99_ms: float
    peak_anonymous_bytes: int | None
    peak_file_bytes: int | None
    libraries_anonymous_bytes: int | None
    step_weight_bytes: int
    step_cache_bytes: int
    bandwidth_bytes_s: float | None
    machine: Machine
    device_memory_bytes: int | None = None
    """In use on the GPU, by all; of engines."""

    @property
    def floor_ms(self) -> float | None:
        """The least time a decode step can take at the bandwidth measured beside it."""
        if self.bandwidth_bytes_s is None:
            return None
        return 1000 * (self.step_weight_bytes + self.step_cache_bytes) / self.bandwidth_bytes_s

    @property
    def share_of_floor(self) -> float | None:
        """Decoding speed over that of steps that take no longer than the floor; 1 is reading at full bandwidth."""
        return None if self.floor_ms is None else self.decode_tokens_s * self.floor_ms / (1000 * self.options.batch)

    def to_json(self) -> dict[str, Any]:
        """Plain values, floor and share included."""
        return asdict(self) | {"floor_ms": self.floor_ms, "share_of_floor": self.share_of_floor}
