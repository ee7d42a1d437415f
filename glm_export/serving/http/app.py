"""The application: doors, the guard before them, and what is torn down behind."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI

from glm_export.artifacts.manifest import package_versions
from glm_export.serving.http import failures
from glm_export.serving.http.anthropic import messages
from glm_export.serving.http.doors import blanks, chat, completions, health, page, tokens
from glm_export.serving.http.forms import Forms
from glm_export.serving.http.guard import Guard, digest_of
from glm_export.serving.http.responses import responses
from glm_export.serving.http.served import ServedModel
from glm_export.serving.metrics.record import log_request
from glm_export.serving.metrics.spans import exported_spans
from glm_export.serving.options import MEGABYTE, ServeOptions


def create_app(models: Mapping[str, ServedModel], options: ServeOptions, keys: frozenset[str]) -> FastAPI:
    """The server's application over models that are driven already.

    Args:
        models: by name, the first one first.
        options: as the server was started.
        keys: those that open it.

    Raises:
        EnvironmentMissingError: traces are wanted, and what sends them is not installed.
    """
    app = FastAPI(title="glm-export", version=package_versions()["glm-export"], docs_url=None, redoc_url=None)
    app.state.models, app.state.options, app.state.draining = dict(models), options, False
    app.state.forms = {name: Forms(model) for name, model in models.items()}
    failures.install(app)
    for room in (chat, completions, blanks, tokens, health, page, messages, responses):
        app.include_router(room.router)
    most, endpoint = options.max_body_megabytes * MEGABYTE, options.otlp_traces_endpoint
    observers = [log_request, *([exported_spans(endpoint)] if endpoint is not None else [])]
    app.add_middleware(Guard, digests=sorted(map(digest_of, keys)), max_body_bytes=most, observers=observers)
    return app
