"""A span for each request, by OpenTelemetry's conventions for generative AI; what is said and written is not in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from glm_export.artifacts.manifest import package_versions
from glm_export.errors import EnvironmentMissingError
from glm_export.serving.metrics.record import Observer, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/infill": "infill",
    "/v1/score": "score",
}
"""``gen_ai.operation.name`` by path; the first two are the conventions' own."""
NANOSECONDS = 1_000_000_000


def exported_spans(endpoint: str) -> Observer:
    """Spans that are sent, some at a time, to a collector by OTLP over HTTP.

    Args:
        endpoint: where it takes traces, such as ``http://localhost:4318/v1/traces``.

    Raises:
        EnvironmentMissingError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise EnvironmentMissingError(
            f"traces need {error.name}, which is not installed; pip install 'glm-export[otel]'"
        ) from error
    return spans(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))


def spans(processor: SpanProcessor) -> Observer:
    """Makes a span of each request that asked a model, below the caller's where it names one (``traceparent``)."""
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, Status, StatusCode

    version = package_versions()["glm-export"]
    resource = Resource.create({"service.name": "glm-export", "service.version": version})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("glm-export", version)

    def observe(record: RequestRecord) -> None:
        if record.tally.model is None:
            return
        attributes = _attributes(record)
        span = tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {record.tally.model}",
            context=extract(record.headers),
            kind=SpanKind.SERVER,
            start_time=record.ended_ns - int(record.seconds * NANOSECONDS),
            attributes=attributes,
        )
        if record.status >= 500 or "error" in record.tally.finish_reasons:
            span.set_status(Status(StatusCode.ERROR))
        span.end(record.ended_ns)

    return observe


def _attributes(record: RequestRecord) -> dict[str, Any]:
    tally = record.tally
    told: dict[str, Any] = {
        "gen_ai.operation.name": OPERATIONS.get(record.path, "other"),
        "gen_ai.provider.name": "glm-export",
        "gen_ai.request.model": tally.model,
        "gen_ai.response.model": tally.model,
        "gen_ai.response.id": record.request_id,
        "gen_ai.response.finish_reasons": tally.finish_reasons,
        "gen_ai.usage.input_tokens": tally.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": tally.cached_tokens,
        "gen_ai.usage.output_tokens": tally.generated_tokens,
        "http.request.method": record.method,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "url.scheme": "http",
    }
    if tally.first_token_s is not None:
        # vLLM's name: the conventions have one for metrics alone.
        told["gen_ai.latency.time_to_first_token"] = tally.first_token_s
    return told
