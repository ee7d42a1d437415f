"""``POST /v1/messages``: a conversation's next message by Anthropic's API, and how many tokens one has."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request as HttpRequest
from fastapi.responses import Response

from glm_export.serving.http.anthropic.asked import CountRequest, MessagesRequest
from glm_export.serving.http.anthropic.told import AnthropicMessage
from glm_export.serving.http.asking import model_of
from glm_export.serving.http.connection import while_connected
from glm_export.serving.http.conversation.prepared import ids_of, prepared
from glm_export.serving.http.conversation.telling import Telling
from glm_export.serving.http.failures import of_exception, shaped
from glm_export.serving.http.streaming import named_event, streamed

router = APIRouter()


@router.post("/v1/messages")
async def messages(http: HttpRequest, asked: MessagesRequest) -> Response:
    """The assistant's next message."""
    made = await prepared(http, asked.to_write())
    message = AnthropicMessage(Telling(made), http.state.request_id.removeprefix("req-"))
    if asked.stream:

        def failed(error: Exception) -> bytes:
            status, body, _ = of_exception(error)
            return named_event(shaped(http.url.path, status, body, http.state.request_id))

        return streamed(made.writing, message.stream(), failed=failed, last=b"")
    with made.writing:
        return await while_connected(http, message.whole())


@router.post("/v1/messages/count_tokens")
async def count_tokens(http: HttpRequest, asked: CountRequest) -> dict[str, Any]:
    """Of a conversation as the model would read it."""
    return {"input_tokens": len(ids_of(http, model_of(http, asked.model), asked.chat()))}
