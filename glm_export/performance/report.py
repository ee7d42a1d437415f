"""What is measured, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from glm_export.errors import InputError
from glm_export.spec.option import described, listed, options_of
from glm_export.spec.summary import Summarized

if TYPE_CHECKING:  # it needs torch; to say what may be measured does not
    from glm_export.machine.facts import Machine


class BenchKeywords(TypedDict, total=False):
    """The fields of :class:`BenchOptions`, as keywords."""

    prompt_tokens: int
    context: int
    new_tokens: int
    batch: int
    rounds: int
    threads: int | None


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    prompt_tokens: int = field(default=512, metadata=described("To read at once, for prefill."))
    context: int = field(default=128, metadata=described("Tokens before decoding starts."))
    new_tokens: int = field(default=64, metadata=described("To decode."))
    batch: int = field(default=1, metadata=described("Rows at once."))
    rounds: int = field(default=3, metadata=described("Of which the median counts."))
    threads: int | None = field(
        default=None, metadata=described("Of one operator; without it, what a session takes by itself.")
    )

    def __post_init__(self) -> None:
        for name in options_of(type(self)):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, found {value}")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BenchReport(Summarized):
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

    def summary(self) -> dict[str, str]:
        """What ran where, and how fast."""
        told = {
            "model": self.model,
            "runtime": f"{self.runtime} on {self.device}",
            "dtype": self.dtype,
            "prefill": f"{self.prefill_tokens_s:,.0f} tokens/s",
            "decode": f"{self.decode_tokens_s:,.1f} tokens/s",
            "first token": f"{1000 * self.first_token_s:,.1f} ms",
            "load": f"{self.load_s:.2f} s",
        }
        if self.peak_anonymous_bytes is not None:
            told["memory"] = f"{self.peak_anonymous_bytes / 1e9:.2f} GB"
        return told

    def to_json(self) -> dict[str, Any]:
        """Plain values, floor and share included."""
        return asdict(self) | {"floor_ms": self.floor_ms, "share_of_floor": self.share_of_floor}
