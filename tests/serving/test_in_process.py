"""An application asked without a socket: as it answers, also where it fails, and told when nobody listens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from glm_export.serving.in_process import Answer, Call, answered, pieces


async def in_pieces(scope: Any, receive: Any, send: Any) -> None:
    given = await receive()
    assert (given["body"], scope["state"]) == (b"body", {"request_id": "mine"})
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-one", b"1"), (b"x-one", b"2")]})
    for number in range(3):
        await send({"type": "http.response.body", "body": str(number).encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


CALL = Call(path="/", body=b"body", state={"request_id": "mine"})


def test_whole_and_in_pieces() -> None:
    whole = asyncio.run(answered(in_pieces, CALL))
    assert (whole.status, whole.body, whole.header("x-one"), whole.header("x-two")) == (201, b"012", "1", "")

    async def gathered() -> list[Any]:
        return [piece async for piece in pieces(in_pieces, CALL)]

    begun, *rest = asyncio.run(gathered())
    assert (begun.status, rest) == (201, [b"0", b"1", b"2"])


def test_who_leaves_is_missed() -> None:
    seen: list[str] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            seen.append((await receive())["type"])
        finally:
            seen.append("closed")

    async def first() -> Answer | bytes:
        told = pieces(endless, CALL)
        await anext(told)
        piece = await anext(told)
        await told.aclose()
        return piece

    assert asyncio.run(first()) == b"x"
    assert seen[-1] == "closed"


def test_a_fault_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    told = asyncio.run(answered(failing, CALL))
    assert (told.status, b"ZeroDivisionError" in told.body) == (500, True)
    assert "a request failed" in caplog.text
