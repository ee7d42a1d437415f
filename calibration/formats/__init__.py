"""One file a weight format: encode, decode; found by the type of its record (``spec/weight_formats.py``).

Imports spec and ``calibration/quantize.py``; torch computes. Knows no ONNX. Every file here is imported with the room,
and registers what it does for its record with the generic functions of ``codec.py``.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from glm_export.calibration.formats.codec import PrequantizedWeight, decode, encode, read_back

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["PrequantizedWeight", "decode", "encode", "read_back"]
