"""A TensorRT engine as a session.

Two contexts, one a profile: prompts are read by the first, as many rows at once as it was built for; tokens are decoded
by the second, captured as a CUDA graph where the cache is static. Keys and values never leave the device; of the
logits, those the program computes are copied out, usually the last token's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from glm_export.artifacts.engine import Engine
from glm_export.artifacts.initial_cache import read_initial_cache
from glm_export.artifacts.program import MODEL
from glm_export.engines import vendor
from glm_export.engines.fit import require_fit
from glm_export.engines.inspection import activations, deserialize, refit
from glm_export.errors import CheckpointError, EnvironmentMissingError, InputError
from glm_export.inputs.feeds import Feeds
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.inputs.right_padded import RightPaddedFeeds
from glm_export.sessions.batch_invariance import invariance_of
from glm_export.sessions.device.cuda import CudaDevice
from glm_export.sessions.device.loop import TokenLoop
from glm_export.sessions.device.loop_step import LoopStep
from glm_export.sessions.device.moving_feeds import MovingFeeds
from glm_export.sessions.loop_request import LoopRequest
from glm_export.sessions.program_layout import call_layout
from glm_export.sessions.session import Logits, Session, SessionDescription, Tensors
from glm_export.sessions.tensorrt.cache import EngineCache, engine_cache
from glm_export.sessions.tensorrt.kernel_cache import KernelCache
from glm_export.sessions.tensorrt.step import CachePair, EngineStep, EnqueueError, LoadedEngine, contexts
from glm_export.sessions.tensorrt.weight_streaming import stream_weights
from glm_export.spec.batch_invariance import BatchInvariance
from glm_export.spec.optimization_profile import DECODE, PREFILL
from glm_export.spec.signature import INPUT_IDS, LOGITS, Cache, past_names, present_names

LEAST_BUCKET = 16
"""Tokens."""


def load_onto_device(engine: Engine) -> LoadedEngine:
    """Load an engine's plan, and put weights into one that has none.

    Raises:
        EnvironmentMissingError: it will not load here; why, and what to do.
        CheckpointError: the plan is damaged, or TensorRT refuses it.
    """
    require_fit(engine)
    tensorrt = vendor.load(engine.runtime)
    device = CudaDevice()
    try:
        runtime, loaded = deserialize(tensorrt, engine.plan_path)
    except CheckpointError:
        engine.require_undamaged()
        raise
    if engine.compatibility.stripped:
        refit(tensorrt, loaded, engine.folder / MODEL)
    streamed = engine.manifest["options"]["weight_streaming"] and stream_weights(tensorrt, loaded, engine, device)
    return LoadedEngine(tensorrt=tensorrt, runtime=runtime, engine=loaded, device=device, streamed=streamed)


class EngineSession(Session):
    """An engine of either runtime. ``loaded`` is its plan in device memory; without it, it is loaded.

    ``cuda_graph``: capture decode steps, where the cache is static.
    """

    cache: EngineCache

    def __init__(self, engine: Engine, loaded: LoadedEngine | None = None, *, cuda_graph: bool = True) -> None:
        super().__init__(engine.folder, engine.program.config)
        self.engine = engine
        self.program = engine.program
        self.signature = engine.program.signature
        self.layout = call_layout(self.signature, engine.folder)
        self.initial_cache = read_initial_cache(engine.folder, self.config, self.signature)
        self._loaded = loaded or load_onto_device(engine)
        self._kernels = KernelCache.of(self._loaded.tensorrt, engine.folder)
        needed = activations(self._loaded.tensorrt, self._loaded.engine)
        made, self._scratch = contexts(self._loaded, needed, self._kernels, cuda_graph=cuda_graph)
        # By name: which profile comes first is the builder's.
        steps = {
            profile.name: EngineStep(self._loaded, index, profile, self.signature, context, self._scratch)
            for index, (profile, context) in enumerate(zip(engine.profiles, made, strict=True))
        }
        self._prefill_step, self._decode_step = steps[PREFILL], steps[DECODE]
        self.cache = self.new_cache()
        self._static = self.signature.cache is Cache.STATIC
        self._cuda_graph = cuda_graph
        # Where the runtime captures by itself, in what it was configured with, nothing is left to capture.
        self._graph = cuda_graph and self._static and self._kernels is None
        self._failed: EnqueueError | None = None

    def new_cache(self) -> EngineCache:
        """In the engine's device memory."""
        longest, device = self.engine.limits.max_context, self._loaded.device
        return engine_cache(self.signature, device, longest, self._decode_step.reset, self.initial_cache)

    def describe(self) -> SessionDescription:
        """The engine's runtime, and the version it was built by."""
        return SessionDescription(
            runtime=self.engine.runtime,
            version=self.engine.version,
            device="cuda",
            dialect=self.program.dialect,
            dtype=self.program.dtype,
            cache=self.signature.cache,
            threads=None,
        )

    @property
    def batch_invariance(self) -> BatchInvariance:
        """As recipe, dialect and device are."""
        return invariance_of(self.program, "cuda")

    def weight_traffic(self, rows: int) -> int:
        """As the build found it."""
        found = self.engine.manifest["step_bytes"]
        return int(found["weights"] + rows * found["row"])

    def device_memory(self) -> int | None:
        """Of the GPU."""
        return self._loaded.device.memory_in_use()

    def feeds(self, prompts: Sequence[Prompt]) -> Feeds:
        """Padded on the right where each row fills the cache on its own."""
        feeds = prefill_feeds(prompts, self.config, own_lengths=self.signature.own_lengths)
        self._require(feeds)
        return feeds

    @property
    def capacity(self) -> int:
        """The engine may hold less than the model's context."""
        return self.engine.limits.max_context

    @property
    def max_rows(self) -> int:
        """As many as it was built for."""
        return self.engine.limits.max_batch

    def _require(self, feeds: Feeds) -> None:
        limits = self.engine.limits
        if feeds.batch > limits.max_batch:
            raise InputError(
                f"{feeds.batch} rows, and the engine was built for {limits.max_batch}; build with --max-batch"
            )
        if feeds.columns > limits.max_context:
            raise InputError(
                f"{feeds.columns} tokens, and the engine was built for {limits.max_context}; build with --max-context"
            )

    @property
    def chooses_tokens(self) -> bool:
        """Where the cache keeps its place."""
        return self._static

    def token_loop(self, feeds: Feeds, request: LoopRequest) -> TokenLoop:
        """Over the static cache."""
        if not self._static:
            return super().token_loop(feeds, request)
        with self._turns.continues:
            self.cache.require(feeds)
            self._require(feeds)
            self._require_working()
            arrays = self.layout.inputs_without_cache(feeds)
            with self._failures_kept():
                step = self._decode_step.loop(arrays, self.cache.pairs(0, 1), capture=self._graph)
        watched = replace(step, launch=lambda: self._launch(step))
        moving = MovingFeeds(watched, self.signature, feeds.row_lengths, request.last_position)
        return TokenLoop(watched, moving, request, steps=request.steps, capture=self._cuda_graph)

    def _launch(self, step: LoopStep) -> None:
        with self._failures_kept():
            step.launch()

    @contextmanager
    def _failures_kept(self) -> Iterator[None]:
        """A step that failed leaves nothing to go on from: the session says so from then on."""
        try:
            yield
        except EnqueueError as error:
            self._failed = error
            self._prefill_step.reset()
            self._decode_step.reset()
            raise

    def _require_working(self) -> None:
        if self._failed is not None:
            raise EnvironmentMissingError(
                f"the engine failed before, and what is on the device is not known any more ({self._failed}); "
                "close the session and load it again"
            )

    def _prefill(self, feeds: Feeds) -> Logits:
        """Start a batch from an empty cache, or from the model's prefix."""
        self._require_working()
        self._require(feeds)
        self.cache.start(feeds.batch, feeds.columns)
        return self._read(feeds)

    def _decode(self, feeds: Feeds) -> Logits:
        """Read on from the cache."""
        self._require_working()
        self.cache.require(feeds)
        self._require(feeds)
        if feeds.input_ids.shape[1] == 1:
            return self._call(self._decode_step, feeds, slice(0, feeds.batch), capture=self._graph)
        return self._read(feeds)

    def _read(self, feeds: Feeds) -> Logits:
        """Several tokens a row, in groups of as many rows as the profile takes."""
        batch, width = feeds.input_ids.shape
        group = self.engine.limits.prefill_batch if self._static else batch
        found = []
        for start in range(0, batch, group):
            chosen = slice(start, min(start + group, batch))
            logits = self._read_together(feeds.rows(chosen), chosen)
            if logits.shape[1] != 1:
                logits = np.pad(logits, ((0, 0), (0, width - logits.shape[1]), (0, 0)))
            found.append(logits)
        return np.concatenate(found)

    def _read_together(self, feeds: Feeds, chosen: slice) -> Logits:
        """One group, in pieces of as many tokens as the profile takes."""
        found: list[Logits] = []
        for piece in self._pieces(feeds):
            step = self._decode_step if self._beyond_prefill(piece) else self._prefill_step
            logits = self._call(step, piece, chosen)
            if isinstance(piece, RightPaddedFeeds) and self.signature.last_logits_only and found:
                # A row that ended in an earlier piece keeps what it got there.
                ended = feeds.row_lengths <= piece.write_indices
                logits = np.where(ended[:, None, None], found[-1], logits)
            found.append(logits)
        return found[-1] if self.signature.last_logits_only else np.concatenate(found, axis=1)

    def _pieces(self, feeds: Feeds) -> Iterator[Feeds]:
        size = self.engine.limits.prefill_tokens
        for piece in feeds.chunks(size):
            if piece.input_ids.shape[1] > size:
                raise InputError(
                    f"the prompt's context of {piece.input_ids.shape[1]} tokens must be read at once, and the engine "
                    f"was built for {size}; build with --prefill-tokens"
                )
            yield from piece.chunks(1) if self._beyond_prefill(piece) else [piece]

    def _beyond_prefill(self, piece: Feeds) -> bool:
        """Whether a growing cache holds more before a piece than the prefill profile was built for."""
        before = piece.columns - piece.input_ids.shape[1]
        return not self._static and before > self._longest_past

    @property
    def _longest_past(self) -> int:
        profile = next(profile for profile in self.engine.profiles if profile.name == PREFILL)
        return profile.shapes[past_names(0)[0]][2][2]

    def _call(self, step: EngineStep, feeds: Feeds, chosen: slice, *, capture: bool = False) -> Logits:
        new = feeds.input_ids.shape[1]
        pairs: Sequence[CachePair] = self.cache.pairs(feeds.columns - new, new)
        if chosen != slice(0, self.cache.rows):
            pairs = [replace(pair, past=pair.past[chosen], present=pair.present[chosen]) for pair in pairs]
        fed = self._in_buckets(feeds) if new > 1 else feeds
        with self._failures_kept():
            logits = step.run(self.layout.inputs_without_cache(fed), pairs, capture=capture)
        self.cache.take()
        self.cache.wrote(feeds, chosen)
        found: Logits = self._loaded.device.get(logits).astype(np.float32, copy=False)
        return found[:, :new]

    def _in_buckets(self, feeds: Feeds) -> Feeds:
        """A prompt padded up to a power of two, where every length is compiled for by itself (TensorRT-RTX)."""
        if self._kernels is None or not isinstance(feeds, RightPaddedFeeds):
            return feeds
        room = self.engine.limits.max_context - int(feeds.write_indices.max())
        width = min(max(LEAST_BUCKET, 1 << (feeds.input_ids.shape[1] - 1).bit_length()), room)
        return feeds.widened(min(width, self.engine.limits.prefill_tokens))

    def _run(self, tensors: Tensors) -> Tensors:
        """One call with the cache handed in and out, in the canonical program's layout whatever the dialect's."""
        self._require_working()
        given = self.layout.to_program(tensors)
        batch, new = given[INPUT_IDS].shape
        step, group = (
            (self._decode_step, self.engine.limits.max_batch)
            if new == 1
            else (self._prefill_step, self.engine.limits.prefill_batch)
        )
        parts = [self._run_rows(step, given, slice(start, start + group)) for start in range(0, batch, group)]
        outputs: Tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self.layout.to_canonical(outputs, tensors)

    def _run_rows(self, step: EngineStep, given: Tensors, chosen: slice) -> Tensors:
        device, layers = self._loaded.device, range(self.config.num_layers)
        arrays = {name: array[chosen] for name, array in given.items()}
        new = arrays[INPUT_IDS].shape[1]
        pairs = []
        for layer in layers:
            for name, present in zip(past_names(layer), present_names(layer), strict=True):
                array, dtype = arrays[name], self.signature.input(name).dtype
                rows, heads, columns, channels = array.shape
                # Never empty: TensorRT wants an address.
                past = device.zeros(max(1, array.size), dtype)[: array.size].view(array.shape)
                device.put(past, array)
                shape = (rows, heads, columns + new, channels)
                grown = past if self._static else device.zeros(rows * heads * (columns + new) * channels, dtype)
                pairs.append(
                    CachePair(
                        past_name=name, present_name=present, past=past,
                        present=past if self._static else grown.view(shape),
                    )
                )  # fmt: skip
        with self._failures_kept():
            outputs = {LOGITS: device.get(step.run(arrays, pairs))}
        return outputs | {pair.present_name: device.get(pair.present) for pair in pairs}

    def _in_floats(self, past: Tensors) -> Tensors:
        return self.layout.dequantize_past(past)

    def _close(self) -> None:
        """Free the engine and the cache, whatever cannot be kept of it."""
        try:
            if self._kernels is not None:
                self._kernels.save()
        finally:
            self.cache.clear()
            self._loaded.device.release()
        del self._prefill_step, self._decode_step, self._scratch, self._loaded
