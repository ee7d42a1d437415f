"""Prompts built in, with tools, calls and thoughts: what the publishers' templates and code made of conversations."""

from __future__ import annotations

import json
from typing import Any

import pytest

from glm_export.errors import InputError
from glm_export.tokenizers.chat.prompt import render_built_in
from glm_export.tokenizers.chat.templates import built_in
from tests.helpers.golden_data import GOLDEN, Golden
from tests.tokenizers.test_tokenizers import load

WEATHER = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}
ASKED: list[Any] = [{"role": "user", "content": "北京？"}]


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / "chat" / f"{name}.json").read_text())


def in_openai_words(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The publishers' metadata and observations as calls and tools."""
    tools, spelled = None, []
    for message in messages:
        if "tools" in message:
            tools = [{"type": "function", "function": function} for function in message["tools"]]
        elif message.get("metadata") == "track":
            written = {"name": "track", "arguments": '{"symbol": "10111"}'}
            spelled.append({"role": "assistant", "content": None, "tool_calls": [{"function": written}]})
        else:
            role = "tool" if message["role"] == "observation" else message["role"]
            spelled.append(message | {"role": role})
    return spelled, tools


@pytest.mark.parametrize("family", ["glm4_moe", "glm4"])
def test_golden_prompts(family: str) -> None:
    assert len(cases(family)) >= 8
    for case in cases(family):
        text = render_built_in(built_in(family, "role_lines"), case["messages"], case["tools"], None, case["options"])
        assert text == case["text"]


def test_golden_prompts_differ_from_each_other() -> None:
    """A prompt of another generation is not the same: the comparison can fail."""
    other = {"glm4_moe": "glm4", "glm4": "glm"}
    for family, wrong in other.items():
        case = next(case for case in cases(family) if case["tools"])
        text = render_built_in(built_in(wrong, "role_lines"), case["messages"], case["tools"])
        assert text != case["text"]


def test_golden_ids_of_chatglm3() -> None:
    """Tools in the system message, a call and its answer, the interpreter; and the same in OpenAI's words."""
    tokenizer = load("chatglm3")
    for case in cases("chatglm3"):
        assert tokenizer.chat(case["messages"]) == case["ids"]
        messages, tools = in_openai_words(case["messages"])
        assert tokenizer.chat(messages, tools=tools) == case["ids"]


def test_arguments_may_be_json_or_an_object() -> None:
    for family in ("glm", "glm4", "glm4_moe"):
        rendered = []
        for arguments in ({"city": "北京"}, '{"city": "北京"}'):
            call = {"function": {"name": "weather", "arguments": arguments}}
            messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]
            rendered.append(render_built_in(built_in(family, "role_lines"), messages, [TOOL]))
        assert rendered[0] == rendered[1]
        assert "None" not in rendered[0]


def released(messages: list[Any]) -> str:
    """By the template that THUDM/glm-4-9b-chat was released with, in transformers."""
    from transformers.utils.chat_template_utils import render_jinja_template

    config = json.loads((Golden("glm4_remote").folder / "tokenizer_config.json").read_text())
    template = config["chat_template"]
    rendered: Any = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)
    return rendered[0][0]


@pytest.mark.parametrize("content", [None, "Be brief."])
def test_glm4_equals_the_released_template(content: str | None) -> None:
    """Its own spelling: tools in a system message, calls as metadata."""
    messages = [
        {"role": "system", "content": content, "tools": [TOOL, TOOL]},
        *ASKED,
        {"role": "assistant", "content": '{"city": "北京"}', "metadata": "weather"},
        {"role": "observation", "content": "晴"},
        {"role": "assistant", "content": "晴天"},
        {"role": "user", "content": "<&>"},
    ]
    ours = built_in("glm4_remote", "role_lines")
    assert render_built_in(ours, messages) == released(messages)
    spelled = [
        *([{"role": "system", "content": content}] if content else []),
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "晴"},
        *messages[4:],
    ]
    assert render_built_in(ours, spelled, [TOOL, TOOL]) == released(messages)


def test_a_folder_with_the_released_template_takes_openai_words() -> None:
    """The template reads neither tools= nor tool_calls; transformers would pass over both."""
    tokenizer = load("glm4_remote")
    messages: list[Any] = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    messages.append({"role": "tool", "content": "晴"})
    expected = released(
        [
            {"role": "system", "content": None, "tools": [TOOL]},
            *ASKED,
            {"role": "assistant", "metadata": "weather", "content": '{"city": "北京"}'},
            {"role": "observation", "content": "晴"},
        ]
    )
    assert tokenizer.chat(messages, tools=[TOOL]) == tokenizer.encode_plain(expected)
    assert tokenizer.chat(messages, tools=[WEATHER]) == tokenizer.encode_plain(expected)


# -- what a prompt has no place for ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatglm2", "chatglm"])
@pytest.mark.parametrize("what", ["tools", "documents", "tool_calls", "metadata"])
def test_older_prompts_refuse_tools(name: str, what: str) -> None:
    messages: list[Any] = [*ASKED, {"role": "assistant", "content": "x"}, *ASKED]
    given = {}
    if what in ("tools", "documents"):
        given = {what: [TOOL]}
    else:
        messages[1] |= {what: [CALL] if what == "tool_calls" else "weather"}
    with pytest.raises(InputError, match=f"no place for {what}"):
        load(name).chat(messages, **given)


@pytest.mark.parametrize("name", ["chatglm3", "glm4_remote"])
def test_documents_are_refused_where_nothing_reads_them(name: str) -> None:
    with pytest.raises(InputError, match="no place for documents"):
        load(name).chat(ASKED, documents=[{"title": "a", "text": "b"}])


def test_chatglm3_refuses_what_python_cannot_say() -> None:
    call = {"function": {"name": "f", "arguments": {"not a name": 1}}}
    with pytest.raises(InputError, match="'not a name' is no argument's name"):
        load("chatglm3").chat([*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}])
    twice: Any = [{"role": "system", "content": "x", "tools": [WEATHER]}, *ASKED]
    with pytest.raises(InputError, match="given twice"):
        load("chatglm3").chat(twice, tools=[WEATHER])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        ("hi", "at least one message"),
        (["hi"], "message 0 should be an object with a role"),
        ([{"content": "hi"}], "message 0 should be an object with a role"),
        ([{"role": "user", "content": 3}], "content of message 0 should be a text or a list of parts, found 3"),
        ([{"role": "user", "content": {"text": "a"}}], "should be a text or a list of parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "this program reads text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "this program reads text"),
        ([{"role": "user", "content": "a", "tool_calls": "f()"}], "tool_calls of message 0 should be a list"),
        ([{"role": "user", "content": "a", "tool_calls": [{"function": "f"}]}], "a tool call of message 0 should be"),
        ([{"role": "user", "content": "a", "metadata": ["x"]}], "metadata of message 0 should be a text"),
        ([{"role": "user", "content": "a", "extra": {1, 2}}], "message 0 should be JSON's"),
        ([{"role": "oracle", "content": "a"}], "role 'oracle' is not in"),
    ],
)
@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4_remote"])
def test_messages_that_are_none(name: str, messages: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load(name).chat(messages)


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4_remote", "chatglm"])
def test_parts_are_the_text_they_make(name: str) -> None:
    parts: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "你"}, "好 ", {"type": "text", "text": "x"}]}
    ]
    assert load(name).chat(parts) == load(name).chat([{"role": "user", "content": "你好 x"}])
