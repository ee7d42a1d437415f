"""Ids to text while they are written: together the text that decoding all of them gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set as AbstractSet
from typing import Protocol

from glm_export.tokenizers.streams.filters import FilterChain, TextFilter
from glm_export.tokenizers.streams.runs import Run


class IdStream(Protocol):
    """Ids in, text out."""

    def feed(self, index: int) -> str:
        """What is certain after one more id."""

    def finish(self) -> str:
        """What was held back."""

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:
        """What an id adds to a text; ``first``: to one that begins with it."""


class Detokenizer:
    """Text of ids that come one by one; a character cut between two is held back.

    Args:
        stream: from ids to text.
        filters: what is done to the text.
    """

    def __init__(self, stream: IdStream, filters: Sequence[TextFilter] = ()) -> None:
        self._stream, self._filters = stream, FilterChain(filters)

    def bytes_of(self, index: int, *, first: bool = False) -> bytes | None:
        """What an id adds to a text, in UTF-8; None where that is nothing, or depends on more than the ids before it.

        Special tokens and those added to a vocabulary add nothing here. Blanks that tidying takes away are there.

        Args:
            index: an id.
            first: of a text that begins with it.
        """
        data = self._stream.bytes_of(index, first=first)
        if data and data.startswith(b"<") and data.isascii():
            data = (self._filters.feed(data.decode()) + self._filters.finish()).encode()
        return data or None

    def feed(self, ids: Iterable[int]) -> str:
        """What is certain after more ids."""
        return self._filters.feed("".join(map(self._stream.feed, ids)))

    def finish(self) -> str:
        """What was held back, when there are no more."""
        return self._filters.feed(self._stream.finish()) + self._filters.finish()


class AroundShown:
    """Runs of ids between added tokens that are written out: ``decode_around``, id by id.

    Args:
        run: makes the stream of one run.
        hidden: ids without text, which end no run.
        shown: added tokens that have one.
        unwritten: ids beside these that a grammar has no text for.
        empty_runs: whether runs without text count as parts, and ids that no vocabulary has begin none, as in GLM
            (2022)'s ``decode``.
    """

    def __init__(
        self,
        run: Callable[[], Run],
        hidden: AbstractSet[int] = frozenset(),
        shown: Mapping[int, str] | None = None,
        *,
        unwritten: AbstractSet[int] = frozenset(),
        empty_runs: bool = False,
    ) -> None:
        self._unwritten = unwritten | hidden | frozenset(shown or {})
        self._make, self._hidden, self._shown, self._empty_runs = run, hidden, shown or {}, empty_runs
        self._run: Run | None = None
        self._parts = 0
        self._in_part = False

    def feed(self, index: int) -> str:
        """What is certain after one more id."""
        if index in self._shown:
            before = self._end_run(keep_empty=self._empty_runs)
            text = before + self._written(self._shown[index])
            self._in_part = False
            return text
        if index in self._hidden:
            return ""
        run = self._run or self._make()
        if not self._empty_runs or run.has(index):
            self._run = run
        return self._written(run.feed(index)) if run.has(index) else ""

    def finish(self) -> str:
        """What was held back."""
        return self._end_run(keep_empty=True)

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:
        """What an id adds to a run."""
        run = self._make()
        return run.bytes_of(index, first=first) if index not in self._unwritten and run.has(index) else None

    def _written(self, text: str, *, keep_empty: bool = False) -> str:
        """Text of a part, a blank before it where it begins and is not the first."""
        if self._in_part or not (text or keep_empty):
            return text
        self._in_part = True
        self._parts += 1
        return " " + text if self._parts > 1 else text

    def _end_run(self, *, keep_empty: bool) -> str:
        if self._run is None:
            return ""
        text = self._written(self._run.finish(), keep_empty=keep_empty)
        self._run, self._in_part = None, False
        return text


class WithNames:
    """Special tokens by their names, and runs of other ids between them, each for itself."""

    def __init__(self, make: Callable[[], IdStream], names: Mapping[int, str]) -> None:
        self._make, self._names = make, names
        self._stream = make()

    def feed(self, index: int) -> str:
        """What is certain after one more id."""
        if index not in self._names:
            return self._stream.feed(index)
        text = self._stream.finish() + self._names[index]
        self._stream = self._make()
        return text

    def finish(self) -> str:
        """What was held back."""
        return self._stream.finish()

    def bytes_of(self, index: int, *, first: bool) -> bytes | None:
        """What an id adds to a run; a name is no text."""
        return None if index in self._names else self._stream.bytes_of(index, first=first)
