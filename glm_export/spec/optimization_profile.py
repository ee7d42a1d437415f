"""The limits an engine is built for, and the shapes of one optimization profile."""

from __future__ import annotations

from dataclasses import dataclass, fields

from glm_export.errors import InputError

PREFILL, DECODE = "prefill", "decode"

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most an engine takes: rows of a decode step, rows and tokens read at once, and tokens of a row in all.

    Prefill scratch grows with rows: TensorRT repeats shared heads there (138 MB a row for 32 heads and 8192 columns).
    """

    max_batch: int
    max_context: int
    prefill_tokens: int
    prefill_batch: int = 1

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise InputError(f"--{limit.name.replace('_', '-')} must be at least 1, found {value}")
        if self.prefill_batch > self.max_batch:
            raise InputError(f"--prefill-batch {self.prefill_batch} exceeds --max-batch {self.max_batch}")
        if self.prefill_tokens > self.max_context:
            raise InputError(f"--prefill-tokens {self.prefill_tokens} exceeds --max-context {self.max_context}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationProfile:
    """Least, usual and largest shape of every input."""

    name: str
    shapes: dict[str, tuple[Shape, Shape, Shape]]
