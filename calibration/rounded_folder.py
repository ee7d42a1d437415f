"""Weights that calibration itself rounded, a file a layer in the folder of ranges."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from glm_export.calibration.formats import PrequantizedWeight
from glm_export.spec.weight_formats import WeightFormats

INTEGERS, SCALES = "/integers", "/scales"
"""Behind the name of a weight: int8 ``[N, K]``, float32 ``[N, C]``."""


def rounded_name(layer: int) -> str:
    """The file of one layer."""
    return f"rounded-{layer:03}.safetensors"


class RoundedFolder:
    """The files of a folder, opened when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def given(self, name: str, formats: WeightFormats, columns: int) -> PrequantizedWeight | None:  # noqa: ARG002 - the protocol's
        """One weight's integers and scales; None where calibration left it, as it does the head."""
        if not name.startswith("layers."):
            return None
        with safe_open(self.folder / rounded_name(int(name.split(".")[1])), framework="pt") as file:
            if name + INTEGERS not in file.keys():  # noqa: SIM118 - not a mapping
                return None
            return PrequantizedWeight(integers=file.get_tensor(name + INTEGERS), scales=file.get_tensor(name + SCALES))
