"""TensorRT's calibration cache, for versions up to 10 that still calibrate implicitly.

A first line ``TRT-<version>-<algorithm>``, then a line a tensor: its name, and the scale as the big-endian bytes of a
float32 in hexadecimal. A scale is the largest magnitude over 127. A tensor in the cache is quantized where TensorRT has
an integer kernel; the others stay in float.

Source of the format: NVIDIA's ``calibrator.cpp`` and Polygraphy's ``Calibrator``, which reads and writes it as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from glm_export.errors import InputError
from glm_export.spec.weight_formats import QMAX

CALIBRATION_CACHE = "calibration.cache"
ALGORITHMS = ("EntropyCalibration2", "MinMaxCalibration")


def cache_text(thresholds: Mapping[str, float], *, version: str = "8601", algorithm: str = ALGORITHMS[0]) -> str:
    """A calibration cache.

    Args:
        thresholds: largest magnitude by tensor name.
        version: four or five digits, as in the first line of a cache that the TensorRT at hand wrote.
        algorithm: one of :data:`ALGORITHMS`; the calibrator that reads the cache must be of its kind.

    Raises:
        InputError: a threshold is not positive, a name has a line break, or the algorithm is unknown.
    """
    if algorithm not in ALGORITHMS:
        raise InputError(f"calibration algorithm {algorithm!r} is unknown; known: {', '.join(ALGORITHMS)}")
    lines = [f"TRT-{version}-{algorithm}"]
    for name, threshold in thresholds.items():
        if not 0 < threshold < float("inf") or "\n" in name:
            raise InputError(f"tensor {name!r} needs a positive threshold, found {threshold}")
        lines.append(f"{name}: {struct.pack('>f', threshold / QMAX['int8']).hex()}")
    return "\n".join(lines) + "\n"


def read_cache(text: str) -> dict[str, float]:
    """Largest magnitude by tensor name, of a calibration cache.

    Raises:
        InputError: it is none; the line is named.
    """
    first, *lines = text.splitlines() or [""]
    if not first.startswith("TRT-"):
        raise InputError(f"a calibration cache starts with TRT-<version>-<algorithm>, found {first[:40]!r}")
    thresholds = {}
    for number, line in enumerate(lines, 2):
        name, separator, digits = line.rpartition(": ")
        try:
            (scale,) = struct.unpack(">f", bytes.fromhex(digits))
        except (ValueError, struct.error):
            scale = float("nan")
        if not separator or not scale >= 0:
            raise InputError(f"line {number} of the calibration cache should be 'tensor: digits', found {line[:40]!r}")
        thresholds[name] = scale * QMAX["int8"]
    return thresholds
