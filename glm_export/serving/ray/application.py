"""The application as Ray Serve deploys it: an ingress, and an engine a model with as many replicas as are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.deployment import Application

from glm_export.errors import InputError
from glm_export.serving.http.guard import digest_of
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.autoscaling import LoadPolicy
from glm_export.serving.ray.ingress import Ingress
from glm_export.serving.ray.options import RayOptions
from glm_export.serving.ray.replica import EngineReplica
from glm_export.serving.ray.router import LoadRouter, PrefixRouter
from glm_export.serving.server import CONNECTIONS

ROUTERS: dict[str, Any] = {
    "prefix": PrefixRouter,
    "load": LoadRouter,
    # Ray Serve's own.
    "random": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
}
HEAD = "node:__internal_head__"
"""Ray's name for what only the head node has."""
AHEAD = 2
"""Requests a replica holds for each of its rows; others wait before all replicas, and go to the first that is free."""
MEASURED_S = 1.0


def application(
    models: Sequence[str], options: ServeOptions, ray_options: RayOptions, *, access_log: bool = False
) -> Application:
    """Bind models, an ingress before them.

    Args:
        models: exported folders, engines, checkpoints or embedded models, found on every node.
        options: of each engine; its keys are read here, and go no further than their digests.
        ray_options: how many engines, and where.
        access_log: whether engines log a line for each request.

    Raises:
        InputError: two models have one name, or the keys cannot be read.
    """
    # A URL may say which bytes are meant, behind its folder.
    names = [Path(source.partition("#")[0]).name for source in models]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two models are called {name!r}; rename a folder")
    if ray_options.cpus is not None and options.threads is None:
        options = replace(options, threads=ray_options.cpus)
    # What is passed on says nothing of keys, and is the same whenever the same is asked for: what changed is restarted.
    digests = sorted(map(digest_of, options.keys()))
    passed = replace(options, api_key_file=None, host="127.0.0.1")
    engines = [
        _engine(name, options, ray_options).bind(name, source, passed, access_log=access_log)
        for name, source in zip(names, models, strict=True)
    ]
    pinned = {"resources": {HEAD: 0.001}} if ray_options.ingress_replicas == 1 else {}
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=ray_options.ingress_replicas,
        ray_actor_options={"num_cpus": 0, **pinned},
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return ingress.bind(names, passed, digests, *engines)


def _engine(name: str, options: ServeOptions, ray_options: RayOptions) -> serve.Deployment:
    count: dict[str, Any] = {"num_replicas": ray_options.replicas or 1}
    if ray_options.autoscales:
        targets = {"target_requests": options.max_batch, "target_tokens": ray_options.target_tokens}
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=ray_options.min_replicas or 1,
                max_replicas=ray_options.max_replicas,
                target_ongoing_requests=options.max_batch,
                upscale_delay_s=ray_options.upscale_seconds,
                downscale_delay_s=ray_options.downscale_seconds,
                metrics_interval_s=MEASURED_S,
                look_back_period_s=5 * MEASURED_S,
                policy=AutoscalingPolicy(
                    policy_function=f"{LoadPolicy.__module__}:{LoadPolicy.__name__}", policy_kwargs=targets
                ),
            )
        }
    return serve.deployment(
        EngineReplica,
        name=name,
        max_ongoing_requests=AHEAD * options.max_batch,
        max_queued_requests=options.queue,
        ray_actor_options={"num_cpus": ray_options.cpus or 1, "num_gpus": ray_options.gpus},
        request_router_config=RequestRouterConfig(request_router_class=ROUTERS[ray_options.routing]),
        health_check_period_s=5,
        graceful_shutdown_timeout_s=options.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        **count,
    )


def build(args: Mapping[str, Any]) -> Application:
    """What `serve run`, `serve deploy` and a RayService import: ``glm_export.serving.ray.application:build``.

    Args:
        args: ``models``, a list; and any option of `glm-export serve`, by its name in Python (``max_batch``,
            ``replicas``, …); ``access_log``.

    Raises:
        InputError: no model is named, or an option is not known.
    """
    left = dict(args)
    models, access_log = left.pop("models", None), bool(left.pop("access_log", False))
    if not isinstance(models, list) or not models:
        raise InputError("args should name models, a list of folders; found none")
    made: list[Any] = []
    for kind in (ServeOptions, RayOptions):
        names = {one.name for one in fields(kind)}
        given = {name: left.pop(name) for name in list(left) if name in names}
        if given.get("api_key_file"):
            given["api_key_file"] = Path(given["api_key_file"])
        made.append(kind(**given))
    if left:
        raise InputError(f"args has options that `glm-export serve` has not: {', '.join(map(str, left))}")
    return application(models, *made, access_log=access_log)
