"""Server-sent events: what is written goes out as it comes, and an error is the last of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse

from glm_export.serving.http.failures import of_exception

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
    events: AsyncIterator[bytes], *, failed: Callable[[Exception], bytes] = failed_event, last: bytes = DONE
) -> StreamingResponse:
    """A response of events. Where its reader leaves, the iterator is closed, and with it what writes.

    Args:
        events: those of an answer that goes well.
        failed: makes the one of an answer that does not.
        last: comes behind all others.
    """
    return StreamingResponse(_guarded(events, failed, last), media_type="text/event-stream", headers=HEADERS)


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
