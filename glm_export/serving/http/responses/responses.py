"""``POST /v1/responses``: a conversation's next items by OpenAI's newer API; nothing is stored."""

from __future__ import annotations

from fastapi import APIRouter, Request as HttpRequest
from fastapi.responses import Response

from glm_export.serving.http.connection import while_connected
from glm_export.serving.http.conversation.prepared import prepared
from glm_export.serving.http.conversation.telling import Telling
from glm_export.serving.http.responses.asked import ResponsesRequest
from glm_export.serving.http.responses.told import OpenAIResponse
from glm_export.serving.http.streaming import streamed

router = APIRouter()


@router.post("/v1/responses")
async def responses(http: HttpRequest, asked: ResponsesRequest) -> Response:
    """What the model thinks, says and calls next."""
    made = await prepared(http, asked.to_write())
    answer = OpenAIResponse(Telling(made), asked, http.state.request_id.removeprefix("req-"))
    if asked.stream:
        return streamed(made.writing, answer.stream(), failed=answer.failed, last=b"")
    with made.writing:
        return await while_connected(http, answer.whole())
