"""A file of requests: each answered once, as the server answers it, also when the run is killed in the middle."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from glm_export import api
from glm_export.errors import InputError
from glm_export.serving.batch import answer_batch, by_engine
from glm_export.serving.options import ServeOptions

LINES = ["春眠不觉晓，处处闻啼鸟。\n", "白日依山尽，黄河入海流。\n", "床前明月光，疑是地上霜。\n"]
COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
OPTIONS = ServeOptions(max_batch=4)


def asked(name: str, body: dict[str, Any], url: str = COMPLETE) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def answers_of(path: Path) -> dict[str, dict[str, Any]]:
    told = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert max(Counter(one["custom_id"] for one in told).values()) == 1
    return {one["custom_id"]: one for one in told}


def test_each_kind_of_line_is_answered(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": LINES[0]}]
    greedy = {"temperature": 0, "max_tokens": 40}
    lines = [
        asked("text", {"model": "demo", "prompt": LINES, **greedy}),
        asked("chat", {"messages": messages, **greedy}, CHAT),
        asked("unknown model", {"model": "nobody", "prompt": "x"}),
        asked("no prompt", {}),
        asked("stream", {"prompt": "x", "stream": True}),
        asked("elsewhere", {}, "/v1/embeddings"),
        asked("blanks", {"text": "[MASK]"}, "/v1/infill"),
        {"custom_id": "get", "method": "GET", "url": CHAT, "body": {}},
        {"custom_id": "no body", "method": "POST", "url": CHAT},
    ]
    requests, answers = written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    report = answer_batch(by_engine("demo", OPTIONS), requests, answers, OPTIONS)
    told = answers_of(answers)
    assert set(told) == {line["custom_id"] for line in lines}
    assert (report.lines, report.before, report.failed) == (9, 0, 7)
    with api.load_session("demo") as session:
        texts = [choice["text"] for choice in told["text"]["response"]["body"]["choices"]]
        assert texts == api.generate(session, LINES, max_new_tokens=40)
        said = told["chat"]["response"]["body"]["choices"][0]["message"]["content"]
        assert said == api.chat(session, messages, max_new_tokens=40)
    codes = {name: one["error"] and one["error"]["code"] for name, one in told.items()}
    assert codes == {
        "text": None, "chat": None, "unknown model": "model_not_found", "no prompt": "invalid_request_error",
        "stream": "invalid_body", "elsewhere": "invalid_url", "blanks": "invalid_request_error",
        "get": "invalid_method", "no body": "invalid_body",
    }  # fmt: skip
    statuses = {name: (one["response"] or {}).get("status_code") for name, one in told.items()}
    assert (statuses["text"], statuses["unknown model"], statuses["no prompt"], statuses["get"]) == (
        200,
        404,
        400,
        None,
    )
    before = answers.read_bytes()
    again = answer_batch(by_engine("demo", OPTIONS), requests, answers, OPTIONS)
    assert (again.before, again.failed, answers.read_bytes()) == (9, 7, before)


def test_blanks_are_filled(tmp_path: Path) -> None:
    body = {"text": "春眠不觉晓，[MASK]", "temperature": 0}
    requests = written(tmp_path / "in.jsonl", [asked("a", body, "/v1/infill")])
    answer_batch(by_engine("demo-glm", OPTIONS), requests, tmp_path / "out.jsonl", OPTIONS)
    with api.load_session("demo-glm") as session:
        fills = answers_of(tmp_path / "out.jsonl")["a"]["response"]["body"]["fills"]
        assert fills == list(api.infill(session, body["text"]).fills)


def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Twice: in the middle, and with a torn last line; every line is there once, and says what generate says."""
    count = 60
    lines = [asked(f"{i}", {"prompt": LINES[i % 3], "temperature": 0, "max_tokens": 20 + i}) for i in range(count)]
    requests, answers = written(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    words = ["batch", "demo", "--input", str(requests), "--output", str(answers), "--max-batch", "2"]
    command = [sys.executable, "-m", "glm_export.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    while not answers.exists() or answers.read_bytes().count(b"\n") < 3:
        assert running.poll() is None, running.communicate()
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    whole = answers.read_bytes().rpartition(b"\n")[0] + b"\n"
    assert 3 <= whole.count(b"\n") < count
    answers.write_bytes(whole + b'{"id": "batch_req_1", "custom_id": "59", "resp')
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"{count} requests answered" in ended.stderr
    assert f"{whole.count(bytes([10]))} of them before" in ended.stderr
    assert answers.read_bytes().startswith(whole)
    told = answers_of(answers)
    assert set(told) == {line["custom_id"] for line in lines}
    with api.load_session("demo") as session:
        expected = api.generate(session, LINES, max_new_tokens=100)
    for i in range(count):
        assert expected[i % 3].startswith(told[f"{i}"]["response"]["body"]["choices"][0]["text"])


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([b"{"], "line 1"), ([b"[]"], "custom_id"), ([b'{"custom_id": 5}'], "custom_id"), ([b"\xff"], "line 1"),
        ([b'{"custom_id": "a"}', b"", b'{"custom_id": "a"}'], "line 3"), ([b"[" * 100_000], "line 1"),
        ([], "no request"), ([b"x" * (1 << 20) + b"{}"], "longer"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_before_anything_is_answered(
    tmp_path: Path, lines: list[bytes], word: str
) -> None:
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=word):
        answer_batch(by_engine("demo", OPTIONS), requests, answers, ServeOptions(max_body_megabytes=1))
    assert not answers.exists()


def test_other_peoples_answers_are_left_alone(tmp_path: Path) -> None:
    requests, answers = written(tmp_path / "in.jsonl", [asked("a", {"prompt": "x"})]), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="no file"):
        answer_batch(by_engine("demo", OPTIONS), tmp_path / "nothing", answers, OPTIONS)
    with pytest.raises(InputError, match="name another"):
        answer_batch(by_engine("demo", OPTIONS), requests, requests, OPTIONS)
    with pytest.raises(InputError, match="folder"):
        answer_batch(by_engine("demo", OPTIONS), requests, tmp_path / "no" / "out.jsonl", OPTIONS)
    for text in (b'{"custom_id": "other", "error": null}\n', b"a poem\n", b"[]\n"):
        answers.write_bytes(text)
        with pytest.raises(InputError, match="line 1"):
            answer_batch(by_engine("demo", OPTIONS), requests, answers, OPTIONS)
        assert answers.read_bytes() == text
    answers.write_bytes(b"")
    with answers.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run"):
            answer_batch(by_engine("demo", OPTIONS), requests, answers, OPTIONS)
