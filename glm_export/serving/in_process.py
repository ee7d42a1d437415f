"""An application asked in this process: no socket, the same doors. For files of requests, and for replicas."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

App = Callable[[dict[str, Any], Callable[[], Any], Callable[[Any], Any]], Any]
Headers = tuple[tuple[bytes, bytes], ...]
JSON: Headers = ((b"content-type", b"application/json"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request whose body is here. ``state``: what whoever stands before the application knows of it already."""

    path: str
    method: str = "POST"
    query: bytes = b""
    headers: Headers = JSON
    body: bytes = b""
    state: dict[str, Any] = field(default_factory=dict)

    def scope(self) -> dict[str, Any]:
        """As ASGI describes it."""
        kept = tuple(pair for pair in self.headers if pair[0] not in (b"content-length", b"transfer-encoding"))
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "root_path": "",
            "headers": [*kept, (b"content-length", str(len(self.body)).encode())],
            "client": None,
            "server": None,
            "state": dict(self.state),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, or its beginning. ``body``: all of it, or what has come since."""

    status: int
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """The first of a name; empty where there is none."""
        return next((value.decode("latin-1") for known, value in self.headers if known.decode() == name), "")


async def answered(app: App, call: Call) -> Answer:
    """Ask, and wait for all of the answer. Where the application fails it is one of status 500."""
    begun, parts = Answer(status=500), []
    try:
        async for piece in pieces(app, call):
            if isinstance(piece, Answer):
                begun = piece
            else:
                parts.append(piece)
    except Exception as error:  # a fault of ours costs its request alone
        logging.getLogger(__name__).exception("a request failed")
        return failure(error)
    return replace(begun, body=b"".join(parts))


def failure(error: Exception) -> Answer:
    """An answer that says that the server has a fault, in OpenAI's shape."""
    told = {"message": f"the request failed: {type(error).__name__}", "type": "server_error", "code": None}
    return Answer(status=500, headers=JSON, body=json.dumps({"error": told}).encode())


async def pieces(app: App, call: Call) -> AsyncIterator[Answer | bytes]:
    """Ask, and tell the answer as it comes: its beginning, then pieces of its body.

    Whoever ends the iteration early has left, and the application is told so.

    Raises:
        Exception: what the application raised.
    """
    given = [{"type": "http.request", "body": call.body, "more_body": False}]
    told: asyncio.Queue[Answer | bytes | None] = asyncio.Queue()
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            told.put_nowait(Answer(status=message["status"], headers=tuple(message["headers"])))
        elif message.get("body"):
            told.put_nowait(message["body"])

    async def run() -> None:
        try:
            await app(call.scope(), receive, send)
        finally:
            told.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while (piece := await told.get()) is not None:
            yield piece
        await running
    finally:
        left.set()
        if not running.done():
            running.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await running
