"""Text piece by piece, whatever the pieces: together the text before the first stop string."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, strategies as st

from glm_export.generation.stopping import cut_at_stop
from glm_export.serving.written_text import WrittenText


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


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_pieces_are_the_whole(text: str, stops: list[str]) -> None:
    """The model is stopped where a stop string is complete, and the text is cut where it begins."""
    ends = [end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)]
    whole = cut_at_stop(text[: ends[0]] if ends else text, stops)
    written, told = WrittenText(Letters(), stops), ""
    for letter in text:
        ended = written.push(ord(letter))
        told += written.take()
        assert whole.startswith(told)
        if ended:
            break
    assert told + written.rest() == whole


def test_what_cannot_become_a_stop_string_is_told_at_once() -> None:
    written = WrittenText(Letters(), ["xyz"])
    told = []
    for letter in "aaxyb":
        written.push(ord(letter))
        told.append(written.take())
    assert told == ["", "a", "a", "", ""]
    assert written.rest() == "xyb"
