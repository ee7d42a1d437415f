"""Whether somebody still waits for an answer that is given whole."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

CLIENT_LEFT = 499
"""nginx's status for an answer nobody waits for."""


async def while_connected(http: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """Work out an answer, as long as its client is there; behind it nothing is worked out any more."""
    working = asyncio.ensure_future(answer)
    watching = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return JSONResponse(working.result())
        return Response(status_code=CLIENT_LEFT)
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
