"""ONNX Runtime as a session: the cache stays inside the runtime, from one call to the next."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from glm_export.artifacts import MODEL, WEIGHTS, OnnxProgram
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.feeds import Feeds
from glm_export.graphs.widen import widen, widened_signature
from glm_export.sessions import Logits, Session, Tensors
from glm_export.signature import BATCH, LOGITS, PAST, past_names, present_names

PREFERRED_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16}


def providers() -> list[str]:
    """Execution providers to use here, best first."""
    available = set(onnxruntime.get_available_providers())
    if not has_cuda_driver():
        # The GPU wheel lists its provider on every machine, and complains at length when it cannot load it.
        available.discard("CUDAExecutionProvider")
    return [name for name in PREFERRED_PROVIDERS if name in available]


def has_cuda_driver() -> bool:
    """Whether NVIDIA's driver is installed and sees a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def inference_session(program: OnnxProgram, chosen: list[str] | None = None) -> onnxruntime.InferenceSession:
    """Load a program into ONNX Runtime.

    Raises:
        EnvironmentMissingError: this machine's providers cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    chosen = chosen or providers()
    if "CUDAExecutionProvider" in chosen:
        onnxruntime.preload_dlls()
    try:
        return onnxruntime.InferenceSession(str(program.model_path), options, providers=chosen)
    except Exception as error:  # onnxruntime's exceptions share no public base
        hint = "; export with --dtype float32 for this machine" if program.dtype != "float32" else ""
        raise EnvironmentMissingError(
            f"ONNX Runtime {onnxruntime.__version__} ({', '.join(chosen)}) cannot load {program.model_path}: "
            f"{' '.join(str(error).split())[:300]}{hint}"
        ) from error


class OrtSession(Session):
    """An ``onnx`` dialect program: each call hands the present of the last one back as past, without copying.

    A bfloat16 program runs as its float32 twin, written to a temporary folder: numpy cannot feed bfloat16, and the
    CPU provider has no kernels for it.
    """

    def __init__(self, program: OnnxProgram, chosen: list[str] | None = None) -> None:
        super().__init__(program.folder, program.config)
        self._twin: tempfile.TemporaryDirectory[str] | None = None
        if program.dtype not in NUMPY_DTYPES:
            self._twin = tempfile.TemporaryDirectory(prefix="glm-export-")
            program = _widened(program, Path(self._twin.name))
        self.program = program
        self.runtime = inference_session(program, chosen)
        on_cuda = self.runtime.get_providers()[0] == "CUDAExecutionProvider"
        self._device = "cuda" if on_cuda else "cpu"
        layers = range(program.config.num_layers)
        self._past_names = [name for i in layers for name in past_names(i)]
        self._present_names = [name for i in layers for name in present_names(i)]
        self._past: list[onnxruntime.OrtValue] = []

    def prefill(self, feeds: Feeds) -> Logits:
        """Start a batch from an empty cache."""
        dtype = NUMPY_DTYPES[self.program.dtype]
        self._past = [
            onnxruntime.OrtValue.ortvalue_from_numpy(
                np.empty(self.program.signature.input(name).shape(**{BATCH: feeds.batch, PAST: 0}), dtype)
            )
            for name in self._past_names
        ]
        return self.decode(feeds)

    def decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache."""
        if not self._past:
            raise InputError("decode was called before prefill; there is no cache to read on from")
        binding = self.runtime.io_binding()
        for name, array in feeds.named().items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in zip(self._past_names, self._past, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(LOGITS, "cpu")
        for name in self._present_names:
            binding.bind_output(name, self._device)
        self.runtime.run_with_iobinding(binding)
        logits, *self._past = binding.get_outputs()
        result: Logits = logits.numpy().astype(np.float32, copy=False)
        return result

    def run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out."""
        names = [output.name for output in self.runtime.get_outputs()]
        return dict(zip(names, self.runtime.run(names, tensors), strict=True))

    def close(self) -> None:
        """Free the runtime and the cache."""
        self._past = []
        del self.runtime
        if self._twin is not None:
            self._twin.cleanup()


def _widened(program: OnnxProgram, folder: Path) -> OnnxProgram:
    widen(program.model_path, folder / MODEL, WEIGHTS)
    return replace(program, folder=folder, dtype="float32", signature=widened_signature(program.signature))
