"""What a Triton model has done, among the metrics of its server: the names that ``glm-export serve`` has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from glm_export.serving.worker import Worker

LOG = logging.getLogger(__name__)
GAUGES: dict[str, tuple[str, Callable[[Worker], int]]] = {
    "glm_requests_running": ("Rows that are written.", lambda w: w.running),
    "glm_requests_waiting": ("Requests without a row.", lambda w: w.waiting),
}
COUNTERS: dict[str, tuple[str, Callable[[Worker], int]]] = {
    "glm_prompt_tokens_total": ("Of prompts that were read.", lambda w: w.counts.prompt_tokens),
    "glm_prompt_tokens_cached_total": ("Of prompts, not read again.", lambda w: w.counts.cached_tokens),
    "glm_generation_tokens_total": ("Written.", lambda w: w.counts.generated_tokens),
    "glm_engine_steps_total": ("Done.", lambda w: w.counts.steps),
}
ENDED = "glm_requests_total"


class Gauges:
    """Metrics of one instance; what cannot be told is logged once, and the model lives on.

    Args:
        triton: ``triton_python_backend_utils``.
        worker: whose they are.
        labels: of each.
    """

    def __init__(self, triton: Any, worker: Worker, labels: dict[str, str]) -> None:
        self._worker, self._labels = worker, labels
        self._told: dict[str, int] = {}
        self._metrics: dict[str, Any] = {}
        self._families: list[Any] = []
        self._ended: Any = None
        try:
            kinds = triton.MetricFamily
            for known, kind in ((GAUGES, kinds.GAUGE), (COUNTERS, kinds.COUNTER)):
                for name, (said, _) in known.items():
                    family = kinds(name=name, description=said, kind=kind)
                    self._families.append(family)
                    self._metrics[name] = family.Metric(labels=labels)
            self._ended = kinds(name=ENDED, description="That ended.", kind=kinds.COUNTER)
        except Exception:  # a server that was built, or started, without metrics
            LOG.info("this server takes no metrics")
            self._metrics = {}

    def observe(self) -> None:
        """Tell how it is now."""
        if not self._metrics:
            return
        try:
            for name, (_, value) in GAUGES.items():
                self._change(name, self._metrics[name].set, value(self._worker), 0)
            for name, (_, value) in COUNTERS.items():
                self._change(name, self._metrics[name].increment, value(self._worker), self._told.get(name, 0))
            for reason, count in list(self._worker.counts.requests.items()):
                name = f"{ENDED} {reason}"
                if name not in self._metrics:
                    self._metrics[name] = self._ended.Metric(labels=self._labels | {"finish_reason": reason})
                self._change(name, self._metrics[name].increment, count, self._told.get(name, 0))
        except Exception:
            LOG.exception("metrics cannot be told")
            self._metrics = {}

    def _change(self, name: str, tell: Callable[[float], None], value: int, before: int) -> None:
        """Each call asks the server, so only what changed is told. A counter is told what is new."""
        if self._told.get(name) != value:
            tell(float(value - before))
            self._told[name] = value
