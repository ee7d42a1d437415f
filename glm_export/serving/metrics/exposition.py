"""What a server has done, for Prometheus: vLLM's meanings under names of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from glm_export.serving.metrics.histogram import Histogram
from glm_export.serving.worker import Worker

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Collector(Collector):
    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        """All of them as they are now."""
        gauges = {
            "glm_requests_running": ("Rows that are written.", lambda w: w.running),
            "glm_requests_waiting": ("Requests without a row.", lambda w: w.waiting),
            "glm_prefix_bytes": ("Kept of what rows read before.", _prefix_bytes),
        }
        counters = {
            "glm_prompt_tokens": ("Of prompts that were read.", lambda w: w.counts.prompt_tokens),
            "glm_prompt_tokens_cached": ("Of prompts, not read again.", lambda w: w.counts.cached_tokens),
            "glm_generation_tokens": ("Written.", lambda w: w.counts.generated_tokens),
            "glm_engine_steps": ("Done.", lambda w: w.counts.steps),
            "glm_preemptions": ("Rows that made way for others.", lambda w: w.engine.preemptions),
            "glm_spec_decode_num_draft_tokens": ("Guesses that were read.", lambda w: w.engine.drafted),
            "glm_spec_decode_num_accepted_tokens": ("Guesses that rows wrote.", lambda w: w.engine.accepted),
        }
        kinds: tuple[tuple[Any, dict[str, tuple[str, Callable[[Worker], int]]]], ...]
        kinds = ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters))
        for kind, families in kinds:
            for name, (said, value) in families.items():
                family: Any = kind(name, said, labels=["model"])
                for model, worker in self._workers.items():
                    family.add_metric([model], value(worker))  # type: ignore[no-untyped-call]
                yield family
        yield from self._histograms()
        ended = CounterMetricFamily("glm_requests", "That ended.", labels=["model", "finish_reason"])
        for model, worker in self._workers.items():
            for reason, count in sorted(worker.counts.requests.items()):
                ended.add_metric([model, reason], count)
        yield ended

    def _histograms(self) -> Iterator[Metric]:
        histograms: dict[str, tuple[str, Callable[[Worker], Histogram]]] = {
            "time_to_first_token": ("From a request's coming to its first token.", lambda w: w.counts.first_token_s),
            "inter_token_latency": ("From one token of a row to the next.", lambda w: w.counts.between_tokens_s),
            "e2e_request_latency": ("From a request's coming to its end.", lambda w: w.counts.request_s),
            "request_queue_time": ("From a request's coming to its first row.", lambda w: w.counts.queue_s),
        }
        for name, (said, value) in histograms.items():
            family = HistogramMetricFamily(f"glm_{name}_seconds", said, labels=["model"])
            for model, worker in self._workers.items():
                family.add_metric([model], value(worker).buckets(), value(worker).total)
            yield family


def _prefix_bytes(worker: Worker) -> int:
    prefixes = worker.engine.prefixes
    return prefixes.bytes if prefixes is not None else 0


def exposition(workers: Mapping[str, Worker]) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(workers))
    return generate_latest(registry)
