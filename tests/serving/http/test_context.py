"""A context that the server grants: what is longer is refused by the name clients know, and answers end there."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt
from glm_export.serving.engine import Engine
from glm_export.serving.http.app import create_app
from glm_export.serving.http.served import ServedModel, opened
from glm_export.serving.options import ServeOptions
from glm_export.serving.request import Request
from tests.helpers.http_servers import HERE, answered

LINE = "春眠不觉晓，处处闻啼鸟。\n"
CONTEXT = 24


def asked(models: dict[str, ServedModel], options: ServeOptions, *bodies: dict[str, Any]) -> list[httpx.Response]:
    app = create_app(models, options, frozenset())
    return answered(app, *(httpx.Request("POST", f"{HERE}/v1/completions", json=body) for body in bodies))


def test_an_answer_ends_where_the_context_does() -> None:
    body = {"temperature": 0, "max_tokens": 100, "ignore_eos": True}
    found: dict[int | None, list[httpx.Response]] = {}
    for most in (None, CONTEXT):
        options = ServeOptions(max_context=most)
        with opened(["demo"], options) as models:
            ids = models["demo"].session.encode(LINE)
            prompts = (LINE, ids * 4, [7] * CONTEXT)
            found[most] = asked(models, options, *({"prompt": prompt} | body for prompt in prompts))
            assert models["demo"].context == (most or models["demo"].session.config.text_positions)
    told, whole = found[CONTEXT][0].json(), found[None][0].json()
    assert told["usage"]["total_tokens"] == CONTEXT
    assert told["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["text"].startswith(told["choices"][0]["text"])
    assert len(ids) < CONTEXT < len(ids * 4)
    assert [one.status_code for one in found[None]] == [200, 200, 200]
    long, full = found[CONTEXT][1:]
    assert long.status_code == full.status_code == 400
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert f"maximum context length is {CONTEXT}" in long.json()["error"]["message"]
    assert "no place in a context of 24" in full.json()["error"]["message"]


def test_an_engine_refuses_what_leaves_no_place() -> None:
    with opened(["demo"], ServeOptions()) as models:
        engine = Engine(models["demo"].session, max_context=CONTEXT)
        engine.submit(Request(key="read only", prompt=Prompt(ids=(7,) * CONTEXT), max_new_tokens=0))
        with pytest.raises(InputError, match="no place"):
            engine.submit(Request(key="full", prompt=Prompt(ids=(7,) * CONTEXT)))
        assert not engine.idle
