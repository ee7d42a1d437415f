"""Streamed replies: whatever way the text is cut, the deltas are together what the whole reply is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from glm_export.errors import InputError
from glm_export.tokenizers.chat.messages import Message
from glm_export.tokenizers.chat.replies import parse_reply
from glm_export.tokenizers.streams import (
    ContentDelta,
    Delta,
    MetadataDelta,
    ReasoningDelta,
    ReplyStream,
    ToolCallArguments,
    ToolCallStarted,
    message_of,
)
from tests.tokenizers.chat.test_replies import WEATHER

PROMPTS = {
    "chatglm": "counted_rounds", "chatglm2": "rounds", "chatglm3": "role_parts", "glm4_remote": "role_lines",
    "glm": "role_lines", "glm4": "role_lines", "glm4_moe": "role_lines", "glm_infilling": "none",
}  # fmt: skip
TOOLS: list[Any] = [None, [], [WEATHER], [{"type": "python"}, {"type": "function", "function": WEATHER}]]
CALL = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"
PIECES = [
    " ", "\n", "\t", "\u3000", "\ufeff", "a", "你好", "x y", "get_weather", "f", "python", "interpreter", "get_",
    "a" * 129, "<", "<|", "|>", "<|assistant|>", "<|user|>", "<|observation|>", "</s>", "<think>", "</think>",
    "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", CALL, "<tool_call>f",
    '{"city": "北京"}', "{}", '{"a": [1, {"b": "\\"}"}, -1.5e3, true]}', "{'a'", "{", "}", '"', "[", "]", ",", ":", "1",
    "null", "```", "```python\n", "tool_call(", "tool_call(city='北京')", "tool_call(a={1})", ")", "print(1)", "# c\n",
    "(", "ｔ", "[[训练时间]]", "[[训练", "[",
]  # fmt: skip
PLAIN = ["", " \n", "Just text, with a < b and an end. \n", "[[训练时间]<|assistant|>[[训练时间]]"]
THOUGHTS = [
    "\n<think>I look.</think>\n\nIt is 20 °C.\n", "<think>It goes on", "<think>a</think>b</think>c",
    "no thought</think>at all", "<think></think>\n", "<think>I call <tool_call>f\n</tool_call>",
    "<think><tool_call>f\n</think>x <tool_call>f\n</tool_call>",
    "<think>a <tool_call>f<arg_key>k</arg_key><arg_value></think></arg_value></tool_call></think>b",
]  # fmt: skip
TAGGED = [
    f"Let me see.\n{CALL} and {CALL}\nDone.", "<tool_call>get_time\n</tool_call>", "<tool_call>get_time</tool_call>",
    "<tool_call>\n</tool_call> <tool_call>f\n</tool_call>", CALL[:60], "<tool_call> is <tool_call>f\n</tool_call>",
    f"<tool_call>{'a' * 129}</tool_call>",
]  # fmt: skip
LINES = [
    "\nhello \n world", 'get_weather\n{"city": "北京"}<|assistant|>get_weather\n{"city": "上海"}<|observation|>more',
    'get_weather \r\n {"city": "北京"} \n', 'get_weather\n{"city": "北', 'get_weather\n{"city": "北京"} is it',
    "get_weather\n{'city': 1} ", "Hello\nworld", "get_weather", "get_wea", 'get_weather\n{"a": 1, "a": 2}',
    "\nsee<|assistant|>get_weather\n{}<|assistant|>\nsaid", 'get_weather\n\ufeff{"a": NaN}',
    'get_weather\n\ufeff{"a": 1}', "python\nprint(1)\n <|assistant|>python\nprint(2)",
]  # fmt: skip
PARTS = [
    "track\n ```python\ntool_call(symbol='10111')\n```", "\n 你好，[[训练时间]][[训练时", "track\n``` \n",
    "interpreter\n ```python\nprint(1)\n```", "track\n ```python\ntool_call(x={1})\n```",
    "get_weather\n ```python\ntool_call(city='a', n=[1, None])\n```<|observation|>",
    "track\n```\n\n(tool_call(a=1))\n```", "track\n ```python\ntool_call(a=1)", "a b\n```python\nprint(1)\n```",
    "track\n```python\n# sure\ntool_call(a=1e999)\n```", "track\n```python\nｔool_call(a=1)\n```",
]  # fmt: skip
REPLIES = [*PLAIN, *THOUGHTS, *TAGGED, *LINES, *PARTS]


def streamed(parts: Iterable[str], family: str, tools: Any = None, *, thinking: bool = False) -> list[Delta]:
    stream = ReplyStream(family, PROMPTS[family], tools, thinking=thinking)
    deltas = [delta for part in parts for delta in stream.feed(part)]
    return [*deltas, *stream.finish()]


def whole(text: str, family: str, tools: Any = None, *, thinking: bool = False) -> Message:
    return parse_reply(text, family, PROMPTS[family], tools, thinking=thinking)


def require_sound(deltas: list[Delta]) -> None:
    """Calls are started once, in order, before their arguments, which are JSON; no delta is empty."""
    started = [delta.index for delta in deltas if isinstance(delta, ToolCallStarted)]
    assert started == list(range(len(started)))
    for index in started:
        places = [
            at for at, delta in enumerate(deltas) if isinstance(delta, ToolCallArguments) and delta.index == index
        ]
        assert places
        assert places[0] > deltas.index(next(d for d in deltas if isinstance(d, ToolCallStarted) and d.index == index))
        json.loads("".join(deltas[at].text for at in places))
    assert all(delta.text for delta in deltas if not isinstance(delta, ToolCallStarted))


@pytest.mark.parametrize("family", PROMPTS)
@pytest.mark.parametrize("text", REPLIES)
def test_every_split_in_two_and_every_character_alone(text: str, family: str) -> None:
    for tools in TOOLS:
        for thinking in (False, True):
            expected = whole(text, family, tools, thinking=thinking)
            for parts in ([text[:cut], text[cut:]] for cut in range(len(text) + 1)):
                assert message_of(streamed(parts, family, tools, thinking=thinking)) == expected
            deltas = streamed(text, family, tools, thinking=thinking)
            assert message_of(deltas) == expected
            require_sound(deltas)


@pytest.mark.parametrize("family", ["chatglm2", "chatglm3", "glm4", "glm4_moe"])
@given(
    pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14), cuts=st.lists(st.integers(0, 200)),
    tools=st.sampled_from(TOOLS), thinking=st.booleans(),
)  # fmt: skip
@example(pieces=["a", "\n", "```python\n", "\n", "t"], cuts=[], tools=None, thinking=False)
@settings(max_examples=400, deadline=None)
def test_any_split_of_any_text(family: str, pieces: list[str], cuts: list[int], tools: Any, *, thinking: bool) -> None:
    text = "".join(pieces)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    deltas = streamed([text[a:b] for a, b in pairwise(places)], family, tools, thinking=thinking)
    assert message_of(deltas) == whole(text, family, tools, thinking=thinking)
    require_sound(deltas)
    assert message_of(streamed(text, family, tools, thinking=thinking)) == message_of(deltas)


def test_parts_read_each_for_itself_are_not_the_whole() -> None:
    """The control: what a parser without a memory makes of the same parts."""
    text, family = TAGGED[0], "glm4_moe"
    naive = [parse_reply(character, family, "role_lines") for character in text]
    assert "tool_calls" in whole(text, family)
    assert not any("tool_calls" in message for message in naive)


# -- no longer than needed ---------------------------------------------------------------------------------------------


def growth(text: str, family: str, tools: Any = (), *, thinking: bool = False) -> Iterator[tuple[str, list[Delta]]]:
    """After each character: the text so far, and the deltas so far."""
    stream = ReplyStream(family, PROMPTS[family], tools, thinking=thinking)
    deltas: list[Delta] = []
    for size, character in enumerate(text, 1):
        deltas += stream.feed(character)
        yield text[:size], deltas


@pytest.mark.parametrize("family", PROMPTS)
def test_text_and_thoughts_come_with_every_character(family: str) -> None:
    for so_far, deltas in growth("\n 你好, see f(x)\nand {more}: a > b.", family):
        assert message_of(deltas)["content"] == so_far.strip()
    for so_far, deltas in growth("<think> I think, therefore", family):
        if len(so_far) > len("<think>"):
            assert message_of(deltas).get("reasoning_content", "") == so_far.removeprefix("<think>").strip()
    for so_far, deltas in growth("I think", family, thinking=True):
        assert message_of(deltas)["reasoning_content"] == so_far.strip()


CALLED = [ToolCallStarted(index=0, name="f"), ToolCallArguments(index=0, text="{}")]


@pytest.mark.parametrize(
    ("family", "tools", "text", "expected"),
    [
        # the last character is what decides
        ("glm4", None, "get w", [ContentDelta(text="get w")]),
        ("glm4", [WEATHER], "get_wx", [ContentDelta(text="get_wx")]),
        ("glm4", [WEATHER], "get_weather\n{'", [MetadataDelta(text="get_weather"), ContentDelta(text="{'")]),
        ("glm4", None, "f\n{'", [ContentDelta(text="f\n{'")]),
        ("chatglm3", None, "code\n ```py\np", [MetadataDelta(text="code"), ContentDelta(text="```py\np")]),
        ("chatglm3", [], "f\n ```py\nt", [MetadataDelta(text="f"), ContentDelta(text="```py\nt")]),
        ("chatglm3", None, "f\n x", [ContentDelta(text="f\n x")]),
        ("glm4_moe", None, "<tool_call>f g", [ContentDelta(text="<tool_call>f g")]),
        ("glm4_moe", None, "<think>a<tool_call>!", [ReasoningDelta(text="<tool_call>!")]),
        ("glm4_moe", None, "<tool_call>f\n</tool_call>", CALLED), ("glm4", None, "f\n{}<|assistant|>", CALLED),
        ("glm4", [], "a <|us", []), ("glm4", [], "a <|ux", [ContentDelta(text=" <|ux")]),
    ],
)  # fmt: skip
def test_what_was_held_comes_with_what_decides(family: str, tools: Any, text: str, expected: list[Delta]) -> None:
    stream = ReplyStream(family, PROMPTS[family], tools)
    for character in text[:-1]:
        stream.feed(character)
    assert stream.feed(text[-1]) == expected


def test_work_grows_with_the_text() -> None:
    """In parts of a character; a parser that reads all of it again with each takes minutes."""
    for family, begins in (
        ("glm4_moe", "<tool_call>f\n"), ("glm4_moe", "a"), ("glm4", 'f\n{"'), ("glm4", ""),
        ("chatglm3", "f\n ```\ntool_call(a='"),
    ):  # fmt: skip
        text = begins + "x " * 40_000
        assert message_of(streamed(text, family)) == whole(text, family)


def test_many_tags_that_close_nowhere() -> None:
    """Which a user can have a model write."""
    text = "<tool_call>f\n" + "<arg_key></arg_key><arg_value>" * 20_000 + "</tool_call>"
    assert whole(text, "glm4_moe")["tool_calls"][0]["function"]["arguments"] == {}
    assert message_of(streamed([text], "glm4_moe")) == whole(text, "glm4_moe")


# -- the end -----------------------------------------------------------------------------------------------------------


def test_nothing_behind_the_end_is_read() -> None:
    stream = ReplyStream("glm4", "role_lines", [])
    ends = []
    for part, expected in (("a<|us", [ContentDelta(text="a")]), ("er|>b", []), ("c", [])):
        assert stream.feed(part) == expected
        ends.append(stream.ended)
    assert ends == [False, True, True]
    assert stream.finish() == []


def test_a_stream_of_text_reads_no_ids() -> None:
    with pytest.raises(InputError, match="reply_stream"):
        ReplyStream("glm4", "role_lines").feed_ids([1])
