"""The parts, in the order they run: name, what each shows, about how long it takes, and the function that does it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from record import Recorder

RUNTIMES = ("tensorrt", "tensorrt-rtx")
MODELS = ("demo", "demo-glm")


@dataclass(frozen=True)
class Part:
    """``minutes``: a guess, until one has run. ``always``: done again even where its file is there."""

    name: str
    shows: str
    minutes: int
    module: str
    function: str
    arguments: tuple[Any, ...] = ()
    always: bool = False

    def run(self, recorder: Recorder) -> None:
        """Do it; its module is imported only now."""
        getattr(import_module(self.module), self.function)(recorder, *self.arguments)


def _engines(runtime: str) -> list[Part]:
    name = "TensorRT" if runtime == "tensorrt" else "TensorRT-RTX"
    small = [
        Part(
            f"{runtime}-{model}",
            f"{name}, embedded model {model}, in float16, bfloat16, int8-weights, int4-weights and int8-smoothquant: "
            "builds, equals PyTorch and ONNX Runtime (past and present at one address), recalls poems, equal rows "
            "answer alike, prompts in pieces, CUDA graph and none write the same, INT8 products compute in 8 bits",
            6, "engine_parts", "embedded", (runtime, model),
        )
        for model in MODELS
    ]  # fmt: skip
    return [
        *small,
        Part(
            f"{runtime}-portable",
            f"{name}, dialect portable (a growing cache, primitives alone), both embedded models, the same checks",
            4, "engine_parts", "portable", (runtime,),
        ),
        Part(
            f"{runtime}-options",
            f"{name}: refittable, stripped, version-compatible, hardware-compatible, streamed weights and optimization "
            "levels build, load, and write the same tokens; what the version does not offer is named",
            5, "option_parts", "options", (runtime,),
        ),
    ]  # fmt: skip


def _full_size() -> list[Part]:
    ort = [
        Part(
            f"full-ort-{short}",
            f"ONNX Runtime CUDA, full size, dialect ort, {form}: speed at batch 1 and 8, CUDA graph against none, "
            "parity with PyTorch",
            6, "full_size_parts", "onnxruntime", (form,),
        )
        for short, form in (("float16", "float16"), ("int8", "int8-weights"), ("int4", "int4-weights"))
    ]  # fmt: skip
    engines = [
        part
        for form in ("float16", "int8-weights", "int4-weights", "int8-smoothquant")
        for part in (
            Part(
                f"full-build-{form}",
                f"the engine of {form} at full size: exported and built, seconds, memory, which products are INT8",
                6, "full_size_parts", "build", (form,),
            ),
            Part(
                f"full-engine-{form}",
                "that engine: speed at batch 1 and 8, CUDA graph against none, parity with PyTorch on the GPU",
                6, "full_size_parts", "engine", (form,),
            ),
        )
    ]  # fmt: skip
    calibrate = Part(
        "full-calibrate", "ranges of the full size, measured on the GPU (random ids: the weights are random, too)",
        4, "full_size_parts", "calibrate",
    )  # fmt: skip
    return [*ort, calibrate, *engines]


PARTS: list[Part] = [
    Part("machine", "GPU, driver, versions, what `doctor` finds, how fast the GPU reads memory", 1,
         "machine_part", "machine"),
    Part("onnxruntime-calibrate", "calibrating on the GPU: thresholds within 1e-3 of the CPU's", 1,
         "onnxruntime_parts", "calibrate"),
    Part("onnxruntime-demo", "ONNX Runtime CUDA, embedded ChatGLM2: every dialect and dtype equals PyTorch, recalls "
         "poems", 2, "onnxruntime_parts", "embedded", ("demo", False)),
    Part("onnxruntime-demo-recipes", "the same, quantized: weights of 8 and 4 bits, W8A8, integer cache", 2,
         "onnxruntime_parts", "embedded", ("demo", True)),
    Part("onnxruntime-demo-glm", "ONNX Runtime CUDA, embedded GLM (prefix mask): every dialect, dtype and recipe", 3,
         "onnxruntime_parts", "embedded", ("demo-glm", None)),
    Part("onnxruntime-graphs", "decode steps of `ort` as CUDA graphs: the same tokens, fewer seconds", 1,
         "onnxruntime_parts", "graphs"),
    *_engines("tensorrt"),
    *_engines("tensorrt-rtx"),
    Part("implicit-int8", "implicit INT8 (TensorRT up to 10): entropy and min-max on text, and from our calibration "
         "cache; what each costs beside PyTorch", 4, "option_parts", "implicit_int8"),
    Part("tensorrt-8.6", "TensorRT 8.6 in a Python of its own (`trt86-python` on PATH): fp32, fp16, INT8 from our "
         "cache and calibrated on text, against PyTorch", 4, "tensorrt86_part", "tensorrt86"),
    Part("full-make", "checkpoints of ChatGLM2-6B's shape with random weights, 12.5 GB in each of two layouts", 3,
         "full_size_parts", "make"),
    Part("peer-eager", "transformers on PyTorch, float16, eager: the speed to compare with", 2, "peer_parts", "eager"),
    Part("peer-compiled", "transformers compiled (static cache, CUDA graphs): the speed to beat", 5, "peer_parts",
         "compiled"),
    *_full_size(),
    Part("verdict", "goals met and missed, from the results that are there", 1, "verdict", "verdict", always=True),
]  # fmt: skip
