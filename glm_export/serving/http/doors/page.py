"""The page at ``/`` and its files below ``/page/``: read once, sent with a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from glm_export.serving.http.failures import HttpError

FOLDER = Path(__file__).parents[2] / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # What a model wrote can only become text: markup from strings throws, where browsers know this.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
FILES = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in FOLDER.rglob("*") if path.suffix in TYPES}
"""By the path within the folder; what is asked for is looked up, and never becomes a path."""

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index(http: Request) -> Response:
    """The page itself."""
    return _answer(http, "index.html")


@router.get("/page/{name:path}")
async def file(http: Request, name: str) -> Response:
    """One of its files."""
    if name not in FILES:
        raise HttpError(404, f"the page has no file {name[:100]!r}")
    return _answer(http, name)


def _answer(http: Request, name: str) -> Response:
    body = FILES[name]
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}
    if http.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=TYPES[Path(name).suffix], headers=headers)
