"""Errors as OpenAI's clients expect them: an object with message, type, param and code; and as Anthropic's do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from glm_export.errors import GlmExportError, InputError, message
from glm_export.serving.worker import DrainingError, QueueFullError

DEADLINE = "deadline"
ANTHROPIC = "/v1/messages"
"""Where the paths of Anthropic's API begin."""
ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
"""What Anthropic calls an error of a status (docs.anthropic.com/en/api/errors); others are invalid requests."""


class HttpError(Exception):
    """An answer with a status. ``kind``: OpenAI's word for it; ``param``: of the request; ``code``: for programs."""

    def __init__(
        self, status: int, told: str, kind: str = "invalid_request_error", *, param: str | None = None, code: str = ""
    ) -> None:
        super().__init__(told)
        self.status, self.kind, self.param, self.code = status, kind, param, code or None


def error_object(told: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message(told), "type": kind, "param": param, "code": code}}


def of_exception(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of what went wrong."""
    if isinstance(error, HttpError):
        return error.status, error_object(str(error), error.kind, error.param, error.code), {}
    if isinstance(error, QueueFullError):
        body = error_object(str(error), "rate_limit_error", code="queue_full")
        return 429, body, {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, DrainingError):
        return 503, error_object(str(error), "service_unavailable", code="draining"), {"Retry-After": "5"}
    if isinstance(error, InputError):
        return 400, error_object(str(error), "invalid_request_error"), {}
    told = str(error) if isinstance(error, GlmExportError) else f"the model failed: {type(error).__name__}"
    return 500, error_object(told, "server_error"), {}


def shaped(path: str, status: int, body: dict[str, Any], request_id: str) -> dict[str, Any]:
    """An error's body as the clients of a path know it.

    Args:
        path: of the request.
        status: of the answer.
        body: as OpenAI has it.
        request_id: names the request.
    """
    if not path.startswith(ANTHROPIC):
        return body
    kind = ANTHROPIC_KINDS.get(status, "invalid_request_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": body["error"]["message"]},
        "request_id": request_id,
    }


def deadline_error() -> HttpError:
    """A request took longer than it may."""
    return HttpError(408, "the request took longer than the server's deadline", "timeout_error", code=DEADLINE)


def install(app: FastAPI) -> None:
    """Let every error of an app be such an object."""

    def told(request: Request, status: int, body: dict[str, Any], headers: Mapping[str, str] | None) -> JSONResponse:
        shape = shaped(request.url.path, status, body, request.state.request_id)
        return JSONResponse(shape, status, dict(headers or {}))

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return told(request, *of_exception(error))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        body = error_object(f"{place or 'the body'}: {first['msg']}", "invalid_request_error", place or None)
        return told(request, 400, body, None)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        return told(request, error.status_code, error_object(str(error.detail), kind), error.headers)

    for kind in (HttpError, GlmExportError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
