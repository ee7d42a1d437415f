"""Whether the server lives and is ready, what it serves and what it has done."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from glm_export.artifacts.manifest import package_versions
from glm_export.serving.http.asking import model_of
from glm_export.serving.http.served import ServedModel
from glm_export.serving.metrics.exposition import CONTENT_TYPE, exposition

router = APIRouter()


def _models(http: Request) -> dict[str, ServedModel]:
    models: dict[str, ServedModel] = http.app.state.models
    return models


@router.get("/health")
async def health(http: Request) -> Response:
    """Whether every model has somebody who drives it."""
    dead = [name for name, model in _models(http).items() if not model.worker.alive]
    return JSONResponse({"status": "dead" if dead else "ok", "dead": dead}, 503 if dead else 200)


@router.get("/ready")
async def ready(http: Request) -> Response:
    """Whether new requests are taken; false first, where the server is to end."""
    draining = bool(http.app.state.draining)
    return JSONResponse({"ready": not draining}, 503 if draining else 200)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    """For Prometheus."""
    return Response(exposition({name: model.worker for name, model in _models(http).items()}), media_type=CONTENT_TYPE)


@router.get("/version")
async def version() -> dict[str, str]:
    """Of this package."""
    return {"version": package_versions()["glm-export"]}


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "glm-export",
        "max_model_len": model.context,
        "family": model.session.config.family,
        "fills_blanks": model.session.config.prefix_mask,
    }


@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    """What is served."""
    return {"object": "list", "data": [_model_object(model) for model in _models(http).values()]}


@router.get("/v1/models/{name}")
async def one_model(http: Request, name: str) -> dict[str, Any]:
    """One of them."""
    return _model_object(model_of(http, name))


@router.get("/v1/proof")
async def proof(http: Request, model: str | None = None) -> dict[str, Any]:
    """What was recorded of a model's files when they were written, and seen to be so when the server began."""
    found = model_of(http, model)
    described = found.session.describe()
    return {
        "model": found.name,
        "recorded": found.proof,
        "batch_invariance": found.session.batch_invariance.value,
        "exact": found.worker.engine.scheduler.options.exact,
        "runs_on": {"runtime": described.runtime, "version": described.version, "device": described.device},
    }
