"""Answers that must have a form have it, whatever the model would write; forms nobody can keep are refused."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

SCHEMA = {
    "type": "object",
    "properties": {
        "poem": {"type": "string", "maxLength": 8},
        "lines": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["poem", "lines"],
    "additionalProperties": False,
}
MESSAGES = [{"role": "user", "content": "春眠不觉晓，"}]
FORMATS = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "poem", "schema": SCHEMA}}},
    {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)},
]  # fmt: skip


def ask(server: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server}{path}", json={"model": "demo", "temperature": 0} | body, timeout=120)


@pytest.mark.parametrize("asked", FORMATS)
def test_a_schema(asked: dict[str, Any], server: str) -> None:
    """The control: without it the model recites."""
    body = {"messages": MESSAGES, "max_tokens": 120}
    free = ask(server, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(free)
    answer = ask(server, "/v1/chat/completions", body | asked).json()["choices"][0]
    assert answer["finish_reason"] == "stop", answer
    found = json.loads(answer["message"]["content"])
    assert set(found) == {"poem", "lines"}
    assert len(found["poem"]) <= 8
    assert 1 <= found["lines"] <= 9


def test_any_object_and_several_choices(server: str) -> None:
    """Each row stands in the form where it stands, though one was compiled."""
    body = {"messages": MESSAGES, "max_tokens": 100, "temperature": 1, "n": 3, "seed": 5}
    shape = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22, 333]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = ask(server, "/v1/chat/completions", body | {"guided_json": shape}).json()
    assert all(json.loads(choice["message"]["content"])["a"] in (1, 22, 333) for choice in answer["choices"])


@pytest.mark.parametrize(
    ("form", "expected"),
    [({"guided_regex": "[春夏秋冬]{2}"}, "[春夏秋冬]{2}"), ({"grammar": 'root ::= "a" | "bb"'}, "a|bb")],
)
def test_expressions_and_grammars(form: dict[str, str], expected: str, server: str) -> None:
    answer = ask(server, "/v1/completions", {"prompt": "春眠不觉晓，", "max_tokens": 20} | form).json()["choices"][0]
    assert re.fullmatch(expected, answer["text"]), answer
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}},
        {"guided_regex": "(", }, {"guided_regex": "a", "grammar": "root ::= 'a'"}, {"guided_json": "{"},
        {"guided_json": {"type": "nothing"}}, {"guided_grammar": "start: nowhere"},
    ],
)  # fmt: skip
def test_what_is_no_form(form: dict[str, Any], server: str) -> None:
    answer = ask(server, "/v1/completions", {"prompt": "春", "max_tokens": 2} | form)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server}/health").status_code == 200


def test_a_form_that_would_explode_holds_nobody_up(server: str) -> None:
    """Refused, or kept as far as it goes; others are answered meanwhile."""
    form = {"guided_regex": "((a{1,1000}){1,1000}){1,1000}"}
    answer = ask(server, "/v1/completions", {"prompt": "春", "max_tokens": 4} | form)
    assert answer.status_code in (200, 400)
    assert httpx.get(f"{server}/health").status_code == 200
