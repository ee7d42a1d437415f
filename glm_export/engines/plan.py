"""ONNX program -> serialized engine: TensorRT builds, Polygraphy configures it, and everything said is kept."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from glm_export.artifacts.program import OnnxProgram
from glm_export.engines.layers import EngineLayer, layers_of_log
from glm_export.engines.network import Network
from glm_export.engines.options import BuildOptions
from glm_export.engines.vendor import TensorRT
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.machine.gpu import has_driver
from glm_export.progress import Advance, Progress
from glm_export.spec.optimization_profile import PREFILL, OptimizationProfile

ACTIVATIONS, WEIGHTS = "Total Activation Memory: ", "Total Weights Memory: "
LAYERS = "Layers:\n"
NO_FUSED_KERNEL = "not supported by a dedicated kernel"
ATTENTION_PLACE = ".attention.scores"
NEEDS_GPU = "Cuda Runtime"
SHOWN_DEPTH = 2
"""Of the builder's nested phases, those that last long enough to read."""
OUT_OF_MEMORY = ("OutOfMemory", "out of memory", "cudaErrorMemoryAllocation")


@dataclass(slots=True)
class BuildRecord:
    """What one build said: ``activations`` bytes by profile, ``weights`` bytes, and the layers it listed."""

    activations: list[int] = field(default_factory=list)
    weights: int | None = None
    layers: list[EngineLayer] = field(default_factory=list)
    decomposed: bool = False
    seconds: float = 0.0

    def read(self, text: str) -> None:
        """Take what a message of the builder tells."""
        if text.startswith(ACTIVATIONS):
            self.activations.append(_bytes(text.removeprefix(ACTIVATIONS)))
        elif text.startswith(WEIGHTS):
            self.weights = _bytes(text.removeprefix(WEIGHTS))
        elif LAYERS in text:
            self.layers = layers_of_log(text)


def _bytes(text: str) -> int:
    return int(text.split()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """One build: the program, the profiles, the options, and where to write.

    ``calibrator`` is made for the parsed network, and makes INT8 implicit.
    """

    program: OnnxProgram
    profiles: Sequence[OptimizationProfile]
    options: BuildOptions
    plan_path: Path
    log_path: Path
    timing_cache: Path | None = None
    calibrator: Callable[[Network], Any] | None = None


def build(tensorrt: TensorRT, job: BuildJob, progress: Progress) -> tuple[BuildRecord, dict[str, int]]:
    """Build an engine and write its plan.

    Attention is left to fused kernels; where the builder has none for a dtype or head size it is built from several.

    Args:
        tensorrt: the runtime.
        job: what to build.
        progress: shows the builder's phases, where the version tells them.

    Returns:
        What the build said, and how often each kind of layer stands in the network.

    Raises:
        InputError: the parser refuses the program.
        EnvironmentMissingError: the builder gives up; its own words are in the message, all of them in the log.
        KeyboardInterrupt: it was interrupted.
    """
    with job.log_path.open("w", encoding="utf-8") as log:
        network = _parsed(tensorrt, job)
        try:
            return _build(tensorrt, job, network, log.write, progress), dict(network.counts())
        except _NoFusedKernelError:
            require_narrow_attention(tensorrt, job.program)
            log.write("\n# attention has no fused kernel for this dtype and head size: built from several kernels\n\n")
        network = _parsed(tensorrt, job)
        network.allow_decomposition()
        try:
            record = _build(tensorrt, job, network, log.write, progress)
        except _NoFusedKernelError as error:
            raise EnvironmentMissingError(
                f"{tensorrt.name} {tensorrt.version} could not build {job.program.folder}: {tensorrt.log.reason}"
            ) from error
    record.decomposed = True
    return record, dict(network.counts())


def require_narrow_attention(tensorrt: TensorRT, program: OnnxProgram) -> None:
    """See that attention may be built from several kernels.

    Raises:
        InputError: some of it is computed in float32 over a float16 cache: TensorRT-RTX 1.7 ends the process there.
    """
    wide = [place for place in program.manifest.get("float32_islands", []) if ATTENTION_PLACE in place]
    if wide:
        raise InputError(
            f"{tensorrt.name} {tensorrt.version} has no kernel for attention in float32 over a float16 cache, and "
            f"{wide[0]} is kept in float32; export with --dtype bfloat16"
        )


class _NoFusedKernelError(Exception):
    pass


def _parsed(tensorrt: TensorRT, job: BuildJob) -> Network:
    return Network(tensorrt, job.program.model_path, strong=job.calibrator is None)


def _build(
    tensorrt: TensorRT, job: BuildJob, network: Network, write: Callable[[str], object], progress: Progress
) -> BuildRecord:
    record = BuildRecord()

    def listen(severity: str, text: str) -> None:
        write(f"{severity}: {text}\n")
        record.read(text)

    tensorrt.log.clear()
    tensorrt.log.listener = listen
    started = time.perf_counter()
    try:
        with _interruptible() as interrupted:
            config = _config(tensorrt, job, network, _monitor(tensorrt, progress, interrupted))
            whole = _serialize(network, config, job.plan_path)
        if interrupted.is_set():
            raise KeyboardInterrupt
    finally:
        tensorrt.log.listener = None
    record.seconds = time.perf_counter() - started
    if not whole:
        raise _failure(tensorrt, job)
    if job.timing_cache is not None:
        save_timing_cache(config, job.timing_cache)
    return record


def _failure(tensorrt: TensorRT, job: BuildJob) -> Exception:
    said = " ".join(tensorrt.log.errors)
    # Told by the builder's words: no call of TensorRT says beforehand which head sizes have a fused kernel.
    if NO_FUSED_KERNEL in said and tensorrt.find("IAttentionInputLayer") is not None:
        return _NoFusedKernelError(said)
    hint = ""
    if any(sign in said for sign in OUT_OF_MEMORY):
        hint = "; free device memory, or ask for a smaller --max-batch, --prefill-tokens or --workspace"
    elif tensorrt.log.errors and NEEDS_GPU in tensorrt.log.errors[0] and not has_driver():
        hint = "; this version builds it on a machine with a GPU only"
    return EnvironmentMissingError(
        f"{tensorrt.name} {tensorrt.version} could not build {job.program.folder}: {tensorrt.log.reason}{hint}"
    )


def _config(tensorrt: TensorRT, job: BuildJob, network: Network, monitor: Any) -> Any:
    from polygraphy.exception import PolygraphyException

    try:
        return _configured(tensorrt, job, network, monitor)
    except PolygraphyException as error:
        raise EnvironmentMissingError(
            f"{tensorrt.name} {tensorrt.version} cannot be configured as asked: {' '.join(str(error).split())}"
        ) from error


def _configured(tensorrt: TensorRT, job: BuildJob, network: Network, monitor: Any) -> Any:
    backend = tensorrt.polygraphy()
    profiles = []
    for profile in job.profiles:
        shapes = backend.Profile()
        for name, corners in profile.shapes.items():
            shapes.add(name, *corners)
        profiles.append(shapes)
    arguments = job.options.polygraphy_arguments(tensorrt) | {"profiles": profiles, "progress_monitor": monitor}
    with quiet():
        if tensorrt.rtx:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

            config = CreateConfigRTX(**arguments)(network.builder, network.network)
            # As Polygraphy does for TensorRT: float32 means float32.
            config.clear_flag(tensorrt.module.BuilderFlag.TF32)
            return config
        existing = job.timing_cache if job.timing_cache is not None and job.timing_cache.is_file() else None
        arguments["load_timing_cache"] = str(existing) if existing is not None else None
        calibrator = job.calibrator(network) if job.calibrator is not None else None
        weak = _weak_typing(tensorrt, job) | {"calibrator": calibrator}
        config = backend.CreateConfig(**arguments, **weak)(network.builder, network.network)
        share_profiles(tensorrt, config)
        if calibrator is not None:
            # Polygraphy calibrates at the last profile's shapes; ours are those of a prompt.
            prompts = [profile.name for profile in job.profiles].index(PREFILL)
            shapes = profiles[prompts].to_trt(network.builder, network.network)
            config.set_calibration_profile(shapes)
            backend.util.try_setup_polygraphy_calibrator(config, network.network, calib_profile=shapes)
        return config


def share_profiles(tensorrt: TensorRT, config: Any) -> None:
    """Let a context be made while another one has its profile, which TensorRT 8.6 and 9 refuse unless they are asked.

    Every context begins with the first profile, so a second one could not even be made. From 10 on it is so anyway.
    """
    feature = tensorrt.find("PreviewFeature.PROFILE_SHARING_0806")
    if feature is not None and not config.get_preview_feature(feature):
        config.set_preview_feature(feature, True)


def _weak_typing(tensorrt: TensorRT, job: BuildJob) -> dict[str, Any]:
    """Precisions to allow where the network is not strongly typed: implicit INT8, and TensorRT 8.6 and 9."""
    strong = job.calibrator is None and tensorrt.find("NetworkDefinitionCreationFlag.STRONGLY_TYPED") is not None
    if strong:
        return {}
    return {
        "fp16": job.program.dtype == "float16", "bf16": job.program.dtype == "bfloat16",
        "int8": job.program.recipe is not None or job.calibrator is not None,
    }  # fmt: skip


def _serialize(network: Network, config: Any, path: Path) -> bool:
    """Write the plan: as a stream where the version can, which spares its size in memory (a fifth of the peak)."""
    trt = network.tensorrt
    with path.open("wb") as file:
        if trt.find("Builder.build_serialized_network_to_stream") is not None:
            writer = _stream_writer(trt.module, file)
            return bool(network.builder.build_serialized_network_to_stream(network.network, config, writer))
        plan = network.builder.build_serialized_network(network.network, config)
        if plan is None:
            return False
        file.write(memoryview(plan))
    return True


def _stream_writer(trt: Any, file: BinaryIO) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # TensorRT has no types
        """Called from C++, where an exception would end the process: a short count says that it failed."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError:
                return 0

    return Writer()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets a flag that the monitor reads: an exception in a callback from C++ would end the process."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(tensorrt: TensorRT, progress: Progress, interrupted: threading.Event) -> Any:
    if tensorrt.find("IProgressMonitor") is None:
        return None
    trt = tensorrt.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # TensorRT has no types
        """The outermost phases as bars; a step that answers False ends the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, Advance] = {}
            self._depths: dict[str | None, int] = {None: -1}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._depths[name] = depth = self._depths.get(parent, SHOWN_DEPTH) + 1
            if depth <= SHOWN_DEPTH and name not in self._bars:
                self._bars[name] = progress.task(name.lower(), steps)

        def step_complete(self, name: str, step: int) -> bool:  # noqa: ARG002
            if name in self._bars:
                self._bars[name](1)
            return not interrupted.is_set()

        def phase_finish(self, name: str) -> None:
            """Nothing: its bar is full."""

    return Monitor()


def save_timing_cache(config: Any, path: Path) -> None:
    """Add what this build timed to a cache file, which other builds may be writing, too."""
    from polygraphy.util import LockFile

    timed = config.get_timing_cache()
    if timed is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with LockFile(str(path)):
        if path.is_file():
            timed.combine(config.create_timing_cache(path.read_bytes()), ignore_mismatch=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(memoryview(timed.serialize()))
        partial.replace(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Polygraphy says nothing: what it has to say comes as an exception."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield
