"""ONNX Runtime as a session."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from glm_export.artifacts import MODEL, WEIGHTS, OnnxProgram
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.feeds import Feeds, Prompt, prefill_feeds
from glm_export.graphs.widen import widen, widened_signature
from glm_export.layout import enter, enter_static_prefix, leave
from glm_export.sessions import Logits, Session, Tensors
from glm_export.sessions.buffers import NUMPY_DTYPES, buffers
from glm_export.signature import LOGITS, Cache, past_names

CUDA = "CUDAExecutionProvider"
PREFERRED_PROVIDERS = (CUDA, "CPUExecutionProvider")
MANY_CORES = 4
CACHE_PREFIX = past_names(0)[0].split(".")[0]


def providers() -> list[str]:
    """Execution providers to use here, best first."""
    available = set(onnxruntime.get_available_providers())
    if not has_cuda_driver():
        # The GPU wheel lists its provider on every machine, and complains at length when it cannot load it.
        available.discard(CUDA)
    return [name for name in PREFERRED_PROVIDERS if name in available]


def has_cuda_driver() -> bool:
    """Whether NVIDIA's driver is installed and sees a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def usable_threads() -> int:
    """One thread a core this process may use; both of its hyperthreads where there are few cores.

    The runtime's own choice counts cores of the machine, not those of the container.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for processor in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        cores.add(siblings.read_text(encoding="ascii") if siblings.is_file() else str(processor))
    return len(cores) if len(cores) >= MANY_CORES else len(allowed)


def inference_session(
    program: OnnxProgram, chosen: list[str] | None = None, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Load a program into ONNX Runtime.

    Args:
        program: an exported folder.
        chosen: execution providers; None takes the best there are.
        threads: of one operator; None takes :func:`usable_threads`.

    Raises:
        EnvironmentMissingError: this machine's providers cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or usable_threads()
    chosen = chosen or providers()
    if CUDA in chosen:
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
    """A program of any dialect. Its cache stays inside the runtime; where the dialect shares one buffer, in place.

    A bfloat16 program runs as its float32 twin, written to a temporary folder: numpy cannot feed bfloat16, and the
    CPU provider has no kernels for it.
    """

    def __init__(self, program: OnnxProgram, chosen: list[str] | None = None, *, threads: int | None = None) -> None:
        super().__init__(program.folder, program.config)
        self._twin: tempfile.TemporaryDirectory[str] | None = None
        if program.dtype not in NUMPY_DTYPES:
            self._twin = tempfile.TemporaryDirectory(prefix="glm-export-")
            program = _widened(program, Path(self._twin.name))
        self.program = program
        self.runtime = inference_session(program, chosen, threads=threads)
        self._inputs = [spec.name for spec in program.signature.inputs if not spec.name.startswith(CACHE_PREFIX)]
        device = "cuda" if self.runtime.get_providers()[0] == CUDA else "cpu"
        self._buffers = buffers(program.signature, program.config.num_layers, device, program.config.max_positions)

    def feeds(self, prompts: Sequence[Prompt]) -> Feeds:
        """Padded on the right where each row fills the cache on its own."""
        return prefill_feeds(prompts, self.config, own_lengths=self.program.signature.cache is not Cache.GROWING)

    def room(self, prompt: Prompt) -> int:
        """A static cache may be shorter than the context."""
        room = super().room(prompt)
        signature = self.program.signature
        return min(room, signature.static_length - len(prompt.ids)) if signature.cache is Cache.STATIC else room

    def prefill(self, feeds: Feeds) -> Logits:
        """Start a batch from an empty cache."""
        self._buffers.start(feeds.batch, feeds.columns)
        return self.decode(feeds)

    def decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache."""
        if not self._buffers.started:
            raise InputError("decode was called before prefill; there is no cache to read on from")
        self._buffers.make_room(feeds.columns)
        binding = self.runtime.io_binding()
        arrays = enter_static_prefix(feeds.named(), self.program.signature, prefix=self.config.prefix_mask)
        for name in self._inputs:
            binding.bind_cpu_input(name, np.ascontiguousarray(arrays[name]))
        binding.bind_output(LOGITS, "cpu")
        self._buffers.bind(binding)
        self.runtime.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        self._buffers.take(presents)
        result: Logits = logits.numpy().astype(np.float32, copy=False)
        return result

    def run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out, in the canonical program's layout whatever the dialect's."""
        signature, prefix = self.program.signature, self.config.prefix_mask
        names = [spec.name for spec in signature.outputs]
        outputs = self.runtime.run(names, enter(tensors, signature, prefix=prefix))
        return leave(dict(zip(names, outputs, strict=True)), tensors, signature, prefix=prefix)

    def close(self) -> None:
        """Free the runtime and the cache."""
        self._buffers.clear()
        del self.runtime
        if self._twin is not None:
            self._twin.cleanup()


def _widened(program: OnnxProgram, folder: Path) -> OnnxProgram:
    widen(program.model_path, folder / MODEL, WEIGHTS)
    return replace(program, folder=folder, dtype="float32", signature=widened_signature(program.signature))
