"""From models to a listening server, and down again without losing what was accepted."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from glm_export.errors import EnvironmentMissingError
from glm_export.serving.options import ServeOptions

logger = logging.getLogger(__name__)
CONNECTIONS = 1024
KEEP_ALIVE_S = 15


def require_packages() -> None:
    """What a server is made of has to be there.

    Raises:
        EnvironmentMissingError: something is not.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissingError(
            f"the server needs {error.name}, which is not installed; pip install 'glm-export[serve]'"
        ) from error


def serve(sources: Sequence[str], options: ServeOptions, announce: Callable[[str], None]) -> None:
    """Serve models until SIGTERM or SIGINT; then what was accepted is answered, within a bound.

    Args:
        sources: exported folders, engines, checkpoints or embedded models.
        options: where and how.
        announce: told the address once requests are taken.

    Raises:
        GlmExportError: a model cannot be loaded, the options do not go together, or a package is missing.
    """
    require_packages()
    from glm_export.serving.http.app import create_app
    from glm_export.serving.http.served import opened

    keys = options.keys()
    with listening(options) as listener, opened(sources, options) as models:
        app = create_app(models, options, keys)
        asyncio.run(_run(app, listener, options, announce))


def listening(options: ServeOptions) -> socket.socket:
    """A socket at the server's address, before anything is loaded.

    Raises:
        EnvironmentMissingError: somebody has it, or it is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise EnvironmentMissingError(
            f"cannot listen at {options.host}:{options.port}: {error.strerror}; choose another --port or --host"
        ) from error
    return listener


async def _run(app: object, listener: socket.socket, options: ServeOptions, announce: Callable[[str], None]) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    # Signals are ours: first nothing new is taken, then what was accepted ends, then the server.
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    running = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    logger.info("listening at %s, port %d; ends with SIGTERM or SIGINT", host, port)
    announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    waiting = asyncio.ensure_future(ending.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    logger.info("asked to end: nothing new is taken, and %s s are left to what was accepted", options.drain_seconds)
    state = app.state  # type: ignore[attr-defined]
    state.draining = True
    workers = [model.worker for model in state.models.values()]
    await asyncio.gather(*(asyncio.to_thread(worker.drain, options.drain_seconds) for worker in workers))
    server.should_exit = True
    await running
    logger.info("ended")
