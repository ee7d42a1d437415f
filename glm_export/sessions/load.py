"""Which runtime runs what: an engine TensorRT, a program ONNX Runtime, a checkpoint PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glm_export.artifacts.engine import Engine
from glm_export.artifacts.program import OnnxProgram
from glm_export.sessions.session import Session

if TYPE_CHECKING:  # it brings torch along
    from glm_export.checkpoints.checkpoint import Checkpoint


def session_of(model: OnnxProgram | Engine | Checkpoint, *, threads: int | None = None, cache: bool = False) -> Session:
    """Load a model into its runtime, which is imported here: what is not used takes no memory.

    Args:
        model: an open engine, exported folder or checkpoint (run in float32).
        threads: of one operator, where a processor computes; None leaves it to the session.
        cache: keep an exported folder's weights packed for this processor, on disk, from the second time on that it is
            loaded: later sessions load faster and share their memory.

    Raises:
        GlmExportError: it cannot run on this machine.
    """
    if isinstance(model, OnnxProgram):
        from glm_export.sessions.onnxruntime.packed import PackedPrograms
        from glm_export.sessions.onnxruntime.session import OrtSession

        return OrtSession(model, threads=threads, packed=PackedPrograms() if cache else None)
    if isinstance(model, Engine):
        from glm_export.sessions.tensorrt.session import EngineSession

        return EngineSession(model)
    import torch

    from glm_export.sessions.torch import TorchSession

    if threads is not None:
        torch.set_num_threads(threads)
    return TorchSession(model)
