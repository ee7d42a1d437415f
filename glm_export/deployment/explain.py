"""A build and its comparison said as other people's command lines, so that both can be repeated without this package.

What comes out is a script for bash. Polygraphy's part runs with TensorRT-RTX on machines without a GPU, up to where an
engine is run. ``trtexec`` is spelt as TensorRT 10's samples read it; 11 reads the same.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from glm_export.artifacts.engine import PLAN
from glm_export.artifacts.program import OnnxProgram
from glm_export.engines.builder import BuildPlan
from glm_export.engines.options import CURRENT, HARDWARE, SAME_COMPUTE_CAPABILITY
from glm_export.engines.vendor import TensorRT
from glm_export.spec.optimization_profile import DECODE, OptimizationProfile, Shape
from glm_export.spec.signature import (
    ATTENTION_MASK,
    CACHE_LENGTH_AXIS,
    INPUT_IDS,
    LAST_TOKEN_IDS,
    POSITION_IDS,
    WRITE_INDICES,
    Cache,
    past_names,
)

CORNERS = ("min", "opt", "max")
USUAL = 1
REPEATED = "repeat.plan"
TRTEXEC_HARDWARE = {SAME_COMPUTE_CAPABILITY: "sameComputeCapability"}
TRTEXEC_AMPERE = "ampere+"
CONTINUED = " \\\n    "
SHIM = """\
export POLYGRAPHY_USE_TENSORRT_RTX=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
printf 'from tensorrt_rtx_bindings import *\\nfrom tensorrt_rtx_bindings import __version__\\n' > tensorrt_rtx.py"""
"""Polygraphy knows TensorRT-RTX by the name of its metapackage."""


def explain(plan: BuildPlan, tensorrt: TensorRT, out: Path) -> str:
    """The script.

    Args:
        plan: what would be built.
        tensorrt: by which runtime.
        out: the engine's folder, which may be there or not.
    """
    return "\n".join([*_builds(plan, tensorrt), "", *_comparisons(plan, out), ""])


def _builds(plan: BuildPlan, tensorrt: TensorRT) -> Iterator[str]:
    yield "set -e; mkdir -p repeat; cd repeat"
    yield f"\n# The same build by Polygraphy, with {plan.runtime} {plan.version}."
    if tensorrt.rtx:
        yield SHIM
        if plan.program.dtype == "float32":
            yield "# Polygraphy leaves TF32 on with TensorRT-RTX, glm-export switches it off."
    yield line(polygraphy_convert(plan, tensorrt))
    commented = "# " if tensorrt.rtx else ""
    where = "; TensorRT's, on the GPU it is for" if tensorrt.rtx else ""
    yield f"\n# The same profiles by trtexec, which comes with TensorRT's archives and images, not with pip{where}."
    yield commented + line(trtexec(plan, tensorrt)).replace("\n", f"\n{commented}")
    if plan.program.signature.cache is Cache.STATIC:
        yield "# Not to be timed by it: keys and values need one address as past and present: it may give two."
    else:
        yield commented + line(trtexec_decode(plan)).replace("\n", f"\n{commented}")


def _comparisons(plan: BuildPlan, out: Path) -> Iterator[str]:
    program = plan.program
    if program.dtype == "bfloat16":
        yield "# No comparison: ONNX Runtime's CPU provider computes no bfloat16, and Polygraphy compares by numpy."
        return
    yield "# Inputs that fit together: by themselves Polygraphy and trtexec make each one up."
    yield f"cat > inputs.py <<'END'\n{inputs_script(plan)}END"
    model, ours = (shlex.quote(str(path.resolve())) for path in (program.model_path, out / PLAN))
    for index, profile in enumerate(plan.profiles):
        yield f"\n# Profile {profile.name}: ONNX Runtime, then each engine beside it (on a GPU)."
        loader = f"--data-loader-script inputs.py:{profile.name}"
        yield f"polygraphy run {model} --onnxrt {loader} --save-outputs {profile.name}.json"
        for engine in (REPEATED, ours):
            yield (
                f"polygraphy run {engine} --model-type engine --trt --optimization-profile {index} {loader} "
                f"--load-outputs {profile.name}.json --compare cosine_similarity"
            )


def polygraphy_convert(plan: BuildPlan, tensorrt: TensorRT) -> list[str]:
    """Words of ``polygraphy convert``, each group an option with its values."""
    options, strong = plan.options, is_strong(tensorrt)
    words = [f"polygraphy convert {shlex.quote(str(plan.program.model_path.resolve()))} --convert-to trt -o {REPEATED}"]
    words += ["--strongly-typed"] if strong else [f"--{name}" for name in weak_precisions(plan.program)]
    if plan.program.dtype == "float32":
        words.append("--decomposable-attentions")
    flags = {
        "--version-compatible": options.version_compatible,
        "--refittable": options.refittable,
        "--strip-plan": options.stripped,
        "--weight-streaming": options.weight_streaming,
    }
    words += [name for name, given in flags.items() if given]
    if options.workspace_bytes is not None:
        words.append(f"--pool-limit workspace:{options.workspace_bytes}")
    if options.optimization_level is not None:
        words.append(f"--builder-optimization-level {options.optimization_level}")
    if options.hardware_compatible is not None:
        words.append(f"--hardware-compatibility-level {HARDWARE[options.hardware_compatible]}")
    if options.compute_capabilities:
        chosen = " ".join(options.compute_capabilities)
        words.append("--use-gpu" if options.compute_capabilities == (CURRENT,) else f"--compute-capabilities {chosen}")
    for profile in plan.profiles:
        for index, corner in enumerate(CORNERS):
            shapes = (f"{name}:{str(list(shape)).replace(' ', '')}" for name, shape in corner_of(profile, index))
            words.append(f"--trt-{corner}-shapes {' '.join(map(shlex.quote, shapes))}")
    return words


def trtexec(plan: BuildPlan, tensorrt: TensorRT) -> list[str]:
    """Words of ``trtexec`` that builds and saves an engine of both profiles."""
    options = plan.options
    model = shlex.quote(f"--onnx={plan.program.model_path.resolve()}")
    words = [f"trtexec {model} --saveEngine=trtexec.plan --skipInference --noTF32 --profilingVerbosity=detailed"]
    weak = [] if is_strong(tensorrt) or tensorrt.rtx else weak_precisions(plan.program)
    words += [f"--{name}" for name in weak] or ["--stronglyTyped"]
    if plan.program.dtype == "float32":
        words.append("'--decomposableAttentions=*'")
    flags = {
        "--versionCompatible": options.version_compatible,
        "--refit": options.refittable,
        "--stripWeights": options.stripped,
        "--allowWeightStreaming": options.weight_streaming,
    }
    words += [name for name, given in flags.items() if given]
    if options.workspace_bytes is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_bytes}B")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.hardware_compatible is not None:
        mode = TRTEXEC_HARDWARE.get(options.hardware_compatible, TRTEXEC_AMPERE)
        words.append(f"--hardwareCompatibilityLevel={mode}")
    for number, profile in enumerate(plan.profiles):
        words.append(f"--profile={number}")
        # They must follow their profile's number directly.
        words += [f"--{corner}Shapes={_joined(profile, index)}" for index, corner in enumerate(CORNERS)]
    return words


def trtexec_decode(plan: BuildPlan) -> list[str]:
    """Words of ``trtexec`` that times a decode step of what it built."""
    decode = next(index for index, profile in enumerate(plan.profiles) if profile.name == DECODE)
    return [
        f"trtexec --loadEngine=trtexec.plan --useProfile={decode} --useCudaGraph --noDataTransfers",
        f"--shapes={_joined(plan.profiles[decode], USUAL)}",
    ]


def line(words: Sequence[str]) -> str:
    """One command over several lines."""
    return CONTINUED.join(words)


def corner_of(profile: OptimizationProfile, index: int) -> list[tuple[str, Shape]]:
    """A profile's shapes at one of its corners."""
    return [(name, corners[index]) for name, corners in profile.shapes.items()]


def _joined(profile: OptimizationProfile, index: int) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in corner_of(profile, index))


def is_strong(tensorrt: TensorRT) -> bool:
    """Whether a version takes every dtype from the program."""
    return tensorrt.find("NetworkDefinitionCreationFlag.STRONGLY_TYPED") is not None


def weak_precisions(program: OnnxProgram) -> list[str]:
    """What TensorRT 8.6 and 9 are allowed besides float32; as :mod:`glm_export.engines.plan` allows it."""
    allowed = {
        "fp16": program.dtype == "float16",
        "bf16": program.dtype == "bfloat16",
        "int8": program.recipe is not None,
    }
    return [name for name, given in allowed.items() if given]


def inputs_script(plan: BuildPlan) -> str:
    """Python without this package: a function for each profile, which yields its usual call with random numbers."""
    functions = "\n\n".join(_function(plan.program, profile) for profile in plan.profiles)
    return f"import numpy as np\n\n\n{functions}"


def _function(program: OnnxProgram, profile: OptimizationProfile) -> str:
    shapes = dict(corner_of(profile, USUAL))
    rows, new = shapes[INPUT_IDS]
    past = _past(program, shapes)
    inputs = _inputs(program, shapes, rows, new, past)
    cache = program.signature.input(past_names(0)[0])
    shape, made = shapes[cache.name], f"random.standard_normal({shapes[cache.name]})"
    made = f"random.integers(-127, 128, {shape})" if program.signature.cache_is_integer else made
    lines = [
        f"def {profile.name}():",
        "    random = np.random.default_rng(0)",
        "    feeds = {",
        *(f'        "{name}": {code},' for name, code in inputs.items()),
        "    }",
        f"    for layer in range({program.config.num_layers}):",
        '        for half in ("key", "value"):',
        f"            cache = {made}.astype(np.{cache.dtype})",
        '            feeds[f"past_key_values.{layer}.{half}"] = cache',
        "    yield feeds",
        "",
    ]
    return "\n".join(lines)


def _past(program: OnnxProgram, shapes: Mapping[str, Shape]) -> int:
    """Tokens before the new ones; in a static cache half of what it holds where one token is decoded."""
    columns = shapes[past_names(0)[0]][CACHE_LENGTH_AXIS]
    if program.signature.cache is not Cache.STATIC:
        return columns
    return columns // 2 if shapes[INPUT_IDS][1] == 1 else 0


def _inputs(program: OnnxProgram, shapes: Mapping[str, Shape], rows: int, new: int, past: int) -> dict[str, str]:
    """All but keys and values, as Python."""
    positions = f"np.arange({past}, {past + new})"
    made = {
        INPUT_IDS: f"random.integers(0, {program.config.vocab_size}, ({rows}, {new}))",
        POSITION_IDS: f"np.broadcast_to({positions}, {shapes[POSITION_IDS]}).copy()",
        WRITE_INDICES: f"np.full({rows}, {past})",
        LAST_TOKEN_IDS: f"np.full({rows}, {new - 1})",
    }
    if program.signature.prefix_mask:
        *_, columns = mask = shapes[ATTENTION_MASK]
        seen = f"np.arange({columns}) <= {positions}[:, None]"
        made[ATTENTION_MASK] = f"np.broadcast_to({seen}, {mask}).copy()"
    elif ATTENTION_MASK in shapes:
        made[ATTENTION_MASK] = f"np.ones({shapes[ATTENTION_MASK]}, np.int64)"
    return {name: code for name, code in made.items() if name in shapes}
