"""An engine with no plan behind it: what a session needs to know of one, for stand-ins that compute or keep silent."""

from __future__ import annotations

import tempfile
from pathlib import Path

from glm_export.artifacts.engine import BuiltOn, Compatibility, Engine
from glm_export.artifacts.program import OnnxProgram
from glm_export.engines.profiles import profiles_of
from glm_export.engines.vendor import TENSORRT
from glm_export.spec.config import GlmConfig
from glm_export.spec.optimization_profile import Limits
from glm_export.spec.signature import Signature


def planless_engine(config: GlmConfig, signature: Signature, limits: Limits) -> Engine:
    """As ``build`` would describe it; nothing lies in its folder."""
    folder = Path(tempfile.gettempdir())
    dtype = signature.outputs[0].dtype
    program = OnnxProgram(
        folder=folder, config=config, signature=signature, dialect="tensorrt", dtype=dtype, logits="last", manifest={},
    )  # fmt: skip
    return Engine(
        folder=folder, program=program, runtime=TENSORRT, version="0", limits=limits,
        profiles=profiles_of(signature, limits), built_on=BuiltOn(system="Linux"), compatibility=Compatibility(),
        manifest={},
    )  # fmt: skip
