"""What comes in is refused in OpenAI's words, what goes wrong harms nobody else, and nothing accepted is lost."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

LINE = "春眠不觉晓，处处闻啼鸟。\n"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
LONG = {"prompt": LINE, "temperature": 1.5, "max_tokens": 400, "logit_bias": {"2": -100}}
"""A request that takes its time: it may not end itself."""


def metric(address: str, name: str) -> float:
    text = httpx.get(f"{address}/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, b"{", 400), (CHAT, b"\xff\xfe", 400), (CHAT, b"[]", 400), (CHAT, b"", 400),
        (CHAT, b'{"messages": []}', 400), (CHAT, b'{"messages": "hello"}', 400),
        (CHAT, b'{"messages": [{"role": "king", "content": "x"}]}', 400),
        (CHAT, b'{"messages": [{"role": "user", "content": {"a": 1}}]}', 400),
        (CHAT, DEEP.encode(), 400), (COMPLETE, b'{"prompt": ""}', 200), (COMPLETE, b'{"prompt": [[]]}', 400),
        (COMPLETE, b'{"prompt": [999999999]}', 400), (COMPLETE, b'{"prompt": [-1]}', 400),
        (COMPLETE, b'{"prompt": "x", "max_tokens": -1}', 400), (COMPLETE, b'{"prompt": "x", "n": 0}', 400),
        (COMPLETE, b'{"prompt": "x", "temperature": 1e308}', 400), (COMPLETE, b'{"prompt": "x", "top_p": "a"}', 400),
        (COMPLETE, b'{"prompt": "x", "logit_bias": {"-1": 1}}', 400),
        (COMPLETE, b'{"prompt": "x", "logit_bias": {"1": 1e9}}', 400),
        (COMPLETE, b'{"prompt": "x", "n": 32, "max_tokens": 1, "logprobs": 99}', 400),
        (COMPLETE, b'{"prompt": "\\ud800"}', 400), (COMPLETE, b'{"model": "nobody", "prompt": "x"}', 404),
        (COMPLETE, json.dumps({"prompt": "春" * 5000}).encode(), 400),
        ("/v1/infill", b'{"text": "no blank", "model": "demo-glm"}', 400), ("/v1/infill", b'{"text": "[MASK]"}', 400),
        ("/v1/score", b'{"model": "demo-glm", "text": "", "pattern": "x", "labels": ["a"]}', 400),
        ("/tokenize", b"{}", 400), ("/detokenize", b'{"tokens": [-5]}', 400), ("/nowhere", b"{}", 404),
    ],
)  # fmt: skip
def test_what_cannot_be_answered(path: str, body: bytes, status: int, server: str) -> None:
    answer = httpx.post(f"{server}{path}", content=body, headers={"content-type": "application/json"}, timeout=60)
    assert answer.status_code == status, answer.text
    if status != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{server}/health").json()["status"] == "ok"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = """model prompt messages max_tokens temperature top_p top_k min_p n stop stream seed logprobs top_logprobs echo
logit_bias tools tool_choice response_format stream_options text labels pattern tokens priority documents
chat_template_kwargs stop_token_ids input instructions system thinking text reasoning max_output_tokens"""
FIELDS = st.sampled_from(NAMES.split())
PATHS = st.sampled_from(
    (
        CHAT,
        COMPLETE,
        "/v1/infill",
        "/v1/score",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, body=st.dictionaries(FIELDS, VALUES, max_size=6))
def test_whatever_is_sent_the_server_lives(path: str, body: dict[str, Any], server: str) -> None:
    text = json.dumps(body, ensure_ascii=True)
    answer = httpx.post(f"{server}{path}", content=text, headers={"content-type": "application/json"}, timeout=120)
    assert answer.status_code < 500, (path, text, answer.text)


def test_a_body_is_bounded_and_one_that_never_ends_is_given_up(start: Callable[..., Any]) -> None:
    with start("demo", "--max-body-megabytes", "1") as (address, _):

        def pieces() -> Any:
            for _ in range(40):
                yield b" " * 50_000

        def answered(content: Callable[[], Any]) -> int:
            """A server that has answered and left before all was sent may take its answer with it: ask again."""
            for _ in range(20):
                with suppress(httpx.WriteError, httpx.ReadError):
                    return httpx.post(f"{address}{COMPLETE}", content=content()).status_code
            raise AssertionError("no answer came through in twenty times")

        assert answered(lambda: b" " * (1 << 20) + b"{}") == 413
        assert answered(pieces) == 413
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_key_is_wanted_of_all_but_health(start: Callable[..., Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    with start("demo", "--api-key-file", str(keys)) as (address, _):
        for path in ("/health", "/ready"):
            assert httpx.get(f"{address}{path}").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/proof", "/openapi.json", "/tokenizer_info"):
            assert httpx.get(f"{address}{path}").status_code == 401
            assert httpx.get(f"{address}{path}", headers={"authorization": "Bearer third"}).status_code == 401
            assert httpx.get(f"{address}{path}", headers={"authorization": "Bearer second"}).status_code == 200
        assert httpx.get(f"{address}/v1/models", headers={"x-api-key": "first"}).status_code == 200
        # What one has asked begins nobody else's rows.
        prompt = {"prompt": [[5 + i for i in range(40)]], "max_tokens": 2, "temperature": 0}
        cached = [
            httpx.post(f"{address}{COMPLETE}", json=prompt, headers={"x-api-key": key}).json()["usage"]
            for key in ("first", "first", "second")
        ]
        assert [one["prompt_tokens_details"]["cached_tokens"] for one in cached] == [0, 39, 0]


def test_other_addresses_want_a_key(start: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="ended with 2"), start("demo", "--host", "0.0.0.0"):
        pass


def test_a_queue_that_is_full_says_when_to_come_again(start: Callable[..., Any]) -> None:
    """Two rows are asked for where there is one and nobody may wait: none of them is written."""
    with start("demo", "--max-batch", "1", "--queue", "0") as (address, _):
        refused = httpx.post(f"{address}{COMPLETE}", json=LONG | {"n": 2})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        until(lambda: metric(address, "glm_requests_running") == 0)
        assert httpx.post(f"{address}{COMPLETE}", json=LONG | {"max_tokens": 2}).status_code == 200


def test_who_leaves_holds_no_row(start: Callable[..., Any]) -> None:
    """A stream that is closed, an answer nobody waits for, and a reader who stands still."""
    with start("demo", "--max-batch", "3") as (address, _):
        with httpx.stream("POST", f"{address}{COMPLETE}", json=LONG | {"stream": True}) as stream:
            next(stream.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}{COMPLETE}", json=LONG, timeout=httpx.Timeout(5, read=0.2))
        until(lambda: metric(address, "glm_requests_running") == 0)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as still:
            body = json.dumps(LONG | {"stream": True, "max_tokens": 200}).encode()
            still.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: metric(address, "glm_requests_total") >= 3)
            assert metric(address, "glm_requests_running") == 0


def test_a_deadline_ends_what_takes_too_long(start: Callable[..., Any]) -> None:
    with start("demo", "--deadline", "0.3") as (address, _):
        answer = httpx.post(f"{address}{COMPLETE}", json=LONG | {"prompt": LINE, "max_tokens": 490, "n": 8}, timeout=60)
        assert answer.status_code in (200, 408)
        if answer.status_code == 408:
            assert answer.json()["error"]["code"] == "deadline"
        until(lambda: metric(address, "glm_requests_running") == 0)


def test_sigterm_answers_what_was_accepted(start: Callable[..., Any]) -> None:
    """Ready turns false, nothing new is taken, open streams go on to their end, and the process ends by itself."""
    with start("demo") as (address, process):
        with httpx.stream("POST", f"{address}{COMPLETE}", json=LONG | {"stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(f"{address}/ready").status_code == 503)
            refused = httpx.post(f"{address}{COMPLETE}", json=LONG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(30) == 0


def test_a_folder_that_was_changed_is_not_served(start: Callable[..., Any], tmp_path: Path) -> None:
    from glm_export import api

    program = api.export("demo", tmp_path / "model", dialect="ort")
    with start(str(program.folder)) as (address, _):
        told = httpx.get(f"{address}/v1/proof").json()
        assert told["recorded"]["sha256"] == program.manifest["sha256"]
        assert (told["batch_invariance"], told["model"]) == ("exact", "model")
    weights = program.folder / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AssertionError, match="ended with 2"), start(str(program.folder)):
        pass
