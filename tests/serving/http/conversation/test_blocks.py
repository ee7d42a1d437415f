"""A reply's blocks are the same however its text is cut, and say what the message says."""

from __future__ import annotations

from hypothesis import given, strategies as st

from glm_export.serving.http.conversation.blocks import Blocks, Change, Kind, Step
from glm_export.tokenizers.streams import ReplyStream, message_of

CALL = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>北京</arg_value>\n</tool_call>"
BOTH = f"<think>查</think>我查。{CALL}{CALL}"
REPLIES = ["", "夜来风雨声", "<think>好的</think>花落", BOTH, f"先{CALL}再", "<think>没完"]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def changes(parts: list[str]) -> tuple[Blocks, list[Change], list[str]]:
    stream, blocks = ReplyStream("glm4_moe", "glm4_moe", TOOLS), Blocks()
    deltas = [delta for part in parts for delta in stream.feed(part)] + stream.finish()
    found = [*blocks.feed(deltas), *blocks.finish()]
    return blocks, found, [str(message_of(deltas))]


@given(st.sampled_from(REPLIES), st.data())
def test_blocks_do_not_depend_on_cuts(reply: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    parts = [reply[start:end] for start, end in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    whole, _, message = changes([reply])
    cut, found, again = changes(parts)
    assert (cut.all, again) == (whole.all, message)
    steps = [(change.step, change.block.index) for change in found if change.step is not Step.GREW]
    assert steps == [(step, index) for index in range(len(cut.all)) for step in (Step.OPENED, Step.CLOSED)]
    for block in cut.all:
        assert block.text == "".join(change.text for change in found if change.block is block)


def test_each_kind_has_its_block() -> None:
    blocks, _, _ = changes([BOTH])
    assert [block.kind for block in blocks.all] == [Kind.THOUGHT, Kind.TEXT, Kind.CALL, Kind.CALL]
    assert [block.text for block in blocks.all[:2]] == ["查", "我查。"]
    assert blocks.all[2].name == "weather"
    assert blocks.thinking(begins=False) is False
    assert Blocks().thinking(begins=True)
