"""A stream closes its writing, whoever leaves and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from glm_export.serving.http.streaming import DONE, event, streamed
from glm_export.serving.http.writing import Writing


class Watched:
    """Stands for a writing: remembers what was done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def begin(self) -> None:
        self.done.append("begun")

    def close(self) -> None:
        self.done.append("closed")


async def two() -> AsyncIterator[bytes]:
    yield event({"a": 1})
    yield event({"b": 2})


async def failing() -> AsyncIterator[bytes]:
    yield event({"a": 1})
    raise ValueError("it broke")


def answered(watched: Watched, events: AsyncIterator[bytes], *, gone_after: int | None = None) -> list[bytes]:
    """Bodies that were sent, to a client that is gone after so many of them."""
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        while gone_after is None or len(sent) < gone_after:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        if body := message.get("body"):
            sent.append(body)

    response = streamed(cast("Writing", watched), events)
    assert watched.done == ["begun"]
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}
    asyncio.run(response(scope, receive, send))
    return sent


def test_a_whole_stream() -> None:
    watched = Watched()
    assert answered(watched, two()) == [event({"a": 1}), event({"b": 2}), DONE]
    assert watched.done == ["begun", "closed"]


def test_what_goes_wrong_is_the_last_event() -> None:
    watched = Watched()
    first, failed, last = answered(watched, failing())
    assert (first, last) == (event({"a": 1}), DONE)
    assert b'"error"' in failed
    assert watched.done == ["begun", "closed"]


@pytest.mark.parametrize("after", [0, 1])
def test_a_client_that_leaves(after: int) -> None:
    """Before its first byte no iterator has begun, which could close anything."""
    watched = Watched()
    assert len(answered(watched, two(), gone_after=after)) < 3
    assert watched.done == ["begun", "closed"]
