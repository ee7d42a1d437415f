"""ONNX Runtime as a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from glm_export.artifacts import MODEL, WEIGHTS, OnnxProgram
from glm_export.calibration.quantization import kv_scales
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.feeds import Feeds, Prompt, prefill_feeds
from glm_export.gpu import has_driver
from glm_export.layout import IntegerCache, enter, enter_static_prefix, leave
from glm_export.sessions import Logits, Session, Tensors
from glm_export.sessions.buffers import NUMPY_DTYPES, InPlace, buffers
from glm_export.sessions.cuda_graph import ENABLE, CapturedStep, without_capture
from glm_export.signature import LOGITS, Cache, past_names

CUDA = "CUDAExecutionProvider"
PREFERRED_PROVIDERS = (CUDA, "CPUExecutionProvider")
EXACT = {"use_tf32": "0"}
"""By default products of float32 are rounded to 11 bits on GPUs that can."""
MANY_CORES = 4
# ONNX Runtime 1.31 turns the Q/DQ of 8-bit floats into an integer product that does not take them, and fails.
UNFUSED = {"fp8"}
CACHE_PREFIX = past_names(0)[0].split(".")[0]


def providers() -> list[str]:
    """Execution providers to use here, best first."""
    available = set(onnxruntime.get_available_providers())
    if not has_driver():
        # The GPU wheel lists its provider on every machine, and complains at length when it cannot load it.
        available.discard(CUDA)
    return [name for name in PREFERRED_PROVIDERS if name in available]


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
    program: OnnxProgram,
    chosen: list[str] | None = None,
    *,
    threads: int | None = None,
    cuda_graph: bool = False,
) -> onnxruntime.InferenceSession:
    """Load a program into ONNX Runtime.

    Args:
        program: an exported folder.
        chosen: execution providers; None takes the best there are.
        threads: of one operator; None takes :func:`usable_threads`.
        cuda_graph: prepare CUDA for capturing steps.

    Raises:
        EnvironmentMissingError: this machine's providers cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or usable_threads()
    # Products with dequantized weights are float products: by default the runtime would round their inputs as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if program.recipe in UNFUSED:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    chosen = chosen or providers()
    if CUDA in chosen:
        onnxruntime.preload_dlls()
    try:
        cuda = EXACT | ENABLE if cuda_graph else EXACT
        given = [(name, cuda) if name == CUDA else name for name in chosen]
        return onnxruntime.InferenceSession(str(program.model_path), options, providers=given)
    except Exception as error:  # onnxruntime's exceptions share no public base
        hint = "; export with --dtype float32 for this machine" if program.dtype != "float32" else ""
        raise EnvironmentMissingError(
            f"ONNX Runtime {onnxruntime.__version__} ({', '.join(chosen)}) cannot load {program.model_path}: "
            f"{' '.join(str(error).split())[:300]}{hint}"
        ) from error


class OrtSession(Session):
    """A program of any dialect. Its cache stays inside the runtime; where the dialect shares one buffer, in place.

    ``threads`` of one operator, ``cuda_graph`` to capture decode steps: see :func:`inference_session`.

    A bfloat16 program runs as its float32 twin, written to a temporary folder: numpy cannot feed bfloat16, and the
    CPU provider has no kernels for it.
    """

    def __init__(
        self,
        program: OnnxProgram,
        chosen: list[str] | None = None,
        *,
        threads: int | None = None,
        cuda_graph: bool = False,
    ) -> None:
        super().__init__(program.folder, program.config)
        self._twin: tempfile.TemporaryDirectory[str] | None = None
        if program.dtype not in NUMPY_DTYPES:
            self._twin = tempfile.TemporaryDirectory(prefix="glm-export-")
            program = _widened(program, Path(self._twin.name))
        self.program = program
        if cuda_graph and (program.signature.cache is not Cache.SHARED or CUDA not in (chosen or providers())):
            raise InputError("a CUDA graph needs an NVIDIA GPU and a program of dialect ort of a causal family")
        self.runtime = inference_session(program, chosen, threads=threads, cuda_graph=cuda_graph)
        self._captured = CapturedStep(self.runtime, program.signature) if cuda_graph else None
        self._inputs = [spec.name for spec in program.signature.inputs if not spec.name.startswith(CACHE_PREFIX)]
        self._one_row_chunks = program.signature.cache is Cache.SHARED
        device = "cuda" if self.runtime.get_providers()[0] == CUDA else "cpu"
        self._buffers = buffers(program.signature, program.config.num_layers, device, program.config.max_positions)

    def feeds(self, prompts: Sequence[Prompt]) -> Feeds:
        """Padded on the right where each row fills the cache on its own."""
        return prefill_feeds(prompts, self.config, own_lengths=self.program.signature.cache is not Cache.GROWING)

    @property
    def capacity(self) -> int | None:
        """A static cache may be shorter than the context."""
        signature = self.program.signature
        return signature.static_length if signature.cache is Cache.STATIC else None

    def prefill(self, feeds: Feeds) -> Logits:
        """Start a batch from an empty cache."""
        self._buffers.start(feeds.batch, feeds.columns)
        return self.decode(feeds)

    def decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache."""
        if not self._buffers.started:
            raise InputError("decode was called before prefill; there is no cache to read on from")
        if self._one_row_chunks and feeds.batch > 1 and 1 < feeds.input_ids.shape[1] < feeds.columns:
            raise InputError("GroupQueryAttention reads several tokens on a past one row at a time; pass rows alone")
        self._buffers.make_room(feeds.columns)
        if self._captured is not None and feeds.input_ids.shape[1] == 1 and isinstance(self._buffers, InPlace):
            return self._captured.run(feeds, self._buffers)
        binding = self._buffers.binding(self.runtime)
        arrays = enter_static_prefix(feeds.named(), self.program.signature, prefix=self.config.prefix_mask)
        for name in self._inputs:
            binding.bind_cpu_input(name, np.ascontiguousarray(arrays[name]))
        # Anew each time: a binding keeps the array it got last, and with it its shape.
        binding.bind_output(LOGITS, "cpu")
        self.runtime.run_with_iobinding(binding, without_capture() if self._captured is not None else None)
        logits, *presents = binding.get_outputs()
        self._buffers.take(presents)
        result: Logits = logits.numpy().astype(np.float32, copy=False)
        return result

    def run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out, in the canonical program's layout whatever the dialect's."""
        signature, prefix = self.program.signature, self.config.prefix_mask
        names = [spec.name for spec in signature.outputs]
        integers = IntegerCache(scales=kv_scales(self.folder)) if signature.cache_is_integer else None
        given = enter(integers.enter(tensors) if integers else tensors, signature, prefix=prefix)
        outputs = dict(zip(names, self.runtime.run(names, given), strict=True))
        return leave(integers.leave(outputs) if integers else outputs, tensors, signature, prefix=prefix)

    def close(self) -> None:
        """Free the runtime and the cache."""
        self._buffers.clear()
        self._captured = None
        del self.runtime
        if self._twin is not None:
            self._twin.cleanup()


def _widened(program: OnnxProgram, folder: Path) -> OnnxProgram:
    from glm_export.graphs.widen import widen, widened_signature

    widen(program.model_path, folder / MODEL, WEIGHTS)
    return replace(program, folder=folder, dtype="float32", signature=widened_signature(program.signature))
