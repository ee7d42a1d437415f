"""Rows of a session by name: they come, read any number of tokens, and go, whichever kind of cache holds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.kv_cache import RowValues
from glm_export.sessions.onnxruntime.cache import InPlace
from glm_export.sessions.session import Logits, Session

LogitsByKey = dict[str, NDArray[np.float32]]
"""What follows each row's tokens that were read: ``[n, V]``, or of as many of the last as the program tells."""


class BatchRows(ABC):
    """The rows of one session. ``keys``: of those that are there, in the cache's order."""

    whole_prompts: bool
    """Whether a prompt is read at once, in a call of its own."""

    def __init__(self, session: Session, max_rows: int) -> None:
        self.session = session
        self.keys: list[str] = []
        if isinstance(session.cache, InPlace):
            session.cache.reserve_rows(max_rows)
        session.cache.clear()

    @abstractmethod
    def add(self, key: str, given: RowValues[Any] | None) -> None:
        """A row comes, with values of its first tokens or with nothing."""

    @abstractmethod
    def advance(self, tokens: Mapping[str, Sequence[int]], prompts: Mapping[str, Prompt]) -> LogitsByKey:
        """Read tokens of some rows; ``prompts`` are those of rows that have read nothing."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """A row goes; others may change their place."""

    def values(self, key: str) -> RowValues[Any]:
        """A copy of what a row has read."""
        return self.session.cache.row(self.keys.index(key))

    def clear(self) -> None:
        """All rows go, whatever state a failed call has left them in."""
        self.keys = []
        self.session.cache.clear()


class OwnLengthRows(BatchRows):
    """Rows that fill the cache on their own: some read a chunk, some a token, some wait."""

    whole_prompts = False

    def __init__(self, session: Session, max_rows: int) -> None:
        super().__init__(session, max_rows)
        self._feeds = RightPaddedFeeds.holding([], session.cache.prefix)

    def add(self, key: str, given: RowValues[Any] | None) -> None:
        """Behind the others."""
        self._feeds = self.session.admit(self._feeds, [given or RowValues(length=0, prefix=self.session.cache.prefix)])
        self.keys.append(key)

    def advance(self, tokens: Mapping[str, Sequence[int]], prompts: Mapping[str, Prompt]) -> LogitsByKey:
        """In one call of the session."""
        del prompts
        feeds = self._feeds.next_tokens([tokens.get(key, ()) for key in self.keys])
        logits_BSV = self.session.decode(feeds)
        self._feeds = feeds
        found: LogitsByKey = {}
        for row, key in enumerate(self.keys):
            count = len(tokens.get(key, ()))
            if count:
                found[key] = logits_BSV[row, : min(count, logits_BSV.shape[1])]
        return found

    def cut(self, key: str, tokens: int) -> None:
        """A row goes on from its first tokens: others that it read were guesses."""
        length = self.session.cache.prefix + tokens
        cut = self.session.truncate(self._feeds, self.keys.index(key), length)
        assert isinstance(cut, RightPaddedFeeds)
        self._feeds = cut

    def remove(self, key: str) -> None:
        """The last row takes its place."""
        at, last = self.keys.index(key), len(self.keys) - 1
        order = [last if row == at else row for row in range(last)]
        selected = self.session.select(self._feeds, order)
        assert isinstance(selected, RightPaddedFeeds)
        self._feeds = selected
        self.keys = [self.keys[row] for row in order]

    def clear(self) -> None:
        """As for every kind."""
        super().clear()
        self._feeds = RightPaddedFeeds.holding([], self.session.cache.prefix)


class WholePromptRows(BatchRows):
    """Rows whose prompts are read alone and join; then all of them decode in step."""

    whole_prompts = True

    def __init__(self, session: Session, max_rows: int) -> None:
        super().__init__(session, max_rows)
        self._feeds: Feeds | None = None
        self._given: dict[str, RowValues[Any] | None] = {}

    def add(self, key: str, given: RowValues[Any] | None) -> None:
        """It joins when its prompt is read."""
        self._given[key] = given

    def advance(self, tokens: Mapping[str, Sequence[int]], prompts: Mapping[str, Prompt]) -> LogitsByKey:
        """Rows that are there a token each, all of them, or one prompt."""
        found: LogitsByKey = {}
        reading = [key for key in tokens if key in self._given]
        if self.keys and not reading:
            assert self._feeds is not None
            feeds = self._feeds.next_step(
                [tokens[key][0] for key in self.keys], self.session.last_position(self._feeds)
            )
            logits_BV = feeds.last_logits(self.session.decode(feeds))
            self._feeds = feeds
            found |= {key: logits_BV[row : row + 1] for row, key in enumerate(self.keys)}
        for key in reading:
            found[key] = self._read(key, prompts[key])
        return found

    def _read(self, key: str, prompt: Prompt) -> Logits:
        given = self._given.pop(key)
        new = self.session.feeds([prompt])
        if self._feeds is None:
            # An empty batch of the session's own kind, to join.
            self._feeds = new.select([])
        self._feeds, logits_BSV = self.session.join(self._feeds, new, given)
        self.keys.append(key)
        row: Logits = logits_BSV[0]
        return row

    def remove(self, key: str) -> None:
        """Columns that only it filled go with it."""
        if key in self._given:
            del self._given[key]
            return
        assert self._feeds is not None
        at = self.keys.index(key)
        self.keys.pop(at)
        self._feeds = self.session.leave(self._feeds, [at]) if self.keys else None
        if not self.keys:
            self.session.cache.clear()

    def clear(self) -> None:
        """As for every kind."""
        super().clear()
        self._feeds, self._given = None, {}


def batch_rows(session: Session, max_rows: int) -> BatchRows:
    """The rows of a session, by its kind of cache."""
    return WholePromptRows(session, max_rows) if session.signature.whole_prompts else OwnLengthRows(session, max_rows)
