"""A reply while it is written: the streamed counterpart of ``parse_reply``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from glm_export.errors import InputError
from glm_export.tokenizers.chat.messages import Tools
from glm_export.tokenizers.chat.replies import ENDS, THINK, THINK_END, Functions, functions_of, how_calls_are_written
from glm_export.tokenizers.streams.calls import CallReader
from glm_export.tokenizers.streams.deltas import Delta, ReasoningDelta, joined
from glm_export.tokenizers.streams.detokenizer import Detokenizer
from glm_export.tokenizers.streams.filters import StripFilter, TagSplitter
from glm_export.tokenizers.streams.reader import PlainReader, ReplyReader
from glm_export.tokenizers.streams.turns import RoleLines, RoleParts, TurnReader

READERS: dict[str, Callable[[Functions], ReplyReader]] = {
    "": lambda _: PlainReader(),
    "glm4_moe": CallReader,
    "role_lines": lambda functions: TurnReader(RoleLines(functions)),
    "role_parts": lambda functions: TurnReader(RoleParts(functions)),
}
"""By :func:`~glm_export.tokenizers.chat.replies.how_calls_are_written`."""


class ReplyStream:
    """What a reply says, as far as it is certain; all deltas are together the message of ``parse_reply``.

    Text and thoughts come as they are written. Held back is what the rest could make something else of: the beginning
    of a tag, blanks that are stripped at the end, a first line that may be a tool's name, a call until it is whole,
    since half a call is text. Work grows with the text, not with the number of parts.

    Args:
        family: says how calls are written.
        prompt: what its file calls ``CHAT``.
        tools: as ``parse_reply`` takes them; an empty list, not None, where there are none: then no word is waited for
            to become a tool's name.
        thinking: whether the prompt ended inside a thought; see
            :func:`~glm_export.tokenizers.ends_in_thought`.
        detokenizer: for :meth:`feed_ids`.
    """

    def __init__(
        self,
        family: str,
        prompt: str,
        tools: Tools | None = None,
        *,
        thinking: bool = False,
        detokenizer: Detokenizer | None = None,
    ) -> None:
        self._reader = READERS[how_calls_are_written(family, prompt)](functions_of(tools))
        self._splitter = TagSplitter((*ENDS, THINK, THINK_END, *self._reader.tags))
        self._detokenizer, self._inside = detokenizer, thinking
        self._take: Callable[[str, bool], Iterator[Delta]] = self._begin
        self._blanks: list[str] = []
        self._thought = StripFilter()
        self.ended = False
        """Whether the model wrote that its reply ends; what follows is not read."""

    def feed(self, text: str) -> list[Delta]:
        """What is new after more text."""
        return joined(delta for part, is_tag in self._splitter.feed(text) for delta in self._taken(part, is_tag))

    def feed_ids(self, ids: Iterable[int]) -> list[Delta]:
        """What is new after more ids, of which special tokens count.

        Raises:
            InputError: the stream was made without a tokenizer.
        """
        if self._detokenizer is None:
            raise InputError("this stream reads text; one that reads ids comes from tokenizer.reply_stream()")
        return self.feed(self._detokenizer.feed(ids))

    def finish(self) -> list[Delta]:
        """What was held back, when the reply has ended."""
        deltas = self.feed(self._detokenizer.finish()) if self._detokenizer is not None else []
        if rest := self._splitter.finish():
            deltas += self._taken(rest, False)
        return joined([*deltas, *self._rest()])

    def _rest(self) -> Iterator[Delta]:
        if self._take == self._think:
            yield ReasoningDelta(text=self._thought.feed(self._reader.end_thought()))
        elif self._take == self._answer:
            yield from self._reader.finish()

    def _taken(self, part: str, is_tag: bool) -> Iterator[Delta]:
        self.ended = self.ended or (is_tag and part in ENDS)
        if not self.ended:
            yield from self._take(part, is_tag)

    def _begin(self, part: str, is_tag: bool) -> Iterator[Delta]:
        """Before anything but blanks was written."""
        if is_tag and part == THINK:
            self._take = self._think
        elif not is_tag and part.isspace():
            self._blanks.append(part)
        else:
            self._take = self._think if self._inside else self._answer
            for blanks in self._blanks:
                yield from self._take(blanks, False)
            yield from self._take(part, is_tag)

    def _think(self, part: str, is_tag: bool) -> Iterator[Delta]:
        if is_tag and part == THINK_END:
            yield ReasoningDelta(text=self._thought.feed(self._reader.end_thought()))
            self._take = self._answer
            return
        for found in self._reader.think(part, is_tag=is_tag):
            if isinstance(found, str):
                yield ReasoningDelta(text=self._thought.feed(found))
            else:
                self._take = self._answer
                yield found

    def _answer(self, part: str, is_tag: bool) -> Iterator[Delta]:
        yield from self._reader.feed(part, is_tag=is_tag)
