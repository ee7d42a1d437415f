"""What is known of one HTTP request when it has been answered: a line of the access log, and of a trace."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from glm_export.serving.request import Event

LOG = logging.getLogger("glm_export.access")


@dataclass(slots=True)
class Tally:
    """What was read and written for a request, by all its rows. No text is kept.

    ``first_token_s``: from the request's coming; None where nothing was written. ``finish_reasons``: of each row.
    """

    model: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)

    def begin(self, model: str, prompts: Iterable[tuple[int, ...]]) -> None:
        """Rows of a model begin; a prompt counts once, however many rows go on behind it."""
        self.model = model
        self.prompt_tokens += sum(map(len, set(prompts)))

    def take(self, event: Event) -> None:
        """One event of a row."""
        if event.token is not None:
            self.generated_tokens += 1
            if self.first_token_s is None:
                self.first_token_s = time.perf_counter() - self._began
        if event.finish_reason is not None:
            self.finish_reasons.append(event.finish_reason)
            self.cached_tokens += event.cached_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """A request and its answer. ``first_byte_s``: until the body began. ``ended_ns``: by the system's clock.

    ``headers``: the request's. ``tally``: empty where no model was asked.
    """

    request_id: str
    method: str
    path: str
    status: int
    first_byte_s: float
    seconds: float
    ended_ns: int
    headers: dict[str, str]
    tally: Tally

    def to_json(self) -> dict[str, Any]:
        """A line of the access log; headers are left out, since keys are among them."""
        told: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "first_byte_s": round(self.first_byte_s, 4),
            "seconds": round(self.seconds, 4),
        }
        tally = self.tally
        if tally.model is None:
            return told
        first = tally.first_token_s
        return told | {
            "model": tally.model,
            "prompt_tokens": tally.prompt_tokens,
            "cached_tokens": tally.cached_tokens,
            "generated_tokens": tally.generated_tokens,
            "first_token_s": None if first is None else round(first, 4),
            "finish_reasons": tally.finish_reasons,
        }


Observer = Callable[[RequestRecord], None]


def log_request(record: RequestRecord) -> None:
    """A line of JSON, where somebody reads it."""
    if LOG.isEnabledFor(logging.INFO):
        LOG.info(json.dumps(record.to_json(), ensure_ascii=False))
