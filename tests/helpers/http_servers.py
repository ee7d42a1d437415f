"""Servers of tests: an application that is asked in this process, and one that listens in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx

HERE = "http://here"
"""Where an application in this process is."""


def answered(app: Any, *requests: httpx.Request) -> list[httpx.Response]:
    """What an application says to requests at :data:`HERE`, one after another; nothing listens."""

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(ask())


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def listening(handler: type[Quiet]) -> Iterator[str]:
    """A server's host and port, until the block ends."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
