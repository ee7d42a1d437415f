"""ONNX Runtime as a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from glm_export.artifacts.initial_cache import read_initial_cache
from glm_export.artifacts.program import WEIGHTS, OnnxProgram
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.inputs.call_layout import run_rows_apart
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.machine.scratch import ScratchFolder
from glm_export.sessions.batch_invariance import invariance_of, prompt_form_tokens, recipe_of
from glm_export.sessions.logits import in_float32
from glm_export.sessions.loop_request import LoopRequest
from glm_export.sessions.onnxruntime.cache import Growing, InPlace, ort_cache
from glm_export.sessions.onnxruntime.cuda_graph import CapturedGraph, GraphIds, without_capture
from glm_export.sessions.onnxruntime.packed import PackedPrograms
from glm_export.sessions.onnxruntime.rows_apart import LEAST_WIDTH, decode_apart, reads_evenly, widened
from glm_export.sessions.onnxruntime.runtime import CUDA, inference_session, providers, reads_ragged
from glm_export.sessions.program_layout import call_layout
from glm_export.sessions.session import Logits, Session, SessionDescription, Tensors
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.dtypes import NUMPY_DTYPES
from glm_export.spec.signature import CACHE_LENGTH_AXIS, INPUT_IDS, LOGITS, Cache, past_names

if TYPE_CHECKING:  # they bring torch along
    from glm_export.sessions.device.device import Device
    from glm_export.sessions.device.loop import TokenLoop
    from glm_export.sessions.onnxruntime.device_step import DeviceStep


MOST_PADDING = 16
"""Columns, over all rows, where logits of each are told: padding is not multiplied, but written all the same."""


class OrtSession(Session):
    """A program of any dialect. Its cache stays inside the runtime; where the dialect shares one buffer, in place.

    ``threads`` of one operator, ``cuda_graph`` to capture decode steps, ``packed`` programs: see
    :func:`inference_session`.

    A bfloat16 program runs as its float32 twin, written to a temporary folder: numpy cannot feed bfloat16, and the
    CPU provider has no kernels for it.
    """

    cache: Growing | InPlace

    def __init__(
        self,
        program: OnnxProgram,
        chosen: list[str] | None = None,
        *,
        threads: int | None = None,
        cuda_graph: bool = False,
        packed: PackedPrograms | None = None,
    ) -> None:
        super().__init__(program.folder, program.config)
        self._twin: ScratchFolder | None = None
        program = (program.ragged if reads_ragged(chosen) else None) or program
        if program.dtype not in NUMPY_DTYPES:
            self._twin = ScratchFolder()
            program = upcast_program(program, self._twin.path)
        self.program, self.signature = program, program.signature
        self.prompt_form_tokens = prompt_form_tokens(program)
        self.initial_cache = read_initial_cache(self.folder, self.config, program.signature)
        self.layout = call_layout(program.signature, self.folder)
        if cuda_graph and (not program.signature.counts_positions or CUDA not in (chosen or providers())):
            raise InputError("a CUDA graph needs an NVIDIA GPU and a program of dialect ort of a causal family")
        # Another device is taken in tests.
        gpu = _gpu() if CUDA in (chosen or providers()) else None
        self.runtime = inference_session(
            program,
            chosen,
            threads=threads,
            cuda_graph=cuda_graph,
            stream=gpu.stream if gpu is not None else None,
            # The manifest's hashes are not those of a twin's files.
            packed=packed if self._twin is None else None,
        )
        graphs = GraphIds() if cuda_graph else None
        self._captured = CapturedGraph(self.runtime, program.signature, graphs) if graphs is not None else None
        self._device = "cuda" if self.runtime.get_providers()[0] == CUDA else "cpu"
        self._looped: DeviceStep | None = None
        if gpu is not None and self._device == "cuda":
            self.loop_on(gpu, graphs)
        self.cache = self.new_cache()

    def new_cache(self) -> Growing | InPlace:
        """Of the program's kind, on the first provider's device."""
        return ort_cache(self.signature, self._device, self.config.most_columns, self._moving, self.initial_cache)

    def _moving(self) -> None:
        for bound in (self._captured, self._looped):
            if bound is not None:
                bound.reset()

    def loop_on(self, device: Device, graphs: GraphIds | None = None) -> None:
        """Let decode steps choose their tokens on a device, whose stream the runtime computes on.

        Args:
            device: the same as the first provider's.
            graphs: ids for captured steps; None captures none.
        """
        from glm_export.sessions.onnxruntime.device_step import DeviceStep

        if self.signature.counts_positions:
            self._looped = DeviceStep(self.runtime, self.signature, device, graphs)

    @property
    def chooses_tokens(self) -> bool:
        """Where the program counts positions, and on a GPU that PyTorch reaches as well."""
        return self._looped is not None

    def token_loop(self, feeds: Feeds, request: LoopRequest) -> TokenLoop:
        """Over the shared cache: as many steps as it has columns reserved."""
        if self._looped is None or not isinstance(self.cache, InPlace):
            return super().token_loop(feeds, request)
        from glm_export.sessions.device.loop import TokenLoop
        from glm_export.sessions.device.moving_feeds import MovingFeeds

        with self._turns.continues:
            self.cache.require(feeds)
            self.cache.make_room(feeds.columns)
            step = self._looped.loop(feeds, self.cache)
            moving = MovingFeeds(step, self.signature, feeds.row_lengths, request.last_position)
        steps = min(request.steps, self.cache.reserved - feeds.columns + 1)
        return TokenLoop(step, moving, request, steps=steps, capture=self._looped.captures)

    def describe(self) -> SessionDescription:
        """ONNX Runtime, on its first provider."""
        return SessionDescription(
            runtime="onnxruntime",
            version=onnxruntime.__version__,
            device=self._device,
            dialect=self.program.dialect,
            dtype=self.program.dtype,
            cache=self.signature.cache,
            threads=self.runtime.get_session_options().intra_op_num_threads,
            ragged=self.signature.ragged,
        )

    @property
    def batch_invariance(self) -> BatchInvariance:
        """As recipe, dialect and device are."""
        return invariance_of(self.program, self._device)

    @property
    def rounds_by_call(self) -> bool:
        """As the recipe does: blocks of integers multiply one token by another kernel than several."""
        recipe = recipe_of(self.program)
        return recipe is not None and recipe.batch_invariance is not BatchInvariance.EXACT

    def weight_traffic(self, rows: int) -> int:
        """Of the program's initializers."""
        from glm_export.graphs.weight_traffic import program_weight_traffic

        return program_weight_traffic(self.program.model_path, rows)

    def feeds(self, prompts: Sequence[Prompt]) -> Feeds:
        """Padded on the right where each row fills the cache on its own."""
        return prefill_feeds(prompts, self.config, own_lengths=self.signature.own_lengths)

    @property
    def capacity(self) -> int | None:
        """A static cache may be shorter than the context."""
        return self.signature.static_length if self.signature.cache is Cache.STATIC else None

    def _prefill(self, feeds: Feeds) -> Logits:
        """Start a batch from an empty cache, or from the model's prefix."""
        self.cache.start(feeds.batch, feeds.columns)
        return self._decode(feeds)

    def _decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache."""
        self.cache.require(feeds)
        if isinstance(feeds, RightPaddedFeeds) and isinstance(self.cache, InPlace) and not self._at_once(feeds):
            logits = decode_apart(self, feeds, self.cache, LEAST_WIDTH if self.signature.ragged else 1)
        else:
            self.cache.make_room(feeds.columns)
            logits = self.call(feeds)
        self.cache.wrote(feeds)
        return logits

    def _at_once(self, feeds: RightPaddedFeeds) -> bool:
        """Whether one call of all rows is possible, and what it writes of padding bearable."""
        if self.signature.cache is not Cache.SHARED:
            return True
        if self.signature.ragged and feeds.input_ids.shape[1] == 1:
            # Rows that are wide enough elsewhere are so beside one that is at its end.
            return feeds.batch == 1 or widened(feeds, self.config.max_positions) is not feeds
        if reads_evenly(feeds):
            return True
        # Padding takes columns too, and the operator wants them there.
        within = self.signature.ragged and feeds.columns <= self.config.max_positions
        padding = feeds.input_ids.size - int(feeds.new_tokens.sum())
        return within and (self.signature.most_logits is not None or padding <= MOST_PADDING)

    def call(self, feeds: Feeds, row: int | None = None) -> Logits:
        """Run the program once; the caller has seen to the cache, and says what was written.

        Args:
            feeds: for all rows, or for the one.
            row: whose part of a shared cache it is.
        """
        width = feeds.input_ids.shape[1]
        if self.signature.ragged and isinstance(feeds, RightPaddedFeeds) and isinstance(self.cache, InPlace):
            feeds = widened(feeds, self.config.max_positions)
            self.cache.make_room(feeds.columns)
        if (
            self._captured is not None
            and row is None
            and feeds.input_ids.shape[1] == 1
            and isinstance(self.cache, InPlace)
        ):
            return self._captured.replay(feeds, self.cache)
        if row is not None and isinstance(self.cache, InPlace):
            binding = self.runtime.io_binding()
            binding.bind_output(LOGITS, "cpu")
            self.cache.bind_rows(binding, row, 1)
        else:
            binding = self.cache.binding(self.runtime)
        for name, array in self.layout.inputs_without_cache(feeds).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        # Anew each time: a binding keeps the array it got last, and with it its shape.
        binding.bind_output(LOGITS, "cpu")
        self.runtime.run_with_iobinding(binding, without_capture() if self._captured is not None else None)
        logits, *presents = binding.get_outputs()
        self.cache.take(presents)
        return in_float32(logits.numpy())[:, :width]

    def _run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out, in the canonical program's layout whatever the dialect's."""
        past = tensors[past_names(0)[0]].shape[CACHE_LENGTH_AXIS]
        rows, new = tensors[INPUT_IDS].shape
        one_by_one = self.signature.cache is Cache.SHARED and not self.signature.ragged
        if one_by_one and past and rows > 1 and new > 1:
            return run_rows_apart(self._run, tensors, self.signature)
        names = [spec.name for spec in self.signature.outputs]
        outputs = self.runtime.run(names, self.layout.to_program(tensors))
        return self.layout.to_canonical(dict(zip(names, outputs, strict=True)), tensors)

    def _in_floats(self, past: Tensors) -> Tensors:
        return self.layout.dequantize_past(past)

    def _close(self) -> None:
        """Free the runtime and the cache."""
        self.cache.clear()
        self._captured = self._looped = None
        del self.runtime
        if self._twin is not None:
            self._twin.close()


def upcast_program(program: OnnxProgram, folder: Path) -> OnnxProgram:
    """The float32 twin of a bfloat16 program, written to a folder."""
    from glm_export.graphs.precision.upcast import upcast, upcast_signature

    upcast(program.model_path, folder / program.graph, WEIGHTS)
    return replace(program, folder=folder, dtype="float32", signature=upcast_signature(program.signature))


def _gpu() -> Device | None:
    """The GPU as PyTorch has it; None where its PyTorch is one for processors, and the host chooses tokens."""
    from glm_export.sessions.device.cuda import CudaDevice

    try:
        return CudaDevice()
    except EnvironmentMissingError:
        return None
