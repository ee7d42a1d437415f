"""Whether this processor adds 8-bit products exactly, found by trying."""

from __future__ import annotations

from base64 import b64decode
from functools import cache

import numpy as np
import onnxruntime

LARGEST = 255 * 127 * 2
"""Of two products of a uint8 and an int8."""
PRODUCT = b64decode(
    "CAkSADpYChgKAWEKAWISAWMiDU1hdE11bEludGVnZXISA3N1bSoNCAIIARADQgFiSgJ/f1oTCgFhEg4KDAgCEggKAggCCgIIAmIT"
    "CgFjEg4KDAgGEggKAggCCgIIAUIECgAQEQ=="
)
"""``c = MatMulInteger(a, b)``, opset 17, of uint8 ``[2, 2]`` and a ``b`` of 127s, ``[2, 1]``: bytes, since sessions
load no ``onnx``."""


@cache
def adds_in_16_bits() -> bool:
    """Whether ONNX Runtime adds two neighbouring products of 8 bits in 16 bits that saturate, as on x86 without VNNI.

    On such processors ``MatMulInteger`` of uint8 by int8, and what is made of it, tells 32,767 for 64,770
    (``VPMADDUBSW``). Tried once in a process, on the processor.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(PRODUCT, options, providers=["CPUExecutionProvider"])
    sums = session.run(None, {"a": np.full((2, 2), 255, np.uint8)})[0]
    return bool((sums != LARGEST).any())
