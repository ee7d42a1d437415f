"""Whether this processor adds 8-bit products exactly, found by trying."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime

LARGEST = 255 * 127 * 2
"""Of two products of a uint8 and an int8."""


@cache
def adds_in_16_bits() -> bool:
    """Whether ONNX Runtime adds two neighbouring products of 8 bits in 16 bits that saturate, as on x86 without VNNI.

    On such processors ``MatMulInteger`` of uint8 by int8, and what is made of it, tells 32,767 for 64,770
    (``VPMADDUBSW``). Tried once in a process, on the processor.
    """
    # Imported when asked for: few programs ask.
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["rows", "integers"], ["sums"])],
        "largest_sum",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [2, 2])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [2, 1])],
        [numpy_helper.from_array(np.full((2, 1), 127, np.int8), "integers")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums = session.run(None, {"rows": np.full((2, 2), 255, np.uint8)})[0]
    return bool((sums != LARGEST).any())
