"""What is told of a request that was answered: a line of the access log, and a span at a real collector."""

from __future__ import annotations

import json
import logging
import queue
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from glm_export.serving.http.app import create_app
from glm_export.serving.http.served import opened
from glm_export.serving.options import ServeOptions
from tests.helpers.http_servers import HERE, Quiet, answered, listening

LINE = "春眠不觉晓，处处闻啼鸟。\n"
WRITE = {"model": "demo", "prompt": LINE * 4, "temperature": 0, "max_tokens": 7, "n": 2}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[tuple[str, queue.Queue[ExportTraceServiceRequest]]]:
    """Where spans are sent: its address, and what comes."""
    came: queue.Queue[ExportTraceServiceRequest] = queue.Queue()

    class Collector(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            came.put(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

    with listening(Collector) as address:
        yield f"http://{address}/v1/traces", came


def posted(options: ServeOptions, *asked: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    with opened(["demo"], options) as models:
        app = create_app(models, options, frozenset())
        headers = {"traceparent": PARENT}
        made = (httpx.Request("POST", f"{HERE}{path}", json=body, headers=headers) for path, body in asked)
        return answered(app, *made)


def values_of(span: Any) -> dict[str, Any]:
    told = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        found = getattr(one.value, kind)
        told[one.key] = [each.string_value for each in found.values] if kind == "array_value" else found
    return told


def test_a_span_a_request(
    collector: tuple[str, queue.Queue[ExportTraceServiceRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, came = collector
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    answers = posted(
        ServeOptions(otlp_traces_endpoint=address),
        ("/v1/completions", WRITE),
        ("/tokenize", {"prompt": LINE}),
        ("/v1/completions", WRITE | {"response_format": {"type": "nothing"}}),
    )
    assert [one.status_code for one in answers] == [200, 200, 400]
    told = came.get(timeout=60)
    (span,) = told.resource_spans[0].scope_spans[0].spans
    assert span.name == "text_completion demo"
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    assert span.end_time_unix_nano - span.start_time_unix_nano > 0
    values, usage = values_of(span), answers[0].json()["usage"]
    assert values["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert values["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 14
    assert values["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert values["gen_ai.response.id"] == answers[0].headers["x-request-id"]
    assert values["gen_ai.latency.time_to_first_token"] > 0
    # Neither what was asked nor what was written.
    text = answers[0].json()["choices"][0]["text"]
    assert not any(text in str(value) or LINE.strip() in str(value) for value in values.values())


def test_a_line_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="glm_export.access"):
        answers = posted(ServeOptions(), ("/v1/completions", WRITE), ("/v1/completions", WRITE), ("/nowhere", {}))
    first, second, nowhere = (json.loads(one.message) for one in caplog.records if one.name == "glm_export.access")
    usage = answers[0].json()["usage"]
    assert (first["model"], first["status"], first["path"]) == ("demo", 200, "/v1/completions")
    assert first["request_id"] == answers[0].headers["x-request-id"] != second["request_id"]
    assert (first["prompt_tokens"], first["generated_tokens"]) == (usage["prompt_tokens"], 14)
    assert first["finish_reasons"] == ["length", "length"]
    assert 0 < first["first_token_s"] <= first["seconds"]
    assert second["cached_tokens"] > 0
    assert nowhere["status"] == 404
    assert "model" not in nowhere
