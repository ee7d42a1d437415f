"""An exported program, slice by slice, in calls of the canonical layout."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from glm_export.artifacts.program import OnnxProgram
from glm_export.graphs.slices import Slice, extract, slice_decoder
from glm_export.inputs.call_layout import OwnLengths
from glm_export.machine.scratch import ScratchFolder
from glm_export.sessions.onnxruntime.session import upcast_program
from glm_export.sessions.onnxruntime.slices import PartSession
from glm_export.sessions.program_layout import call_layout
from glm_export.sessions.session import Tensors
from glm_export.spec.dtypes import NUMPY_DTYPES

Values = dict[str, NDArray[Any]]
ELEMENT_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(bfloat16)": onnx.TensorProto.BFLOAT16,
    "tensor(double)": onnx.TensorProto.DOUBLE,
}
"""ONNX's numbers for the floats that ONNX Runtime names."""


class SlicedProgram:
    """A program's slices, each loaded alone. A bfloat16 program is its float32 twin, as in a session.

    Args:
        program: an exported folder.

    Raises:
        UncutError: its graph is no decoder that can be cut.
    """

    def __init__(self, program: OnnxProgram) -> None:
        self._twin: ScratchFolder | None = None
        if program.dtype not in NUMPY_DTYPES:
            self._twin = ScratchFolder()
            program = upcast_program(program, self._twin.path)
        self.program = program
        self.layout = call_layout(program.signature, program.folder)
        self.model = onnx.load(str(program.model_path), load_external_data=False)
        self.slices = slice_decoder(self.model.graph, program.config.num_layers)
        self.types: dict[str, int] = {}
        """ONNX element type of each value between slices, as far as slices have been loaded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._twin is not None:
            self._twin.close()

    def load(self, part: Slice, outputs: Sequence[str] | None = None) -> PartSession:
        """A slice with its weights; slices before it have been loaded once.

        Args:
            part: of :attr:`slices`.
            outputs: values to put out, with the graph as it is written; None: what the slice is for, as it is run.
        """
        types = {crossing.value: self.types[crossing.value] for crossing in part.inputs}
        model = extract(self.model, part, types, outputs)
        loaded = PartSession(model.SerializeToString(), self.program, fused=outputs is None)
        if outputs is None:
            kinds = {crossing.value: loaded.output_types[crossing.value] for crossing in part.outputs}
            self.types |= {name: ELEMENT_TYPES[kind] for name, kind in kinds.items()}
        return loaded

    def numpy_type(self, value: str) -> np.dtype[Any]:
        """Of a value between slices."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.types[value]))

    def given(self, tensors: Tensors) -> Tensors:
        """A canonical call as the program takes it."""
        return self.layout.to_program(tensors)

    def packed(self, array_BSX: NDArray[Any], tensors: Tensors) -> NDArray[Any]:
        """Values of a canonical call's tokens where the program has them; free places are 0."""
        if not self.program.signature.own_lengths:
            return array_BSX
        packed_BSX = np.zeros_like(array_BSX)
        for row, new in enumerate(OwnLengths.of(tensors).new):
            packed_BSX[row, : new.sum()] = array_BSX[row, new]
        return packed_BSX

    def real(self, tensors: Tensors) -> NDArray[np.bool_]:
        """Which places ``[B, S]`` of the program's call are tokens; padding is never compared."""
        new = OwnLengths.of(tensors).new
        if not self.program.signature.own_lengths:
            return new
        real: NDArray[np.bool_] = np.arange(new.shape[1]) < new.sum(axis=1)[:, None]
        return real
