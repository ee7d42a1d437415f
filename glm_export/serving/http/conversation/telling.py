"""A conversation's one reply, told block by block."""

from __future__ import annotations

from collections.abc import AsyncIterator

from glm_export.serving.http.conversation.blocks import Block, Blocks, Change
from glm_export.serving.http.conversation.prepared import Conversation


class Telling:
    """What is written for a conversation, and what it took.

    ``reason``: how it ended, as the engine says it (`stop`, `length`, `context`); empty before. ``thought_tokens``: of
    those written while the last block was a thought. ``stop_string``: the one it ended at, if any.
    """

    def __init__(self, made: Conversation) -> None:
        self.made, self.reason, self.thought_tokens = made, "", 0
        self._blocks = Blocks()

    @property
    def blocks(self) -> list[Block]:
        """Those so far."""
        return self._blocks.all

    @property
    def stop_string(self) -> str | None:
        """The one the reply ended at."""
        return self.made.writing.choices[0].text.stop_string

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Of the prompt, those of them that were read before, and those written."""
        (choice,) = self.made.writing.choices
        return len(choice.request.prompt.ids), choice.cached_tokens, len(choice.tokens)

    async def changes(self) -> AsyncIterator[Change]:
        """Each as it happens, until the reply has ended.

        Raises:
            HttpError, Exception: what ended it otherwise.
        """
        (reply,) = self.made.replies
        async for choice, event in self.made.writing.events():
            for change in self._blocks.feed(reply.take(choice)):
                yield change
            if event.token is not None:
                self.thought_tokens += self._blocks.thinking(begins=self.made.thinking)
            if event.finish_reason is not None:
                self.reason = event.finish_reason
                for change in self._blocks.finish():
                    yield change
