"""Text piece by piece, whatever the pieces: together the text before the first stop string."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from hypothesis import given, strategies as st

from glm_export.generation.stopping import TextStream, cut_at_stop
from glm_export.serving.written_text import WrittenText
from glm_export.tokenizers.streams import Detokenizer

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


class Letters:
    """A detokenizer whose ids are code points; the last of them is told late."""

    def __init__(self) -> None:
        self.held = ""

    def feed(self, ids: Iterable[int]) -> str:
        text = self.held + "".join(map(chr, ids))
        self.held = text[-1:]
        return text[:-1]

    def finish(self) -> str:
        return self.held


def letters() -> Detokenizer:
    return cast("Detokenizer", Letters())


@given(text=st.text("ab，。", max_size=12), stops=STOPS, size=st.integers(1, 4))
def test_any_stream_equals_the_cut_text(text: str, stops: list[str], size: int) -> None:
    """What is sent is never taken back, and all of it is sent."""
    stream, sent = TextStream(letters(), stops), ""
    for start in range(0, len(text), size):
        sent += stream.feed(map(ord, text[start : start + size]))
        assert cut_at_stop(text, stops).startswith(sent)
    assert sent + stream.finish() == cut_at_stop(text, stops)
    assert (stream.stop_string is not None) == any(stop in text for stop in stops)


@given(st.text("ab", max_size=12), STOPS)
def test_a_model_stops_where_a_stop_string_is_complete(text: str, stops: list[str]) -> None:
    """And its text is cut where that begins."""
    ends = [end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)]
    whole = cut_at_stop(text[: ends[0]] if ends else text, stops)
    written, told = WrittenText(letters(), stops), ""
    for letter in text:
        ended = written.push(ord(letter))
        told += written.take()
        assert whole.startswith(told)
        if ended:
            break
    assert told + written.finish() == whole


def test_what_cannot_become_a_stop_string_is_told_at_once() -> None:
    written = WrittenText(letters(), ["xyz"])
    told = []
    for letter in "aaxyb":
        written.push(ord(letter))
        told.append(written.take())
    assert told == ["", "a", "a", "", ""]
    assert written.finish() == "xyb"
