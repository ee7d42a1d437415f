"""What stands before a cluster's engines: who asks, which model is meant, and what becomes of an engine's death."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from ray import exceptions, serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from glm_export.model_folder import parse_json
from glm_export.serving.http.failures import ANTHROPIC, HttpError, of_exception, shaped
from glm_export.serving.http.guard import Guard, Receive, Scope, Send
from glm_export.serving.http.streaming import DONE, event, named_event
from glm_export.serving.in_process import JSON, Answer, Call
from glm_export.serving.metrics.exposition import CONTENT_TYPE
from glm_export.serving.metrics.merging import merged
from glm_export.serving.metrics.pace import Pace
from glm_export.serving.metrics.record import RequestRecord, log_request
from glm_export.serving.options import MEGABYTE, ServeOptions
from glm_export.serving.ray.prefixes import pieces_of
from glm_export.serving.ray.replica import Asked
from glm_export.serving.worker import DrainingError, QueueFullError

GONE = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.ObjectLostError)
"""How a replica's death looks to who waits for its answer."""
ATTEMPTS = 5
"""Replicas that may die under one request."""
HEALTH_S = 10.0
RESPONSES = "/v1/responses"


class ReplicaLostError(HttpError):
    """The engine that wrote an answer is no more, and what it had written was told already."""

    def __init__(self) -> None:
        super().__init__(
            503, "the engine that wrote this answer was lost; ask again", "service_unavailable", code="replica_lost"
        )


class Gateway:
    """An ASGI application whose answers come from replicas, by the model a request names. ``open``: requests in it."""

    def __init__(self, engines: Mapping[str, DeploymentHandle]) -> None:
        self._engines = dict(engines)
        self._pace = Pace()
        self.draining, self.open = False, 0
        self._own = {
            "/metrics": self._metrics,
            "/v1/models": self._models,
            "/health": self._health,
            "/ready": self._ready,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        self.open += 1
        try:
            body = await _body(receive)
            await self._answer(scope, body, receive, send)
        finally:
            self.open -= 1
            self._pace.ended(time.monotonic())

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        path = scope["path"]
        sent = _Sent(send)
        try:
            own = {
                "/metrics": self._metrics,
                "/v1/models": self._models,
                "/health": self._health,
                "/ready": self._ready,
            }
            if scope["method"] == "GET" and path in own:
                await sent.whole(await own[path]())
                return
            if self.draining and path.startswith("/v1/") and scope["method"] == "POST":
                raise DrainingError
            asked, streams, engine = self._asked(scope, body)
            answering = self._stream(engine, asked, sent) if streams else self._whole(engine, asked, sent)
            await _while_connected(answering, receive)
        except Exception as error:
            told = error
            if isinstance(error, BackPressureError):
                told = QueueFullError(self.open - 1, self._pace.retry_after_s())
            elif isinstance(error, DeploymentUnavailableError):
                told = HttpError(503, "no engine of this model runs; try again later", "service_unavailable")
            elif not isinstance(error, HttpError | DrainingError):
                logging.getLogger(__name__).exception("a request failed before its engine")
            await sent.failed(told, path, scope["state"]["request_id"])

    def _asked(self, scope: Scope, body: bytes) -> tuple[Asked, bool, DeploymentHandle]:
        """The request for a replica, whether its answer is a stream, and whose replica it is."""
        # What is no JSON is refused by the door itself.
        try:
            fields = parse_json(body.decode()) if body else {}
        except ValueError:
            fields = {}
        fields = fields if isinstance(fields, dict) else {}
        state = {name: scope["state"][name] for name in ("request_id", "tenant")}
        call = Call(
            path=scope["path"],
            method=scope["method"],
            query=scope["query_string"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            body=body,
            state=state,
        )
        asked = Asked(call=call, pieces=pieces_of(fields, str(state["tenant"])))
        return asked, fields.get("stream") is True, self._engine(scope, fields)

    def _engine(self, scope: Scope, fields: Mapping[str, Any]) -> DeploymentHandle:
        """The model that is named: in the body, in the query, or by the path; the first one where none is.

        Raises:
            HttpError: there is none of this name.
        """
        name = fields.get("model") or parse_qs(scope["query_string"].decode("latin-1")).get("model", [None])[0]
        if scope["path"].startswith("/v1/models/"):
            name = scope["path"].removeprefix("/v1/models/")
        if not isinstance(name, str) or not name:
            return next(iter(self._engines.values()))
        if name not in self._engines:
            known = ", ".join(self._engines)
            raise HttpError(404, f"there is no model {name!r}; known: {known}", param="model", code="model_not_found")
        return self._engines[name]

    async def _whole(self, engine: DeploymentHandle, asked: Asked, sent: _Sent) -> None:
        """An answer that is told when all of it is there: where its replica dies, another one writes it."""
        for _ in range(ATTEMPTS):
            try:
                await sent.whole(await engine.whole.remote(asked))
                return
            except GONE:
                logging.getLogger(__name__).warning("a replica was lost; its request is asked again")
        raise ReplicaLostError

    async def _stream(self, engine: DeploymentHandle, asked: Asked, sent: _Sent) -> None:
        """An answer as it is written: where its replica dies before a piece was told, another one writes it."""
        for _ in range(ATTEMPTS):
            written = engine.options(stream=True).streamed.remote(asked)
            try:
                async for piece in written:
                    await (sent.begin(piece) if isinstance(piece, Answer) else sent.piece(piece))
                await sent.end()
                return
            except GONE:
                if sent.told:
                    break
                logging.getLogger(__name__).warning("a replica was lost; its request is asked again")
            finally:
                written.cancel()
        raise ReplicaLostError

    async def _metrics(self) -> Answer:
        """Every replica's, each with its own label."""
        pages: dict[str, bytes] = {}
        for engine in self._engines.values():
            pages |= dict(await engine.broadcast("exposition").results_async())
        return Answer(
            status=200, headers=((b"content-type", CONTENT_TYPE.encode()),), body=merged(pages, label="replica")
        )

    async def _models(self) -> Answer:
        """What is served, by every model's own word."""
        try:
            answers = await asyncio.wait_for(asyncio.gather(*self._from_each("/v1/models").values()), HEALTH_S)
        except TimeoutError as error:
            raise HttpError(503, "not every model has an engine that answers", "service_unavailable") from error
        data = [one for answer in answers for one in json.loads(answer.body)["data"]]
        return Answer(status=200, headers=JSON, body=json.dumps({"object": "list", "data": data}).encode())

    async def _health(self) -> Answer:
        """Whether every model has an engine that answers."""
        asked = self._from_each("/health")
        answers = await asyncio.gather(
            *(asyncio.wait_for(answer, HEALTH_S) for answer in asked.values()), return_exceptions=True
        )
        dead = [name for name, answer in zip(asked, answers, strict=True) if getattr(answer, "status", 503) != 200]
        body = json.dumps({"status": "dead" if dead else "ok", "dead": dead}).encode()
        return Answer(status=503 if dead else 200, headers=JSON, body=body)

    async def _ready(self) -> Answer:
        """Whether new requests are taken."""
        body = json.dumps({"ready": not self.draining}).encode()
        return Answer(status=503 if self.draining else 200, headers=JSON, body=body)

    def _from_each(self, path: str) -> dict[str, Awaitable[Answer]]:
        asked = Asked(call=Call(path=path, method="GET", headers=(), state={"tenant": ""}))

        async def answer(engine: DeploymentHandle) -> Answer:
            told: Answer = await engine.whole.remote(asked)
            return told

        return {name: answer(engine) for name, engine in self._engines.items()}


class _Sent:
    """What was told of one answer. ``told``: whether a piece of its body was."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = self.told = False

    async def whole(self, answer: Answer) -> None:
        """All of one."""
        await self.begin(answer)
        await self._send({"type": "http.response.body", "body": answer.body})

    async def begin(self, answer: Answer) -> None:
        """Its status and headers; those of a second replica are the first one's again."""
        if not self.begun:
            self.begun = True
            headers = [pair for pair in answer.headers if pair[0] != b"request-id"]  # the guard before this tells it
            await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})

    async def piece(self, piece: bytes) -> None:
        """A piece of its body."""
        self.told = True
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """Nothing more."""
        await self._send({"type": "http.response.body", "body": b""})

    async def failed(self, error: Exception, path: str, request_id: str) -> None:
        """What went wrong: an answer of its own, or the last event of a stream that has begun."""
        status, body, headers = of_exception(error)
        body = shaped(path, status, body, request_id)
        if not self.begun:
            names = tuple((name.encode(), value.encode()) for name, value in headers.items())
            await self.whole(Answer(status=status, headers=(*JSON, *names), body=json.dumps(body).encode()))
            return
        await self.piece(last_events(path, body))
        await self.end()


def last_events(path: str, body: dict[str, Any]) -> bytes:
    """How a stream that cannot go on ends, as the clients of its path know it.

    Args:
        path: of the request.
        body: of the error, in the path's shape.
    """
    if path.startswith(ANTHROPIC):
        return named_event(body)
    if path.startswith(RESPONSES):
        told = body["error"]
        return named_event({"type": "error", "code": told["code"], "message": told["message"], "param": None})
    return event(body) + DONE


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    return b"".join(parts)


async def _while_connected(answering: Awaitable[None], receive: Receive) -> None:
    """Wait for an answer as long as its client is there; a replica's work for one who left is given up."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(answering), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


@serve.ingress()
class Ingress:
    """The deployment whose requests come from Ray Serve's proxies."""

    def __init__(self, names: list[str], options: ServeOptions, digests: list[str], *engines: DeploymentHandle) -> None:
        """Stand before engines.

        Args:
            names: of the models, the first one first.
            options: of the server.
            digests: of the keys that open it.
            *engines: a handle each.
        """
        self._gateway = Gateway(dict(zip(names, engines, strict=True)))
        self._options, self._digests = options, digests

    def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """What Ray Serve's proxies ask."""
        most = self._options.max_body_megabytes * MEGABYTE
        guard = Guard(self._gateway, digests=self._digests, max_body_bytes=most, observers=[_log_refused])

        async def named(scope: Scope, receive: Receive, send: Send) -> None:
            # Ray Serve's proxy has named the request, and tells the name with the answer.
            name = dict(scope.get("headers", ())).get(b"x-request-id")
            if name:
                scope["state"] = {"request_id": name.decode("latin-1")}
            await guard(scope, receive, send)

        return named

    async def drain(self) -> int:
        """Take nothing new; returns how many requests are still answered."""
        self._gateway.draining = True
        return self._gateway.open


def _log_refused(record: RequestRecord) -> None:
    """Engines log what reaches them; this, what does not."""
    if record.status in (401, 408, 413):
        log_request(record)
