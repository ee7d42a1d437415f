"""One HTTP request's rows: submitted together, read as they are written, given up when nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from glm_export.serving.http.failures import DEADLINE, deadline_error
from glm_export.serving.http.served import ServedModel
from glm_export.serving.metrics.record import Tally
from glm_export.serving.options import ServeOptions
from glm_export.serving.request import Event, Request
from glm_export.serving.written_text import WrittenText


@dataclass(slots=True, kw_only=True)
class Choice:
    """One row. ``new``: the text that came with the last event. ``tokens``: written so far."""

    index: int
    request: Request
    text: WrittenText
    new: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    cached_tokens: int = 0

    def take(self, event: Event) -> None:
        """One event on.

        Raises:
            HttpError, Exception: what ended the row.
        """
        self.new = ""
        if event.token is not None:
            self.tokens.append(event.token)
            self.new = self.text.take()
        if event.finish_reason is None:
            return
        if event.error is not None or event.finish_reason == DEADLINE:
            self.finish_reason = event.finish_reason
            raise event.error or deadline_error()
        self.new += self.text.finish()
        self.cached_tokens = event.cached_tokens
        # OpenAI knows no other word for a text that fills the context.
        self.finish_reason = "length" if event.finish_reason == "context" else event.finish_reason


class Writing:
    """Rows of one model. Leaving the block gives up those that are not done. ``tally``: of the request they are for.

    Raises, on beginning:
        QueueFullError: too many wait.
        DrainingError: the server ends.
    """

    def __init__(self, model: ServedModel, choices: Sequence[Choice], options: ServeOptions, tally: Tally) -> None:
        self.model, self.choices, self._options, self._tally = model, list(choices), options, tally
        self._events: asyncio.Queue[tuple[Choice, Event]] = asyncio.Queue()
        self._begun: list[Choice] = []

    def begin(self) -> None:
        """Submit every row, or none."""
        loop, options = asyncio.get_running_loop(), self._options
        try:
            for choice in self.choices:

                def sink(event: Event, choice: Choice = choice) -> None:
                    # A loop that has ended has nobody who reads.
                    with suppress(RuntimeError):
                        loop.call_soon_threadsafe(self._events.put_nowait, (choice, event))

                self.model.worker.submit(choice.request, sink, wait_s=options.wait_seconds, run_s=options.deadline)
                self._begun.append(choice)
        except BaseException:
            self.close()
            raise
        self._tally.begin(self.model.name, (choice.request.prompt.ids for choice in self.choices))

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is not done."""
        for choice in self._begun:
            if choice.finish_reason is None:
                self.model.worker.cancel(choice.request.key)
                self._tally.finish_reasons.append("cancelled")

    async def events(self) -> AsyncIterator[tuple[Choice, Event]]:
        """Each as it happens, until all rows are done; what it brings is in the choice already.

        Raises:
            HttpError, Exception: what ended a row.
        """
        left = len(self._begun)
        while left:
            choice, event = await self._events.get()
            self._tally.take(event)
            choice.take(event)
            left -= event.finish_reason is not None
            yield choice, event

    @property
    def usage(self) -> dict[str, object]:
        """Tokens read and written so far, as OpenAI counts them: a prompt once, however many choices."""
        prompts = {choice.request.prompt.ids: choice for choice in self.choices}
        read = sum(len(ids) for ids in prompts)
        written = sum(len(choice.tokens) for choice in self.choices)
        cached = sum(choice.cached_tokens for choice in prompts.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
