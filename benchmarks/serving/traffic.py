"""What streams ask of a server, the same for whoever is asked, and what they see; of the standard library alone."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Traffic:
    """What streams ask. ``prompt_tokens``, ``new_tokens``: least and most. ``ids``: prompts are drawn from these.

    ``alike``: share of prompts that begin alike, for half of the shortest prompt at least.
    """

    prompt_tokens: tuple[int, int] = (16, 256)
    new_tokens: tuple[int, int] = (16, 128)
    ids: tuple[int, int] = (300, 2000)
    alike: float = 0.5
    temperature: float = 0.8

    def requests(self, seed: int) -> Iterator[tuple[list[int], int]]:
        """A stream's prompts and the lengths of their answers, the same for whoever is asked."""
        draw, alike = random.Random(seed), random.Random(0)
        shared = [alike.randrange(*self.ids) for _ in range(self.prompt_tokens[1] // 2)]
        while True:
            count, answer = _between(draw, self.prompt_tokens), _between(draw, self.new_tokens)
            begun = shared[: count // 2] if draw.random() < self.alike else []
            yield [*begun, *(draw.randrange(*self.ids) for _ in range(count - len(begun)))], answer


def _between(draw: random.Random, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return round(math.exp(draw.uniform(math.log(low), math.log(high))))


@dataclass
class Seen:
    """What all streams have seen. Times in seconds."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Figures of a table."""
        return {
            "tokens_s": self.tokens / self.seconds, "first_p50_ms": 1e3 * quantile(self.first, 50),
            "first_p99_ms": 1e3 * quantile(self.first, 99), "between_p50_ms": 1e3 * quantile(self.between, 50),
            "between_p99_ms": 1e3 * quantile(self.between, 99), "answers": self.answers, "errors": len(self.errors),
        }  # fmt: skip


def quantile(values: list[float], percent: int) -> float:
    """Of few values the largest for what lies beyond them; NaN of none."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] if values else math.nan
