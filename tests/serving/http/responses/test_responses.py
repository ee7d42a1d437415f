"""OpenAI's own client, unchanged: what is streamed is what is whole, and nothing is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from glm_export import api
from glm_export.serving.http.responses.asked import messages_of_items
from tests.serving.http.anthropic.test_messages import REPLY
from tests.serving.http.conftest import Dictation

LINE = "春眠不觉晓，处处闻啼鸟。\n"
ASKED: dict[str, Any] = {"model": "demo", "input": LINE, "max_output_tokens": 40, "temperature": 0}
TOOLS = [{"type": "function", "name": "weather", "description": "x", "parameters": {"type": "object"}, "strict": True}]


def client_of(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    with client_of(server) as made:
        yield made


def streamed(client: Any, asked: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The response of the last event, and all events as they are."""
    events = list(client.responses.create(**asked, stream=True))
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
    assert kinds == [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events[-1].response, events


def said(response: Any) -> dict[str, Any]:
    """Without what is of one request: ids, when, and how much had been read before."""
    told = response.to_dict()
    told["usage"]["input_tokens_details"] = None
    for item in told["output"]:
        item["id"] = item["call_id"] = ""
    return told | {"id": "", "created_at": 0}


def test_a_response_streamed_is_the_response_whole(client: Any) -> None:
    whole = client.responses.create(**ASKED)
    with api.load_session("demo") as session:
        expected = api.chat(session, [{"role": "user", "content": LINE}], max_new_tokens=40)
    assert (whole.output_text, whole.status, whole.store) == (expected, "completed", False)
    again, events = streamed(client, ASKED)
    assert said(again) == said(whole)
    kinds = [event.type.removeprefix("response.") for event in events]
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == whole.output_text
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * len(texts),
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    items = [{"role": "user", "content": [{"type": "input_text", "text": LINE}]}]
    assert said(client.responses.create(**ASKED | {"input": items})) == said(whole)


def test_a_response_without_more_room_is_incomplete(client: Any) -> None:
    asked = ASKED | {"max_output_tokens": 3}
    for short in (client.responses.create(**asked), streamed(client, asked)[0]):
        assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (short.usage.output_tokens, short.output[0].status) == (3, "incomplete")


def test_a_response_may_have_to_have_a_form(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    form = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    assert json.loads(client.responses.create(**ASKED, text=form).output_text) == {"a": "x"}


def test_thoughts_and_calls_are_items(dictation: Dictation) -> None:
    dictation.text = REPLY
    asked = {"model": "chatglm3", "input": "北京天气", "tools": TOOLS, "instructions": "简短"}
    with client_of(dictation.address) as client:
        whole = client.responses.create(**asked)
        again, events = streamed(client, asked)
        thought, text, call = whole.output
        assert (thought.content[0].text, text.content[0].text) == ("查一查", "好的\n我查。")
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "北京", "days": 2})
        assert 0 < whole.usage.output_tokens_details.reasoning_tokens < whole.usage.output_tokens
        assert said(again) == said(whole)
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.to_dict() for item in done] == [item.to_dict() for item in again.output]
        # What came back goes on as part of the conversation.
        answer = {"type": "function_call_output", "call_id": call.call_id, "output": "晴"}
        items = [{"role": "user", "content": "北京天气"}, *(item.to_dict() for item in whole.output), answer]
        dictation.text = "晴天"
        assert client.responses.create(**asked | {"input": items}).output_text == "晴天"
    user, assistant, tool = messages_of_items(items)
    assert (assistant["reasoning_content"], assistant["content"]) == ("查一查", "好的\n我查。")
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == call.call_id
    assert (user["content"], tool["content"]) == ("北京天气", "晴")


def test_words_behind_a_call_are_of_the_same_message_and_a_thought_begins_another() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "想"}]}
    word = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "好"}]}
    found = messages_of_items([{"role": "developer", "content": "x"}, word, call, thought, call, call, word])
    assert [message["role"] for message in found] == ["system", "assistant", "assistant"]
    assert [len(message["tool_calls"]) for message in found[1:]] == [1, 2]
    assert found[2]["content"] == "好"


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"previous_response_id": "resp_1"}, "stored"), ({"store": True}, "stored"), ({"background": True}, "stored"),
        ({"conversation": "c"}, "stored"), ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tool_choice": "required"}, "tool_choice"), ({"input": []}, "empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
        ({"input": [{"role": "king", "content": "x"}]}, "role"), ({"max_output_tokens": -1}, "max_output_tokens"),
        ({"instructions": "x"}, "system"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered(client: Any, changed: dict[str, Any], word: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=word) as caught:
        client.responses.create(**ASKED | changed, stream=stream)
    assert "\n" not in caught.value.body["message"]
