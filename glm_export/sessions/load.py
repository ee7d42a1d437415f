"""Which runtime runs what: an engine TensorRT, a program ONNX Runtime, a checkpoint PyTorch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glm_export.artifacts.engine import Engine
from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.machine.gpu import has_driver
from glm_export.sessions.session import Session

if TYPE_CHECKING:  # it brings torch along
    from glm_export.checkpoints.checkpoint import Checkpoint


LOG = logging.getLogger(__name__)
DEVICES = ("cpu", "cuda")


def session_of(
    model: OnnxProgram | Engine | Checkpoint,
    *,
    threads: int | None = None,
    cache: bool = False,
    device: str | None = None,
    providers: Sequence[str] | None = None,
) -> Session:
    """Load a model into its runtime, which is imported here: what is not used takes no memory.

    Args:
        model: an open engine, exported folder or checkpoint (run in float32).
        threads: of one operator, where a processor computes; None leaves it to the session.
        cache: keep an exported folder's weights packed for this processor, on disk, from the second time on that it is
            loaded: later sessions load faster and share their memory.
        device: cpu or cuda; None takes an NVIDIA GPU for exported folders and engines where there is one, and the
            processor for checkpoints.
        providers: ONNX Runtime's execution providers for an exported folder, in the place of ``device``, best first.

    Raises:
        InputError: what is asked for does not go together, or is no device or provider.
        EnvironmentMissingError: there is no such device or provider here.
        GlmExportError: it cannot run on this machine.
    """
    started = time.perf_counter()
    session = _loaded(model, threads, device, providers, cache=cache)
    _say_loaded(session, time.perf_counter() - started)
    return session


def _say_loaded(session: Session, seconds: float) -> None:
    said = session.describe()
    LOG.info(
        "%s: loaded in %.2f s by %s %s on %s%s, %s %s",
        session.folder,
        seconds,
        said.runtime,
        said.version,
        said.device,
        "" if said.threads is None else f" with {said.threads} threads",
        said.dialect or "checkpoint",
        said.dtype,
    )


def _loaded(
    model: OnnxProgram | Engine | Checkpoint,
    threads: int | None,
    device: str | None,
    providers: Sequence[str] | None,
    *,
    cache: bool,
) -> Session:
    _require_device(device)
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, found {threads}")
    if providers is not None and (device is not None or not isinstance(model, OnnxProgram)):
        raise InputError(
            "providers are ONNX Runtime's, for an exported folder, in the place of a device; leave one out"
        )
    if isinstance(model, OnnxProgram):
        from glm_export.sessions.onnxruntime.packed import PackedPrograms
        from glm_export.sessions.onnxruntime.runtime import providers_of, require_providers
        from glm_export.sessions.onnxruntime.session import OrtSession

        chosen = require_providers(providers) if providers is not None else providers_of(device)
        return OrtSession(model, chosen, threads=threads, packed=PackedPrograms() if cache else None)
    if isinstance(model, Engine):
        from glm_export.sessions.tensorrt.session import EngineSession

        if device == "cpu":
            raise InputError("an engine runs on a GPU alone; leave the device out")
        return EngineSession(model)
    import torch

    from glm_export.sessions.torch import TorchSession

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentMissingError(f"PyTorch {torch.__version__} has no CUDA; install one that has, or take cpu")
    return TorchSession(model, device=device or "cpu")


def _require_device(device: str | None) -> None:
    if device is not None and device not in DEVICES:
        raise InputError(f"device {device!r} is unknown; known: {', '.join(DEVICES)}")
    if device == "cuda" and not has_driver():
        raise EnvironmentMissingError("this machine has no NVIDIA driver, which device cuda needs; take cpu")
