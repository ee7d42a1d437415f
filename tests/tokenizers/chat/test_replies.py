"""Replies as messages: examples of publishers and servers, and round trips through the prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from glm_export.tokenizers.chat.prompt import render_built_in
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.chat.role_parts import written_call
from glm_export.tokenizers.chat.templates import built_in
from tests.tokenizers.test_tokenizers import load

Call = tuple[str, dict[str, Any]]
WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


def parsed(text: str, family: str, tools: Any = None) -> tuple[Any, list[Call], Any]:
    prompt = "role_parts" if family == "chatglm3" else "role_lines"
    message = parse_reply(text, family, prompt, tools)
    assert message["role"] == "assistant"
    calls = [call["function"] for call in message.get("tool_calls", [])]
    rest = message.get("reasoning_content") or message.get("metadata")
    return message["content"], [(call["name"], call["arguments"]) for call in calls], rest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # vllm's tests of its GLM-4.5 parser, tests/tool_parsers/test_glm4_moe_tool_parser.py
        ("This is a test", ("This is a test", [], None)),
        (
            (
                "<tool_call>get_current_weather\n    <arg_key>city</arg_key>\n    <arg_value>Dallas</arg_value>\n"
                "    <arg_key>unit</arg_key>\n    <arg_value>fahrenheit</arg_value>\n    </tool_call>\n"
                "    <tool_call>get_current_weather\n    <arg_key>city</arg_key>\n    <arg_value>Orlando</arg_value>\n"
                "    </tool_call>"
            ),
            (
                None,
                [
                    ("get_current_weather", {"city": "Dallas", "unit": "fahrenheit"}),
                    ("get_current_weather", {"city": "Orlando"}),
                ],
                None,
            ),
        ),
        (
            (
                "<think>I want to get the weather.</think>\n\nI will help you get the weather.\n"
                "<tool_call>get_weather\n"
                "<arg_key>city</arg_key>\n<arg_value>Beijing</arg_value>\n<arg_key>date</arg_key>\n"
                "<arg_value>2025-08-01</arg_value>\n</tool_call>"
            ),
            (
                "I will help you get the weather.",
                [("get_weather", {"city": "Beijing", "date": "2025-08-01"})],
                "I want to get the weather.",
            ),
        ),
        ("<tool_call>get_current_time\n</tool_call>", (None, [("get_current_time", {})], None)),
        (
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Beijing</arg_value>",  # it never ends
            ("<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Beijing</arg_value>", [], None),
        ),
        # numbers, lists and nulls as their JSON; newer models write everything in one line
        (
            (
                "<tool_call>f<arg_key>n</arg_key><arg_value>[1, null]</arg_value><arg_key>t</arg_key>"
                "<arg_value>a < b</arg_value></tool_call>"
            ),
            (None, [("f", {"n": [1, None], "t": "a < b"})], None),
        ),
        # what only looks like a call leaves the others calls
        (
            "<tool_call>\n</tool_call> or <tool_call>f\n</tool_call>",
            ("<tool_call>\n</tool_call> or", [("f", {})], None),
        ),
        ("<tool_call> is a tag </tool_call>", ("<tool_call> is a tag </tool_call>", [], None)),
        # vllm#46040: a call ends a thought that nothing else ends
        ("<think>I call\n<tool_call>f\n</tool_call>", (None, [("f", {})], "I call")),
        ("<think>not <tool_call>f\n</think>yet", ("yet", [], "not <tool_call>f")),
        ("\n<think></think>\nDone.", ("Done.", [], None)),
        ("\n<think>it goes on", ("", [], "it goes on")),
    ],
)
def test_glm_4_5(text: str, expected: Any) -> None:
    assert parsed(text, "glm4_moe") == expected


def test_glm_4_5_reads_values_by_their_schema() -> None:
    text = (
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>10111</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    )
    for tools in ([WEATHER], [{"type": "function", "function": WEATHER}]):
        assert parsed(text, "glm4_moe", tools) == (None, [("get_weather", {"city": "10111", "days": 2})], None)
    assert parsed(text, "glm4_moe")[1] == [("get_weather", {"city": 10111, "days": 2})]


def test_a_thought_that_the_prompt_began() -> None:
    """GLM-Z1's template ends in ``<think>``."""
    for text, thinking, expected in (
        ("so</think>4", None, ("so", "4")), ("so</think>4", True, ("so", "4")), ("so", True, ("so", "")),
        ("so</think>4", False, (None, "so</think>4")), ("so", None, (None, "so")),
        ("<think>so</think>4", True, ("so", "4")), ("<think>a</think>b</think>", False, ("a", "b</think>")),
    ):  # fmt: skip
        message = parse_reply(text, "glm4", "role_lines", thinking=thinking)
        assert (message.get("reasoning_content"), message["content"]) == expected


@pytest.mark.parametrize("family", ["glm4_remote", "glm", "glm4"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n你好👋！", ("你好👋！", [], None)),
        ('get_weather\n{"city": "北京"}', (None, [("get_weather", {"city": "北京"})], None)),
        (
            'get_weather\n{"city": "北京"}<|assistant|>get_weather\n{"city": "上海"}<|observation|>',
            (None, [("get_weather", {"city": "北京"}), ("get_weather", {"city": "上海"})], None),
        ),
        ("\nlet me see<|assistant|>get_weather\n{}", ("let me see", [("get_weather", {})], None)),
        ("get_weather\n{'city': 1}", ("get_weather\n{'city': 1}", [], None)),
        ('Two lines\n{"a": 1}', ('Two lines\n{"a": 1}', [], None)),
        ("\nline\nline<|user|>", ("line\nline", [], None)),
    ],
)
def test_glm_4(family: str, text: str, expected: Any) -> None:
    assert parsed(text, family) == expected


def test_tools_without_a_schema_are_no_error() -> None:
    text = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
    shapes: list[Any] = [[], "x", {"properties": ["a"]}, {"properties": {"a": "x"}}]
    for parameters in shapes:
        assert parsed(text, "glm4_moe", [{"name": "f", "parameters": parameters}])[1] == [("f", {"a": 1})]


def test_glm_4_knows_the_tools_it_was_given() -> None:
    text = 'JSON\n{"a": 1}'
    assert parsed(text, "glm4_remote", [WEATHER]) == (text, [], None)
    assert parsed('get_weather\n{"a": 1}', "glm4_remote", [WEATHER])[1] == [("get_weather", {"a": 1})]
    assert parsed("python\nprint(1)", "glm4_remote", [{"type": "python"}]) == ("print(1)", [], "python")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the publisher's tools_using_demo and composite_demo
        ("track\n ```python\ntool_call(symbol='10111')\n```", (None, [("track", {"symbol": "10111"})], None)),
        ("\n 你好，[[训练时间]]", ("你好，2023年", [], None)),
        ("interpreter\n ```python\nprint(1)\n```", ("```python\nprint(1)\n```", [], "interpreter")),
        (
            "\n I look.<|assistant|>track\n ```python\ntool_call(symbol='a', n=[1, None])\n```<|observation|>",
            ("I look.", [("track", {"symbol": "a", "n": [1, None]})], None),
        ),
        ("Two\nlines", ("Two\nlines", [], None)),
        ("one", ("one", [], None)),
        # read, never run
        (
            "track\n ```python\ntool_call(symbol=__import__('os').getcwd())\n```",
            ("```python\ntool_call(symbol=__import__('os').getcwd())\n```", [], "track"),
        ),
        # what JSON cannot say
        ("track\n ```python\ntool_call(x={1})\n```", ("```python\ntool_call(x={1})\n```", [], "track")),
        ("track\n ```python\ntool_call(x=1e999)\n```", ("```python\ntool_call(x=1e999)\n```", [], "track")),
        ("track\n ```python\ntool_call(x=(1, {2: 3}))\n```", (None, [("track", {"x": [1, {"2": 3}]})], None)),
        ("track\n ```python\ntool_call(*x)\n```", ("```python\ntool_call(*x)\n```", [], "track")),
    ],
)
def test_chatglm3(text: str, expected: Any) -> None:
    assert parsed(text, "chatglm3") == expected


# -- round trips -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["get_weather", "f", "天气"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet="ab 天\n\"'{}", max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["x", "y"]), inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "days", "天"]), VALUES, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3)


def written(family: str, calls: list[Call]) -> str:
    """What the model would have to write for its prompt to show the calls."""
    asked: Any = [{"role": "user", "content": "?"}]
    turn = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": n, "arguments": a}} for n, a in calls],
    }
    before = render_built_in(built_in(family, "role_lines"), asked)
    after = render_built_in(built_in(family, "role_lines"), [*asked, turn, *asked])
    return after.removeprefix(before).rpartition("<|user|>")[0]


@pytest.mark.parametrize("family", ["glm4_remote", "glm4", "glm4_moe"])
@given(calls=CALLS)
@settings(max_examples=100)
def test_calls_in_a_prompt_are_read_back(family: str, calls: list[Call]) -> None:
    text = written(family, calls)
    assert text
    read = parsed(text, family)[1]
    if family == "glm4_moe":  # a text that is JSON is told from it by the schema alone
        strings = {key for _, arguments in calls for key, value in arguments.items() if isinstance(value, str)}
        mixed = {key for _, arguments in calls for key, value in arguments.items() if not isinstance(value, str)}
        if strings & mixed:
            return
        properties = {key: {"type": "string"} for key in strings}
        tools = [{"name": name, "parameters": {"properties": properties}} for name in {name for name, _ in calls}]
        read = parsed(text, family, tools)[1]
    assert read == calls


@given(arguments=ARGUMENTS)
@settings(max_examples=100)
def test_calls_of_chatglm3_are_read_back(arguments: dict[str, Any]) -> None:
    assert parsed(f"f\n {written_call(arguments)}", "chatglm3")[1] == [("f", arguments)]


@given(text=st.text(max_size=30), family=st.sampled_from(["chatglm3", "glm4_remote", "glm4_moe", "chatglm2"]))
@settings(max_examples=300)
def test_any_reply_is_a_message(text: str, family: str) -> None:
    content, _, _ = parsed(text, family)
    assert content is None or isinstance(content, str)


def test_a_reply_in_ids() -> None:
    """Turns within a reply are told apart by tokens that decoded text does not show."""
    tokenizer = load("glm4_remote")
    ids = tokenizer.encode_plain('f\n{"a": 1}<|assistant|>f\n{"a": 2}<|observation|>')
    message = tokenizer.parse_reply(ids)
    assert [json.dumps(call["function"]["arguments"]) for call in message["tool_calls"]] == ['{"a": 1}', '{"a": 2}']
    assert "tool_calls" not in tokenizer.parse_reply(tokenizer.decode(ids))
    three = load("chatglm3")
    special: Mapping[str, int] = three.special
    call = three.encode_plain("f\n ```python\ntool_call(a='x')\n```")
    message = three.parse_reply([*call, special["<|assistant|>"], *call, special["<|observation|>"]])
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{"a": "x"}] * 2
    assert load("chatglm2").parse_reply(" hi ") == {"role": "assistant", "content": "hi"}
    assert load("chatglm").parse_reply(" hi ") == {"role": "assistant", "content": "hi"}
