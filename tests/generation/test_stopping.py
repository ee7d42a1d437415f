"""Text piece by piece, whatever the pieces: together the text before the first stop string."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from hypothesis import example, given, strategies as st

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


def cut(text: str, stops: list[str], size: int) -> str:
    """The text that is told: it ends with the piece that completes a stop string, and is cut where one begins."""
    # The last letter of each piece is told with the next.
    pieces = [*(end - 1 for end in (*range(size, len(text), size), len(text))), len(text)]
    ends = [end for end in pieces if any(stop in text[:end] for stop in stops)]
    return cut_at_stop(text[: ends[0]] if ends else text, stops)


@example(text="baa", stops=["a", "baa"], size=1)
@given(text=st.text("ab，。", max_size=12), stops=STOPS, size=st.integers(1, 4))
def test_any_stream_equals_the_cut_text(text: str, stops: list[str], size: int) -> None:
    """What is sent is never taken back, and all of it is sent."""
    stream, sent, whole = TextStream(letters(), stops), "", cut(text, stops, size)
    for start in range(0, len(text), size):
        sent += stream.feed(map(ord, text[start : start + size]))
        assert whole.startswith(sent)
    assert sent + stream.finish() == whole
    assert (stream.stop_string is not None) == any(stop in text for stop in stops)


@given(st.text("ab", max_size=12), STOPS)
def test_a_model_stops_where_a_stop_string_is_complete(text: str, stops: list[str]) -> None:
    """And its text is cut where that begins."""
    written, told = WrittenText(letters(), stops), ""
    for letter in text:
        ended = written.push(ord(letter))
        told += written.take()
        assert cut(text, stops, 1).startswith(told)
        if ended:
            break
    assert told + written.finish() == cut(text, stops, 1)


def test_what_cannot_become_a_stop_string_is_told_at_once() -> None:
    written = WrittenText(letters(), ["xyz"])
    told = []
    for letter in "aaxyb":
        written.push(ord(letter))
        told.append(written.take())
    assert told == ["", "a", "a", "", ""]
    assert written.finish() == "xyb"
