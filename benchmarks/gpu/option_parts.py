"""What may be asked of a build, and the implicit INT8 of TensorRT up to 10, on the embedded reciting model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from at_work import greedy, known_prompts, recalled
from engine_parts import Small, available, build_facts
from onnxruntime_parts import CORPUS, SAMPLES, measured_ranges
from record import Facts, NotAvailableError, Recorder

from glm_export import api
from glm_export.artifacts.engine import Engine
from glm_export.calibration.trt_cache import CALIBRATION_CACHE
from glm_export.deployment import build as deployment
from glm_export.deployment.request import ImplicitInt8
from glm_export.embedded import DEMO
from glm_export.engines import implicit_int8 as implicit, vendor
from glm_export.engines.inspection import refit
from glm_export.engines.network import dialect_for
from glm_export.engines.options import AMPERE_PLUS, CURRENT, ENTROPY, SAME_COMPUTE_CAPABILITY, BuildOptions
from glm_export.errors import InputError
from glm_export.sessions.tensorrt.session import EngineSession, load_onto_device

STREAMED = "weight-streaming"
OPTIONS: dict[str, BuildOptions] = {
    "none": BuildOptions(),
    "refittable": BuildOptions(refittable=True),
    "stripped": BuildOptions(stripped=True),
    "version-compatible": BuildOptions(version_compatible=True),
    STREAMED: BuildOptions(weight_streaming=True),
    "hardware-compatible ampere-plus": BuildOptions(hardware_compatible=AMPERE_PLUS),
    "hardware-compatible same-compute-capability": BuildOptions(hardware_compatible=SAME_COMPUTE_CAPABILITY),
    "compute-capability current": BuildOptions(compute_capabilities=(CURRENT,)),
    "optimization-level 0": BuildOptions(optimization_level=0),
    "optimization-level 5": BuildOptions(optimization_level=5),
    "workspace 64 MB": BuildOptions(workspace_bytes=64 << 20),
}
ROWS = 4
KL_BOUND = 0.1
"""Nats a token: four times what explicit W8A8 without smoothing costs this model (0.025, `int8-static`)."""


def options(recorder: Recorder, runtime: str) -> None:
    """Every option builds an engine that loads and writes what the plain one writes, or is not offered."""
    tensorrt = available(runtime, recorder.kit)
    recorder.facts |= {"runtime": f"{runtime} {tensorrt.version}"}
    small = Small(recorder, tensorrt, DEMO, dialect_for(tensorrt).name, "float16", None)
    plain = recorder.step("none", lambda: built_with(small, "none", None))
    for name in OPTIONS:
        if name != "none":
            recorder.step(name, partial(built_with, small, name, plain))
        if name == STREAMED:
            recorder.step(f"{name}, a quarter on the device", partial(streamed, small, plain))


def built_with(small: Small, name: str, plain: Facts | None) -> Facts:
    """Build, load and write.

    Raises:
        NotAvailableError: this version does not offer the option.
    """
    chosen = OPTIONS[name]
    try:
        chosen.require_offered(small.tensorrt)
    except InputError as error:
        raise NotAvailableError(f"not offered: {error}") from error
    engine = deployment.build(
        small.program(), small.folder("option"), runtime=small.tensorrt.name, max_batch=ROWS, options=chosen,
        timing_cache=small.recorder.kit.work / "timing.cache", force=True,
    )  # fmt: skip
    facts = build_facts(engine) | {"text": written(engine)}
    if plain is not None and plain.get("text"):
        facts["passed"] = facts["text"] == plain["text"]
    if name == "stripped" and plain is not None and plain.get("plan_bytes"):
        facts["found"] = f"{facts['plan_bytes'] / plain['plan_bytes']:.0%} of the plain plan's size"
    if name == "refittable":
        facts["text_refitted"] = refitted(engine, small.program())
        facts["passed"] = facts["text_refitted"] == facts["text"] and facts.get("passed", True)
    return facts


def streamed(small: Small, plain: Facts) -> Facts:
    """The same tokens with a budget that leaves most weights on the host.

    Raises:
        NotAvailableError: this version streams no weights, or finds none to stream.
    """
    try:
        OPTIONS[STREAMED].require_offered(small.tensorrt)
    except InputError as error:
        raise NotAvailableError(f"not offered: {error}") from error
    engine = deployment.build(
        small.program(), small.folder("option"), runtime=small.tensorrt.name, max_batch=ROWS, options=OPTIONS[STREAMED],
        timing_cache=small.recorder.kit.work / "timing.cache", force=True,
    )  # fmt: skip
    loaded = load_onto_device(engine)
    streamable = int(loaded.engine.streamable_weights_size)
    if not streamable:
        raise NotAvailableError("the engine has no weights that can be streamed")
    # Before any context: afterwards the budget is fixed.
    loaded.engine.weight_streaming_budget_v2 = streamable // 4
    budget = int(loaded.engine.weight_streaming_budget_v2)
    # Below the full budget a step waits for the host, so it cannot be captured.
    with EngineSession(engine, loaded, cuda_graph=False) as session:
        text = [session.tokenizer.decode(ids) for ids in greedy(session, known_prompts(session, DEMO, ROWS))]
    return {
        "passed": text == plain.get("text") and budget < streamable, "text": text,
        "found": f"{budget / 1e6:.1f} of {streamable / 1e6:.1f} MB on the device",
    }  # fmt: skip


def written(engine: Engine) -> list[str]:
    """Greedy answers of poems the model knows."""
    with EngineSession(engine) as session:
        return [session.tokenizer.decode(ids) for ids in greedy(session, known_prompts(session, DEMO, ROWS))]


def refitted(engine: Engine, program: Path) -> list[str]:
    """The same with the weights put in once more."""
    loaded = load_onto_device(engine)
    refit(loaded.tensorrt, loaded.engine, program / "model.onnx")
    with EngineSession(engine, loaded) as session:
        return [session.tokenizer.decode(ids) for ids in greedy(session, known_prompts(session, DEMO, ROWS))]


def implicit_int8(recorder: Recorder) -> None:
    """TensorRT chooses what is INT8: measured by itself on text, and from our calibration cache.

    Raises:
        NotAvailableError: this version has no implicit INT8.
    """
    tensorrt = available(vendor.TENSORRT, recorder.kit)
    if tensorrt.find(implicit.CALIBRATORS[ENTROPY]) is None:
        raise NotAvailableError(f"{tensorrt.name} {tensorrt.version} has no implicit INT8 (TensorRT 11 dropped it)")
    recorder.facts |= {"runtime": f"{tensorrt.name} {tensorrt.version}", "kl_bound": KL_BOUND}
    for algorithm in implicit.CALIBRATORS:
        recorder.step(f"{algorithm} on text", partial(cost_of, recorder, algorithm, cached=False))
        recorder.step(f"{algorithm} from our cache", partial(cost_of, recorder, algorithm, cached=True))


def cost_of(recorder: Recorder, algorithm: str, *, cached: bool) -> Facts:
    return cost(quantized(recorder, algorithm, cached=cached))


def float_program(recorder: Recorder, *, cached: bool) -> Path:
    """A float program of dialect ``portable``, with our calibration cache beside it or without."""
    folder = recorder.folder() / f"portable{'-cached' if cached else ''}"
    if not folder.is_dir():
        ranges = measured_ranges(DEMO, recorder.folder()) if cached else None
        api.export(DEMO, folder, dialect="portable", dtype="float16", logits="last", ranges=ranges)
    return folder


def quantized(recorder: Recorder, algorithm: str, *, cached: bool) -> Engine:
    """An engine whose INT8 TensorRT chose."""
    program = float_program(recorder, cached=cached)
    cache = program / CALIBRATION_CACHE if cached else None
    return deployment.build(
        program, recorder.folder() / "engine", runtime=vendor.TENSORRT, max_batch=64,
        implicit_int8=ImplicitInt8(algorithm=algorithm, cache=cache, corpus=CORPUS),
        timing_cache=recorder.kit.work / "timing.cache", force=True,
    )  # fmt: skip


def cost(engine: Engine) -> Facts:
    """What INT8 costs beside PyTorch in float32, on the poems."""
    report = api.quality(engine, DEMO, corpus=CORPUS, max_samples=SAMPLES).report
    with EngineSession(engine) as session:
        lines = recalled(session, DEMO)
    return build_facts(engine) | {
        "passed": report.kl <= KL_BOUND, "kl": report.kl, "top1": report.top1,
        "perplexity_ratio": report.perplexity_ratio, "written": str(lines),
    }  # fmt: skip
