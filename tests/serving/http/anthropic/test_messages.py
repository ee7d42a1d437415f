"""Anthropic's own client, unchanged: what is streamed is what is whole, and errors are its errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from glm_export import api
from glm_export.serving.http.anthropic.asked import messages_of_blocks
from tests.serving.http.conftest import Dictation

LINE, NEXT = "春眠不觉晓，处处闻啼鸟。\n", "夜来风雨声，花落知多少。"
ASKED: dict[str, Any] = {"model": "demo", "max_tokens": 40, "messages": [{"role": "user", "content": LINE}]}
GREEDY = {"extra_body": {"temperature": 0}}
"""The client has no word for it any more; the API has."""
TOOLS = [{"name": "weather", "description": "x", "input_schema": {"type": "object", "properties": {}}}]
CALL = "weather\n```python\ntool_call(city='北京', days=2)\n```"
REPLY = f"<think>查一查</think>好的\n我查。<|assistant|>{CALL}"
TALK = [
    {"role": "user", "content": [{"type": "text", "text": "北京"}, {"type": "text", "text": "天气"}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "查", "signature": ""},
            {"type": "text", "text": "我查。"},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "北京"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "晴"}]},
            {"type": "text", "text": "明天呢？"},
        ],
    },
]
CHAT: list[Any] = [
    {"role": "user", "content": "北京天气"},
    {
        "role": "assistant",
        "content": "我查。",
        "reasoning_content": "查",
        "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
        ],
    },
    {"role": "tool", "tool_call_id": "t1", "content": "晴"},
    {"role": "user", "content": "明天呢？"},
]


def client_of(address: str, key: str = "none") -> Any:
    return anthropic.Anthropic(base_url=address, api_key=key, max_retries=0)


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def streamed(client: Any, asked: dict[str, Any]) -> tuple[anthropic.types.Message, list[str]]:
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream if event.type not in ("text", "thinking", "input_json")]
        return stream.get_final_message(), kinds


def said(message: anthropic.types.Message) -> dict[str, Any]:
    """Without what is of one request: ids, and how much had been read before."""
    told = message.to_dict()
    for block in told["content"]:
        block.pop("id", None)
    usage = told["usage"]
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return {**told, "id": "", "usage": (read, usage["output_tokens"])}


@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 1, "top_k": 1}, {"temperature": 1, "top_p": 0}])
def test_a_message_streamed_is_the_message_whole(client: Any, drawn: dict[str, Any]) -> None:
    asked = ASKED | {"extra_body": drawn}
    whole = client.messages.create(**asked)
    assert [block.type for block in whole.content] == ["text"]
    assert (whole.stop_reason, whole.stop_sequence) == ("end_turn", None)
    again, kinds = streamed(client, asked)
    assert said(again) == said(whole)
    deltas = kinds.count("content_block_delta")
    expected = ["message_start", "content_block_start", *["content_block_delta"] * deltas]
    assert kinds == [*expected, "content_block_stop", "message_delta", "message_stop"]
    assert deltas > 4
    counted = client.messages.count_tokens(model="demo", messages=ASKED["messages"])
    assert counted.input_tokens == said(whole)["usage"][0]


def test_why_a_message_ends(client: Any) -> None:
    whole = client.messages.create(**ASKED | GREEDY).content[0].text
    short = client.messages.create(**ASKED | GREEDY | {"max_tokens": 3})
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 3)
    asked = ASKED | GREEDY | {"stop_sequences": ["没有的", whole[4:6]]}
    for stopped in (client.messages.create(**asked), streamed(client, asked)[0]):
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", whole[4:6])
        assert stopped.content[0].text == whole[:4]


def test_thoughts_and_calls_are_blocks(dictation: Dictation) -> None:
    dictation.text = REPLY
    asked = {"model": "chatglm3", "max_tokens": 200, "messages": TALK, "tools": TOOLS, "system": "简短"}
    with client_of(dictation.address) as client:
        whole = client.messages.create(**asked)
        again, kinds = streamed(client, asked)
        # What came back goes on as part of the conversation.
        more = [*TALK, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "谢谢"}]
        dictation.text = "不客气"
        assert client.messages.create(**asked | {"messages": more}).content[0].text == "不客气"
    thought, text, call = whole.content
    assert (thought.thinking, text.text) == ("查一查", "好的\n我查。")
    assert (call.name, call.input, whole.stop_reason) == ("weather", {"city": "北京", "days": 2}, "tool_use")
    assert said(again) == said(whole)
    starts = [kind for kind in kinds if kind != "content_block_delta"]
    blocks = ["content_block_start", "content_block_stop"] * 3
    assert starts == ["message_start", *blocks, "message_delta", "message_stop"]


def test_a_conversation_is_read_as_the_chat_it_is(dictation: Dictation) -> None:
    assert messages_of_blocks(TALK) == CHAT
    tools = [{"type": "function", "function": {"name": "weather", "description": "x", "parameters": {}}}]
    with client_of(dictation.address) as client:
        given = [{"name": "weather", "description": "x", "input_schema": {}}]
        told = client.messages.count_tokens(model="chatglm3", messages=TALK, tools=given, system="简短")
    system: list[Any] = [{"role": "system", "content": "简短"}]
    assert told.input_tokens == len(dictation.session.tokenizer.chat([*system, *CHAT], tools=tools))


def test_turns_of_one_role_are_one() -> None:
    turns = [{"role": "user", "content": "甲"}, {"role": "user", "content": "乙"}]
    assert messages_of_blocks(turns) == [{"role": "user", "content": "甲\n\n乙"}]
    results = [{"type": "tool_result", "tool_use_id": str(i), "content": str(i)} for i in range(2)]
    found = messages_of_blocks([{"role": "user", "content": results}])
    assert [(one["role"], one["content"]) for one in found] == [("tool", "0"), ("tool", "1")]


@pytest.mark.parametrize(
    ("changed", "kind", "word"),
    [
        ({"model": "nobody"}, anthropic.NotFoundError, "nobody"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "tool_choice"),
        ({"tools": [{"type": "web_search_20250305", "name": "s"}]}, anthropic.BadRequestError, "web_search"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, anthropic.BadRequestError, "image"),
        ({"messages": [*ASKED["messages"], {"role": "assistant", "content": "x"}]}, anthropic.BadRequestError, "last"),
        ({"messages": [{"role": "user", "content": LINE * 100}]}, anthropic.BadRequestError, "512"),
        ({"max_tokens": -1}, anthropic.BadRequestError, "max_tokens"),
        ({"system": "x"}, anthropic.BadRequestError, "system"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered(
    client: Any, changed: dict[str, Any], kind: type[anthropic.APIStatusError], word: str, stream: bool
) -> None:
    with pytest.raises(kind, match=word) as caught:
        client.messages.create(**ASKED | changed, stream=stream)
    body = caught.value.body
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == caught.value.request_id


def test_a_key_is_wanted(start: Callable[..., Any], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    with start("demo", "--api-key-file", str(keys), "--max-batch", "1", "--queue", "0") as (address, _):
        with client_of(address, "first") as client:
            assert client.messages.create(**ASKED | GREEDY).stop_reason == "end_turn"
        with client_of(address, "second") as client, pytest.raises(anthropic.AuthenticationError) as caught:
            client.messages.create(**ASKED)
        assert caught.value.body["error"]["type"] == "authentication_error"
        assert httpx.post(f"{address}/v1/messages", json=ASKED).json()["error"]["type"] == "authentication_error"
        told = httpx.post(f"{address}/v1/messages/nowhere", headers={"x-api-key": "first"}).json()
        assert told["error"]["type"] == "not_found_error"


def test_a_message_may_have_to_have_a_form(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    asked = ASKED | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    assert json.loads(client.messages.create(**asked).content[0].text) == {"a": "x"}


def test_whose_words_a_message_has(client: Any) -> None:
    """The model's own, of the chat it is: the same as by the other API."""
    with api.load_session("demo") as session:
        expected = api.chat(session, ASKED["messages"], max_new_tokens=40)
    assert client.messages.create(**ASKED | GREEDY).content[0].text == expected
