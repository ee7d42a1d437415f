"""How the program in a folder is called, with what lies beside it."""

from __future__ import annotations

from pathlib import Path

from glm_export.calibration.quantization import kv_scales
from glm_export.inputs.call_layout import CallLayout
from glm_export.spec.signature import Signature


def call_layout(signature: Signature, folder: Path) -> CallLayout:
    """How the program in a folder is called; what an integer cache is scaled by lies beside it.

    Raises:
        CheckpointError: the cache is of integers, and the file with their scales is missing.
    """
    return CallLayout(signature=signature, kv_scales=kv_scales(folder) if signature.cache_is_integer else None)
