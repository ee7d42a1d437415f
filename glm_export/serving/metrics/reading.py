"""A server's metrics, read again: what each model does now, and how fast between two readings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from glm_export.errors import EnvironmentMissingError, InputError

SECONDS = 10
LONGEST = 16 << 20
Values = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """``models``: values by metric, of each model. ``at``: when, in monotonic seconds."""

    models: dict[str, Values]
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """What one model does. Rates are tokens a second; ``first_token_s`` is a mean, None where no first token came."""

    model: str
    running: int
    waiting: int
    read_rate: float
    written_rate: float
    prefix_bytes: int
    first_token_s: float | None


class _Stay(HTTPRedirectHandler):
    """A key goes to the server it was given for, and to no other."""

    def redirect_request(self, *_: object) -> None:
        """Nowhere."""


def read_metrics(address: str, key: str | None = None) -> Reading:
    """What a server says of itself.

    Args:
        address: the server's, with or without ``/v1``.
        key: one that opens it.

    Raises:
        EnvironmentMissingError: nobody answers there.
        InputError: it is no such address, it wants another key, or whoever answers is no server of ours.
    """
    address = address.rstrip("/").removesuffix("/v1")
    if not address.startswith(("http://", "https://")):
        address = f"http://{address}"
    try:
        asked = Request(f"{address}/metrics", headers={} if key is None else {"Authorization": f"Bearer {key}"})
        with build_opener(_Stay).open(asked, timeout=SECONDS) as answer:
            text = answer.read(LONGEST).decode("utf-8", errors="replace")
    except HTTPError as error:
        # It is the answer as well, and holds its connection.
        error.close()
        if error.code == 401:
            raise InputError(
                f"{address} wants a key; give --api-key-file FILE, of which the first line counts"
            ) from error
        raise InputError(f"{address}/metrics answers with {error.code}; is it a server of glm-export's?") from error
    except (URLError, OSError, HTTPException) as error:
        told = getattr(error, "reason", None) or error
        raise EnvironmentMissingError(
            f"nobody answers at {address}: {told}; start one with `glm-export serve MODEL`"
        ) from error
    except ValueError as error:
        raise InputError(f"{address} is no address: {error}; give one like http://127.0.0.1:8000") from error
    reading = Reading(models=parsed(text))
    if not reading.models:
        raise InputError(f"{address}/metrics tells of no model; is it a server of glm-export's?")
    return reading


def parsed(text: str) -> dict[str, Values]:
    """Values by metric, of each model; what has other labels is summed.

    Raises:
        InputError: it is not Prometheus' text format.
        EnvironmentMissingError: what reads it is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise EnvironmentMissingError("prometheus-client is not installed; pip install 'glm-export[serve]'") from error
    found: dict[str, Values] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if "model" in sample.labels and "le" not in sample.labels and sample.name.startswith("glm_"):
                    values = found.setdefault(sample.labels["model"], {})
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(f"what came is not in Prometheus' text format: {error}") from error
    return found


def loads(before: Reading, now: Reading) -> list[ModelLoad]:
    """What each model does, its rates between two readings; a server that began anew in between counts from 0."""
    seconds = max(now.at - before.at, 1e-9)

    def grown(model: str, name: str) -> float:
        last, first = now.models[model].get(name, 0.0), before.models.get(model, {}).get(name, 0.0)
        return last - first if last >= first else last

    found = []
    for model, values in now.models.items():
        first_tokens = grown(model, "glm_time_to_first_token_seconds_count")
        waited = grown(model, "glm_time_to_first_token_seconds_sum")
        found.append(
            ModelLoad(
                model=model,
                running=int(values.get("glm_requests_running", 0)),
                waiting=int(values.get("glm_requests_waiting", 0)),
                read_rate=grown(model, "glm_prompt_tokens_total") / seconds,
                written_rate=grown(model, "glm_generation_tokens_total") / seconds,
                prefix_bytes=int(values.get("glm_prefix_bytes", 0)),
                first_token_s=waited / first_tokens if first_tokens else None,
            )
        )
    return found
