"""Our engine as the server class of Ray Serve LLM, whose ingress, router and dashboard then stand before it.

``LLMConfig(server_cls="glm_export.serving.ray.llm.GlmServer", …)``: ``model_loading_config.model_source`` is a folder,
``engine_kwargs`` are options of `glm-export serve` by their names in Python. Ray Serve LLM's own models of requests and
answers come from vLLM or SGLang, one of which has to be installed, though nothing of its engine runs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

from glm_export.errors import InputError
from glm_export.serving.http.app import create_app
from glm_export.serving.http.served import opened
from glm_export.serving.in_process import Answer, Call, answered, pieces
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.autoscaling import UNREAD


class GlmServer:
    """One replica: a model, its engine, and the methods that Ray Serve LLM's ingress calls."""

    def __init__(self, llm_config: Any) -> None:
        """Load the model.

        Args:
            llm_config: Ray Serve LLM's ``LLMConfig``.

        Raises:
            GlmExportError: it cannot be loaded, or an engine keyword is not known.
        """
        self._config = llm_config
        self._options = serve_options(llm_config.engine_kwargs)
        self._open = ExitStack()
        source = str(llm_config.model_loading_config.model_source or llm_config.model_id)
        models = self._open.enter_context(opened([source], self._options, [llm_config.model_id]))
        (self._model,) = models.values()
        self._app = create_app(models, self._options, frozenset())

    async def start(self) -> None:
        """Called after the constructor, which has done all of it."""

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """``/v1/chat/completions``."""
        async for one in self._answers("/v1/chat/completions", request, raw_request_info, "ChatCompletionResponse"):
            yield one

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """``/v1/completions``."""
        async for one in self._answers("/v1/completions", request, raw_request_info, "CompletionResponse"):
            yield one

    async def tokenize(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """``/tokenize``."""
        async for one in self._answers("/tokenize", request, raw_request_info, "TokenizeResponse"):
            yield one

    async def detokenize(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """``/detokenize``."""
        async for one in self._answers("/detokenize", request, raw_request_info, "DetokenizeResponse"):
            yield one

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises.

        Raises:
            RuntimeError: nobody drives the engine any more.
        """
        if not self._model.worker.alive:
            raise RuntimeError(f"the engine of {self._model.name} has ended; the replica is to be replaced")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What an autoscaling policy may look at, besides requests."""
        return {UNREAD: float(self._model.worker.unread_tokens)}

    async def llm_config(self) -> Any:
        """As it was given."""
        return self._config

    @classmethod
    def get_deployment_options(cls, llm_config: Any) -> dict[str, Any]:
        """Ray Serve's options of the deployment: those of the config; what a row may wait for is the engine's."""
        options = serve_options(llm_config.engine_kwargs)
        given: dict[str, Any] = copy.deepcopy(llm_config.deployment_config)
        given.setdefault("max_ongoing_requests", 2 * options.max_batch)
        given.setdefault("graceful_shutdown_timeout_s", options.drain_seconds)
        actor = given.setdefault("ray_actor_options", {})
        actor.setdefault("num_cpus", options.threads or 1)
        return given

    async def _answers(self, path: str, request: Any, raw: Any, kind: str) -> AsyncIterator[Any]:
        body = request.model_dump(mode="json", exclude_unset=True) | {"model": self._model.name}
        headers = tuple(
            (name.lower().encode(), value.encode("latin-1")) for name, value in getattr(raw, "headers", {}).items()
        )
        call = Call(path=path, headers=headers, body=json.dumps(body).encode(), state={"tenant": ""})
        if not body.get("stream"):
            yield _whole(await answered(self._app, call), kind)
            return
        status = 200
        async for piece in pieces(self._app, call):
            if isinstance(piece, Answer):
                status = piece.status
            elif status >= 400:
                yield _whole(Answer(status=status, body=piece), kind)
            else:
                yield piece.decode()


def _whole(answer: Answer, kind: str) -> Any:
    """An answer as Ray Serve LLM's ingress tells it: of its kind, or an error."""
    # Not before it is needed: without vLLM and SGLang it cannot be imported.
    from ray.llm._internal.serve.core.configs import openai_api_models as told

    body = json.loads(answer.body)
    if answer.status < 400:
        return getattr(told, kind).model_validate(body)
    error = body["error"]
    return told.ErrorResponse(
        error=told.ErrorInfo(message=error["message"], type=error["type"], param=error["param"], code=answer.status)
    )


def serve_options(keywords: Mapping[str, Any]) -> ServeOptions:
    """Engine keywords as the server's options.

    Raises:
        InputError: one is none of them.
    """
    known = {one.name for one in fields(ServeOptions)}
    unknown = sorted(set(keywords) - known)
    if unknown:
        raise InputError(f"engine_kwargs has {', '.join(unknown)}, which `glm-export serve` has not; leave it out")
    return ServeOptions(**keywords)
