"""Server-sent events: what is written goes out as it comes, and an error is the last of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from glm_export.serving.http.failures import of_exception
from glm_export.serving.http.writing import Writing

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(values: dict[str, Any]) -> bytes:
    """One object as an event."""
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode()


def named_event(values: dict[str, Any]) -> bytes:
    """One object as an event that is called like its ``type``."""
    return f"event: {values['type']}\n".encode() + event(values)


def failed_event(error: Exception) -> bytes:
    """What went wrong, as OpenAI's clients read it in a stream."""
    return event(of_exception(error)[1])


def streamed(
    writing: Writing,
    events: AsyncIterator[bytes],
    *,
    failed: Callable[[Exception], bytes] = failed_event,
    last: bytes = DONE,
) -> StreamingResponse:
    """Begin a writing, and tell of it as it goes on. It is closed when all is told, or nobody reads any more.

    Args:
        writing: what cannot be begun has a status of its own.
        events: those of an answer that goes well.
        failed: makes the one of an answer that does not.
        last: comes behind all others.

    Raises:
        QueueFullError: too many wait.
        DrainingError: the server ends.
    """
    writing.begin()
    return _Streamed(writing, _guarded(events, failed, last))


class _Streamed(StreamingResponse):
    """Closes its writing itself: a reader who left before the first byte never starts the iterator."""

    def __init__(self, writing: Writing, content: AsyncIterator[bytes]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=HEADERS)
        self._writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._writing.close()


async def _guarded(
    events: AsyncIterator[bytes], failed: Callable[[Exception], bytes], last: bytes
) -> AsyncIterator[bytes]:
    try:
        async for one in events:
            yield one
    except Exception as error:  # the status is sent: what went wrong is said in the stream
        yield failed(error)
    if last:
        yield last
