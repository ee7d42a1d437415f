"""Errors as OpenAI's clients expect them: an object with message, type, param and code."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from glm_export.errors import GlmExportError, InputError, message
from glm_export.serving.worker import DrainingError, QueueFullError

DEADLINE = "deadline"


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


def deadline_error() -> HttpError:
    """A request took longer than it may."""
    return HttpError(408, "the request took longer than the server's deadline", "timeout_error", code=DEADLINE)


def install(app: FastAPI) -> None:
    """Let every error of an app be such an object."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        status, body, headers = of_exception(error)
        return JSONResponse(body, status, headers)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        told = f"{place or 'the body'}: {first['msg']}"
        return JSONResponse(error_object(told, "invalid_request_error", place or None), 400)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = "not_found_error" if error.status_code == 404 else "invalid_request_error"
        return JSONResponse(error_object(str(error.detail), kind), error.status_code, error.headers)

    for kind in (HttpError, GlmExportError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
