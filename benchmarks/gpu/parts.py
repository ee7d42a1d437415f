"""The parts, in the order they run: name, what each shows, about how long it takes, and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from record import Recorder

RUNTIMES = ("tensorrt", "tensorrt-rtx")
MODELS = ("demo", "demo-glm")


ONNXRUNTIME, TENSORRT86, COMPILED = "onnxruntime", "tensorrt-8.6", "transformers-compiled"
MEDIUM = "medium"
VERDICT = "verdict"
PROBE_S = 60


@dataclass(frozen=True)
class Part:
    """``minutes``: a guess, until one has run. ``always``: done again even where its file is there.

    ``runtimes``: it runs where the probe of one of them passed; none: it needs no probe. ``shape``: of its checkpoint;
    None takes the one asked for. ``limit``: seconds, where it has one of its own.
    """

    name: str
    shows: str
    minutes: int
    module: str
    function: str
    arguments: tuple[Any, ...] = ()
    always: bool = False
    runtimes: tuple[str, ...] = ()
    shape: str | None = None
    limit: float | None = None

    def run(self, recorder: Recorder) -> None:
        """Do it; its module is imported only now."""
        getattr(import_module(self.module), self.function)(recorder, *self.arguments)


PROBES: dict[str, Part] = {
    runtime: Part(
        f"probe-{runtime}", f"whether {name} works here at all; where it does not, its parts are not available",
        1, "probes", "probe", (runtime,), always=True, limit=PROBE_S,
    )
    for runtime, name in (
        (ONNXRUNTIME, "ONNX Runtime's CUDA provider"), ("tensorrt", "TensorRT"), ("tensorrt-rtx", "TensorRT-RTX"),
        (TENSORRT86, "TensorRT 8.6, in its own Python,"), (COMPILED, "transformers compiled by PyTorch"),
    )
}  # fmt: skip


def probes_of(part: Part, runtime: str | None) -> list[Part]:
    """The probes of which one must pass before a part runs; ``runtime``: of the engines, where one was asked for."""
    asked = [name for name in part.runtimes if len(part.runtimes) == 1 or runtime in (None, name)]
    return [PROBES[name] for name in asked]


def _engines(runtime: str) -> list[Part]:
    name = "TensorRT" if runtime == "tensorrt" else "TensorRT-RTX"
    small = [
        Part(
            f"{runtime}-{model}",
            f"{name}, embedded model {model}, in float16, bfloat16, int8-weights, int4-weights and int8-smoothquant: "
            "builds, equals PyTorch and ONNX Runtime (past and present at one address), recalls poems, equal rows "
            "answer alike, prompts in pieces, CUDA graph and none write the same for one prompt and for two in turn, "
            "INT8 products compute in 8 bits, narrow weights stay narrow in the plan",
            6, "engine_parts", "embedded", (runtime, model), runtimes=(runtime,),
        )
        for model in MODELS
    ]  # fmt: skip
    return [
        *small,
        Part(
            f"{runtime}-attention",
            f"{name}, one attention layer alone over 256 to 8192 columns, float16 and bfloat16, against PyTorch in "
            "float32; where it is off, attention built from several kernels and in float32",
            4, "checks.attention", "attention", (runtime,), runtimes=(runtime,),
        ),
        Part(
            f"{runtime}-portable",
            f"{name}, dialect portable (a growing cache, primitives alone), both embedded models, the same checks",
            4, "engine_parts", "portable", (runtime,), runtimes=(runtime,),
        ),
        Part(
            f"{runtime}-options",
            f"{name}: refittable, stripped, version-compatible, hardware-compatible, streamed weights (with a small "
            "budget, too) and optimization levels build, load, and write the same tokens; what the version does not "
            "offer is named",
            5, "option_parts", "options", (runtime,), runtimes=(runtime,),
        ),
    ]  # fmt: skip


def _ort(size: str, short: str, form: str, minutes: int) -> Part:
    return Part(
        f"{size}-ort-{short}",
        f"ONNX Runtime CUDA, {SIZES[size]}, dialect ort, {form}: speed at batch 1 and 8, CUDA graph against none, "
        "parity with PyTorch",
        minutes, "full_size_parts", "onnxruntime", (form,), runtimes=(ONNXRUNTIME,),
        shape=MEDIUM if size == MEDIUM else None,
    )  # fmt: skip


def _peers(size: str, minutes: int) -> list[Part]:
    prefix, shape = ("medium-", MEDIUM) if size == MEDIUM else ("", None)
    return [
        Part(
            f"{prefix}peer-eager", f"transformers on PyTorch, {SIZES[size]}, float16, eager: the speed to compare with",
            minutes, "peer_parts", "eager", shape=shape,
        ),
        Part(
            f"{prefix}peer-compiled",
            f"transformers compiled, {SIZES[size]} (static cache, CUDA graphs): the speed to beat",
            minutes + 2, "peer_parts", "compiled", runtimes=(COMPILED,), shape=shape,
        ),
    ]  # fmt: skip


def _full_engines() -> list[Part]:
    return [
        part
        for form in ("float16", "int8-weights", "int4-weights", "int8-smoothquant")
        for part in (
            Part(
                f"full-build-{form}",
                f"the engine of {form} at full size: exported and built, seconds, memory, which products are INT8, "
                "bytes of the plan over those of the weights",
                6, "full_size_parts", "build", (form,), runtimes=RUNTIMES,
            ),
            Part(
                f"full-engine-{form}",
                "that engine: speed at batch 1 and 8, CUDA graph against none, parity with PyTorch on the GPU",
                6, "full_size_parts", "engine", (form,), runtimes=RUNTIMES,
            ),
        )
    ]  # fmt: skip


SIZES = {MEDIUM: "a model of 1.4 B", "full": "full size"}
# By what an hour on a GPU is worth: whatever is cut off at its end was worth less than what ran before.
PARTS: list[Part] = [
    Part("machine", "GPU, driver, versions, what `doctor` finds, how fast the GPU reads memory", 1,
         "machine_part", "machine"),
    *PROBES.values(),
    Part("session-on-gpu", "our session over an engine that PyTorch computes: copies, capture, replay, tokens chosen "
         "on the device as the host chooses them, captures and steps that fail, microseconds of a step", 1,
         "session_part", "session_on_gpu"),
    Part("onnxruntime-demo", "ONNX Runtime CUDA, embedded ChatGLM2: every dialect and dtype equals PyTorch, recalls "
         "poems", 2, "onnxruntime_parts", "embedded", ("demo", False), runtimes=(ONNXRUNTIME,)),
    Part("onnxruntime-graphs", "decode steps of `ort` as CUDA graphs: the same tokens, for one prompt and for two in "
         "turn, fewer seconds", 1, "onnxruntime_parts", "graphs", runtimes=(ONNXRUNTIME,)),
    Part("onnxruntime-placement", "which nodes of each program ONNX Runtime runs on the GPU, which on the CPU, and how "
         "often it copies between them", 2, "checks.placement", "placement", runtimes=(ONNXRUNTIME,)),
    _ort(MEDIUM, "float16", "float16", 2),
    _ort(MEDIUM, "int4", "int4-weights", 2),
    *_peers(MEDIUM, 1),
    Part("onnxruntime-demo-recipes", "the same as `onnxruntime-demo`, quantized: weights of 8 and 4 bits, W8A8, "
         "integer cache", 2, "onnxruntime_parts", "embedded", ("demo", True), runtimes=(ONNXRUNTIME,)),
    _ort("full", "float16", "float16", 6),
    *_peers("full", 3),
    *_engines("tensorrt"),
    *_engines("tensorrt-rtx"),
    Part("onnxruntime-attention", "one attention layer alone over 256 to 8192 columns in ONNX Runtime, float16 and "
         "bfloat16, against PyTorch in float32", 2, "checks.attention", "attention", (ONNXRUNTIME,),
         runtimes=(ONNXRUNTIME,)),
    Part("onnxruntime-calibrate", "calibrating on the GPU: thresholds within 1e-3 of the CPU's", 1,
         "onnxruntime_parts", "calibrate"),
    Part("onnxruntime-demo-glm", "ONNX Runtime CUDA, embedded GLM (prefix mask): every dialect, dtype and recipe", 3,
         "onnxruntime_parts", "embedded", ("demo-glm", None), runtimes=(ONNXRUNTIME,)),
    Part("implicit-int8", "implicit INT8 (TensorRT up to 10): entropy and min-max on text, and from our calibration "
         "cache; what each costs beside PyTorch", 4, "option_parts", "implicit_int8", runtimes=("tensorrt",)),
    Part("tensorrt-8.6", "TensorRT 8.6 in a Python of its own (`trt86-python` on PATH): fp32, fp16, INT8 from our "
         "cache and calibrated on text, against PyTorch", 4, "tensorrt86_part", "tensorrt86", runtimes=(TENSORRT86,)),
    _ort("full", "int4", "int4-weights", 6),
    _ort("full", "int8", "int8-weights", 6),
    Part("full-calibrate", "ranges of the full size, measured on the GPU (random ids: the weights are random, too)",
         4, "full_size_parts", "calibrate"),
    *_full_engines(),
    Part(VERDICT, "goals met and missed, from the results that are there", 1, "verdict", "verdict", always=True),
]  # fmt: skip
