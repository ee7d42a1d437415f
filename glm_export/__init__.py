"""glm-export: from a GLM-family checkpoint to a deployed model.

The public names are those of ``__all__``; each is imported when it is first used.

>>> from glm_export import export, generate, load_session
>>> program = export("demo", "poems-onnx", force=True)
>>> with load_session("poems-onnx") as session:
...     print(generate(session, "床前明月光，疑是地上霜。").strip())
举头望明月，低头思故乡。
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# ONNX Runtime since 1.29 reports to its publisher unless told otherwise before it is imported, which is never before
# this; processes started from here inherit it. Whoever sets it himself decides.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from glm_export.api import (
        calibrate,
        chat,
        check,
        embed,
        export,
        generate,
        hidden_states,
        infill,
        load_session,
        logits,
        loglikelihood,
        open_checkpoint,
        quality,
        score,
        stream,
    )
    from glm_export.artifacts.engine import Engine, load_engine
    from glm_export.artifacts.program import OnnxProgram, load_program
    from glm_export.certificates.certify import certify
    from glm_export.certificates.verify import verify
    from glm_export.deployment.build import build
    from glm_export.errors import GlmExportError
    from glm_export.evaluation.texts.likelihood import Likelihood
    from glm_export.generation.sampling import Sampling
    from glm_export.generation.texts import Piece
    from glm_export.performance.bench import bench

    __version__: str

__all__ = [
    "Engine", "GlmExportError", "Likelihood", "OnnxProgram", "Piece", "Sampling", "__version__",
    "bench", "build", "calibrate", "certify", "chat", "check", "embed", "export",
    "generate", "hidden_states", "infill", "load_engine", "load_program", "load_session", "logits", "loglikelihood",
    "open_checkpoint", "quality", "score", "stream", "verify",
]  # fmt: skip

_HOME = {
    "GlmExportError": "errors",
    "OnnxProgram": "artifacts.program",
    "load_program": "artifacts.program",
    "Engine": "artifacts.engine",
    "load_engine": "artifacts.engine",
    "Likelihood": "evaluation.texts.likelihood",
    "Piece": "generation.texts",
    "Sampling": "generation.sampling",
    "bench": "performance.bench",
    "build": "deployment.build",
    "certify": "certificates.certify",
    "verify": "certificates.verify",
}


def __getattr__(name: str) -> object:
    # Lazily, so that the command line answers --help without importing torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_HOME.get(name, 'api')}"
    value = _version() if name == "__version__" else getattr(import_module(home), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    for distribution in ("glm-export", "glm-export-runtime"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "0+unknown"  # a bare checkout
