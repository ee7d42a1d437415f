"""What stands before every door: a request's name, its key, and how much and how long a body may be."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from glm_export.serving.http.failures import ANTHROPIC, error_object, shaped
from glm_export.serving.metrics.record import Observer, RequestRecord, Tally, log_request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = frozenset({"/health", "/ready", "/"})
"""Paths without a key: what a load balancer asks, and the page, which asks for the key itself."""
OPEN_BELOW = "/page/"
"""The page's files."""
BODY_SECONDS = 30.0
"""Between two pieces of a body."""


def digest_of(key: str) -> str:
    """What is kept of a key: enough to know it again, and to keep apart what is kept for it."""
    return hashlib.sha256(key.encode()).hexdigest()


class _RefusedError(HTTPException):
    """Raised where a body is read, too: the framework takes other errors there for malformed JSON."""


class Guard:
    """Around an app. ``digests``: of the keys that open it; without any, everybody on this machine may enter.

    The state of a request has ``request_id``, which whoever calls the app may have chosen, and then tells itself;
    ``key``, which no other request has; ``tenant``, a hash of the key that opened the door, for what is kept apart by
    it; and ``tally``, for whoever writes. ``observers`` are told of each request when it has been answered.
    """

    def __init__(
        self,
        app: App,
        *,
        digests: Iterable[str],
        max_body_bytes: int,
        body_s: float = BODY_SECONDS,
        observers: Sequence[Observer] = (log_request,),
    ) -> None:
        self._app, self._digests, self._max_body_bytes, self._body_s = app, tuple(digests), max_body_bytes, body_s
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        state = scope.setdefault("state", {})
        own = "request_id" not in state
        state["key"] = uuid.uuid4().hex
        state.setdefault("request_id", f"req-{state['key']}")
        state["tally"] = Tally()
        started, seen = time.perf_counter(), {"status": 0, "first": 0.0}

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                # Anthropic's clients look for its second name.
                names = [
                    *([b"x-request-id"] if own else []),
                    *([b"request-id"] if scope["path"].startswith(ANTHROPIC) else []),
                ]
                ids = [(name, state["request_id"].encode()) for name in names]
                message["headers"] = [*message.get("headers", ()), *ids]
            elif not seen["first"]:
                seen["first"] = time.perf_counter() - started
            await send(message)

        try:
            if "tenant" not in state:
                state["tenant"] = self._tenant(scope["path"], headers)
            declared = headers.get("content-length", "")
            if declared.isdigit() and int(declared) > self._max_body_bytes:
                raise self._too_large()
            await self._app(scope, self._bounded(receive), named)
        except _RefusedError as error:
            if not seen["status"]:
                await _answer(named, scope, error)
        finally:
            record = RequestRecord(
                request_id=state["request_id"],
                method=scope["method"],
                path=scope["path"],
                status=int(seen["status"]),
                first_byte_s=seen["first"],
                seconds=time.perf_counter() - started,
                ended_ns=time.time_ns(),
                headers=headers,
                tally=state["tally"],
            )
            for observe in self._observers:
                observe(record)

    def _tenant(self, path: str, headers: dict[str, str]) -> str:
        if not self._digests or path in OPEN or path.startswith(OPEN_BELOW):
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = digest_of(given)
        # Every known one is compared, in a time that says nothing of where they differ.
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        if not any(known):
            raise _RefusedError(401, "a key is wanted: Authorization: Bearer KEY, or x-api-key: KEY")
        return digest

    def _too_large(self) -> _RefusedError:
        return _RefusedError(413, f"a body has at most {self._max_body_bytes} bytes; send less")

    def _bounded(self, receive: Receive) -> Receive:
        length, ended = 0, False

        async def bounded() -> Message:
            nonlocal length, ended
            if ended:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._body_s)
            except TimeoutError as error:
                raise _RefusedError(408, f"the body did not go on for {self._body_s:g} s") from error
            length += len(message.get("body", b""))
            if length > self._max_body_bytes:
                raise self._too_large()
            ended = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return bounded


async def _answer(send: Send, scope: Scope, error: HTTPException) -> None:
    status = error.status_code
    told = error_object(error.detail, "authentication_error" if status == 401 else "invalid_request_error")
    body = json.dumps(shaped(scope["path"], status, told, scope["state"]["request_id"])).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
