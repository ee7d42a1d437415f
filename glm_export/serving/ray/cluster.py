"""From the command line to a running application on a cluster, and down again without losing what was accepted."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from glm_export.artifacts.open import open_artifact
from glm_export.cluster.join import Nodes, joined
from glm_export.cluster.spread import spread
from glm_export.errors import EnvironmentMissingError, InputError, one_line
from glm_export.serving.options import ServeOptions
from glm_export.serving.ray.options import RayOptions
from glm_export.serving.server import require_packages

POLL_S = 0.1


def serve_on_ray(
    models: Sequence[str],
    options: ServeOptions,
    ray_options: RayOptions,
    announce: Callable[[str], None],
    *,
    access_log: bool = False,
) -> None:
    """Deploy models, or update those that run under the same name, and wait for SIGTERM or SIGINT.

    Args:
        models: exported folders, engines, checkpoints or embedded models, found on every node.
        options: of the server.
        ray_options: how many engines, and where.
        announce: told the address once requests are taken.
        access_log: whether engines log a line for each request.

    Raises:
        EnvironmentMissingError: Ray is missing, no cluster is there, or it cannot hold the engines.
        InputError: the options do not go together, or a model cannot be loaded.
    """
    require_packages()
    if not options.port:
        raise InputError("--port 0 takes a free one of this machine; every node of a cluster wants the same, say which")
    options.keys()  # before anything is begun
    with joined(ray_options.ray_address) as nodes:
        deploy(models, options, _with_cpus(ray_options, len(models), nodes), access_log=access_log)
        announce(f"http://{options.host}:{options.port}")
        if ray_options.detach:
            return
        _wait_for_signal()
        take_down(ray_options.app_name, options.drain_seconds)


def deploy(models: Sequence[str], options: ServeOptions, ray_options: RayOptions, *, access_log: bool = False) -> None:
    """Let an application run, or become this one: engines that changed are replaced one after another.

    Raises:
        InputError: a model cannot be found on a node, or what is deployed cannot begin.
    """
    from ray import serve

    from glm_export.serving.ray.application import application

    made = application(models, options, ray_options, access_log=access_log)
    # Before an application that runs is changed into one that cannot.
    for _ in spread(open_artifact, models, at_once=len(models), cpus=0):
        pass
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(
            proxy_location=ray_options.proxies, http_options={"host": options.host, "port": options.port},
            logging_config={"log_level": "WARNING"},
        )  # fmt: skip
        serve.run(made, name=ray_options.app_name, route_prefix="/", blocking=False)
    except (RuntimeError, TimeoutError) as error:
        raise InputError(f"the application did not begin: {one_line(_reason(ray_options.app_name, error))}") from error


def _reason(name: str, error: Exception) -> str:
    """What Ray Serve knows of an application that failed, without its traceback."""
    from ray import serve

    told = serve.status().applications.get(name)
    messages = [one.message for one in told.deployments.values() if one.message] if told is not None else []
    lines = [line for text in messages for line in text.splitlines() if "Error" in line]
    return lines[-1].strip() if lines else str(error)


def _with_cpus(ray_options: RayOptions, models: int, nodes: Nodes) -> RayOptions:
    """Processors for an engine, where nobody says: a node's, or a share where the cluster holds all engines so."""
    if ray_options.cpus is not None:
        return ray_options
    cpus = nodes.most
    if not cpus:
        raise EnvironmentMissingError("the cluster has no processors for an engine; add nodes, or give --cpus")
    while cpus > 1 and nodes.engines(cpus) < models * ray_options.most_replicas:
        cpus -= 1
    return replace(ray_options, cpus=cpus)


def _wait_for_signal() -> None:
    ending = threading.Event()
    before = {number: signal.signal(number, lambda *_: ending.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not ending.wait(POLL_S):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take_down(name: str, drain_s: float) -> None:
    """End an application: nothing new is taken, what was accepted is answered, within a bound."""
    from ray import serve

    handle: Any = serve.get_app_handle(name)
    end = time.monotonic() + drain_s
    while sum(handle.broadcast("drain").results()) and time.monotonic() < end:
        time.sleep(POLL_S)
    serve.delete(name)
