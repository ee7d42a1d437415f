"""Parts of a program in ONNX Runtime, each with the weights it reads and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import EnvironmentMissingError
from glm_export.sessions.onnxruntime.runtime import CPU, entries_of, stopping_in_one_line, usable_threads
from glm_export.sessions.session import SessionDescription

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def describe_parts(program: OnnxProgram) -> SessionDescription:
    """What runs a program's parts, and how."""
    return SessionDescription(
        runtime="onnxruntime",
        version=onnxruntime.__version__,
        device="cpu",
        dialect=program.dialect,
        dtype=program.dtype,
        cache=program.signature.cache,
        threads=usable_threads(),
    )


class PartSession:
    """Some nodes of a program, on the CPU.

    Args:
        part: a serialized model whose large weights may lie in files.
        program: whose weights they are.
        fused: whether the runtime may rewrite the graph, as it does with the whole program.

    Raises:
        EnvironmentMissingError: ONNX Runtime cannot load it.
    """

    def __init__(self, part: bytes, program: OnnxProgram, *, fused: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = usable_threads()
        if not fused:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(WEIGHTS_FOLDER, str(program.folder.resolve()))
        for key, value in entries_of(program).items():
            options.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(part, options, providers=[CPU])
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise EnvironmentMissingError(
                f"ONNX Runtime {onnxruntime.__version__} should load a part of {program.folder} as it loads the whole, "
                f"and does not: {' '.join(str(error).split())[:300]}"
            ) from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.output_types: dict[str, str] = {entry.name: entry.type for entry in self._session.get_outputs()}

    def run(self, given: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """One call; of ``given`` is taken what the part reads.

        Raises:
            ComparisonFailedError: a node refuses its input; the runtime says which.
        """
        names = list(outputs or self.output_types)
        feeds = {name: np.ascontiguousarray(given[name]) for name in self.inputs}
        with stopping_in_one_line():
            return dict(zip(names, self._session.run(names, feeds), strict=True))
