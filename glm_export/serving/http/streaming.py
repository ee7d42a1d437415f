"""Server-sent events: what is written goes out as it comes, and an error is the last of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from glm_export.serving.http.failures import of_exception

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(values: dict[str, Any]) -> bytes:
    """One object as an event."""
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode()


def streamed(events: AsyncIterator[bytes]) -> StreamingResponse:
    """A response of events. Where its reader leaves, the iterator is closed, and with it what writes."""
    return StreamingResponse(_guarded(events), media_type="text/event-stream", headers=HEADERS)


async def _guarded(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        async for one in events:
            yield one
    except Exception as error:  # the status is sent: what went wrong is said in the stream
        _, body, _ = of_exception(error)
        yield event(body)
    yield DONE
