"""Engines of the embedded models: built, held to PyTorch and ONNX Runtime, and put through what a session promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from at_work import checked, graph_facts, greedy, in_turn, known_prompts, long_prompt, recalled, timed_decode
from onnxruntime_parts import measured_ranges
from record import Facts, Kit, NotAvailableError, Recorder

from glm_export import api
from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.program import MODEL, WEIGHTS
from glm_export.calibration import recipes
from glm_export.deployment import build as deployment
from glm_export.embedded import DEMO
from glm_export.engines import vendor
from glm_export.engines.network import dialect_for
from glm_export.errors import EnvironmentMissingError, InputError
from glm_export.evaluation.recall import BATCH
from glm_export.exporter.options import ExportOptions, dialects_of
from glm_export.sessions.tensorrt.session import EngineSession

# dtype, recipe
FORMS: list[tuple[str, str | None]] = [
    ("float16", None), ("bfloat16", None), ("float16", "int8-weights"), ("float16", "int4-weights"),
    ("float16", "int8-smoothquant"),
]  # fmt: skip
PORTABLE: list[tuple[str, str | None]] = [
    ("float16", None), ("float32", None), ("float32", "int8-weights"), ("float32", "int8-smoothquant"),
]  # fmt: skip
"""Q/DQ of this dialect have float32 scales."""
NARROW = ("int8-weights", "int4-weights")
LARGEST_RATIO, JUDGED_FROM = 1.2, 100e6
"""Bytes of a plan over those of its program's weights, and from how many bytes of weights that says something."""
BOTH_SIDES = "int8-smoothquant"
"""The recipe whose products are to compute in 8 bits."""
FEW_TOKENS = 16
"""Read at once, where prompts are to be read in pieces."""
LONGEST_BLANK = 160
"""Read at once by the blank-filling model where the cache grows: the longest poem with a blank has 139."""
RECALL_TOLERANCE = 0.01
"""Share of lines an engine may miss that ONNX Runtime recalls: where two tokens are as likely, the last bit chooses."""


def available(runtime: str, kit: Kit) -> vendor.TensorRT:
    """A runtime, opened.

    Raises:
        NotAvailableError: it is not installed, cannot be loaded, or cannot build here.
    """
    try:
        tensorrt = vendor.load(runtime)
        if not tensorrt.rtx:
            tensorrt.require_driver("building")
    except EnvironmentMissingError as error:
        raise NotAvailableError(str(error)) from error
    if not kit.rehearse:
        import torch

        if not torch.cuda.is_available():
            raise NotAvailableError(f"PyTorch {torch.__version__} cannot reach the GPU, and holds an engine's memory")
    return tensorrt


@dataclass(frozen=True)
class Small:
    """One embedded model in one form, and where its program and engines lie; made when they are asked for."""

    recorder: Recorder
    tensorrt: vendor.TensorRT
    model: str
    dialect: str
    dtype: str
    recipe: str | None

    @property
    def name(self) -> str:
        """What its steps begin with."""
        return " ".join(filter(None, (self.model, self.dtype, self.recipe)))

    def folder(self, kind: str) -> Path:
        form = "-".join(filter(None, (kind, self.model, self.dialect, self.dtype, self.recipe)))
        return self.recorder.folder() / form

    def program(self) -> Path:
        """The exported folder.

        Raises:
            NotAvailableError: the dialect has no words for the recipe.
        """
        folder = self.folder("program")
        if folder.is_dir():
            return folder
        ranges = None
        if self.recipe is not None:
            chosen = recipes.load(self.recipe)
            if self.dialect not in dialects_of(chosen):
                raise NotAvailableError(f"{self.recipe} is not offered in dialect {self.dialect}")
            if chosen.needs != "nothing":
                ranges = measured_ranges(self.model, self.recorder.folder())
        api.export(
            self.model,
            folder,
            ExportOptions(dialect=self.dialect, dtype=self.dtype, recipe=self.recipe, ranges=ranges, logits="last"),
        )
        return folder

    def build(self, kind: str = "engine", prefill_tokens: int | None = None) -> Engine:
        """An engine of the program, for as many rows as recalling takes."""
        folder = self.folder(kind)
        if folder.is_dir():
            return load_engine(folder)
        if self.model != DEMO and self.dialect == "portable":
            prefill_tokens = prefill_tokens or LONGEST_BLANK
        return deployment.build(
            self.program(), folder, runtime=self.tensorrt.name, max_batch=BATCH, prefill_tokens=prefill_tokens,
            timing_cache=self.recorder.kit.work / "timing.cache",
        )  # fmt: skip

    def engine(self) -> Path:
        """The folder of the usual engine."""
        return self.build().folder


def embedded(recorder: Recorder, runtime: str, model: str) -> None:
    """One embedded model in every form, in the best dialect this version reads."""
    tensorrt = available(runtime, recorder.kit)
    dialect = dialect_for(tensorrt).name
    recorder.facts |= {"runtime": f"{runtime} {tensorrt.version}", "dialect": dialect}
    forms = FORMS if dialect == "tensorrt" else PORTABLE
    for dtype, recipe in forms:
        every_check(Small(recorder, tensorrt, model, dialect, dtype, recipe))


def portable(recorder: Recorder, runtime: str) -> None:
    """Both embedded models in dialect ``portable``."""
    tensorrt = available(runtime, recorder.kit)
    recorder.facts |= {"runtime": f"{runtime} {tensorrt.version}", "dialect": "portable"}
    for model in ("demo", "demo-glm"):
        for dtype, recipe in PORTABLE:
            every_check(Small(recorder, tensorrt, model, "portable", dtype, recipe))


def every_check(small: Small) -> None:
    """Build, and where that went well everything the engine is held to."""
    step: Callable[[str, Callable[[], Facts]], Facts] = lambda name, work: small.recorder.step(  # noqa: E731
        f"{small.name}: {name}", work
    )
    if not step("builds", lambda: build_facts(small.build()))["passed"]:
        return
    step("equals PyTorch", lambda: checked(small.engine(), small.model))
    step("equals ONNX Runtime", lambda: checked(small.engine(), small.program()))
    step("recalls", lambda: recalls(small))
    step("equal rows answer alike", lambda: equal_rows(small))
    if small.recipe == BOTH_SIDES:
        step("INT8 products compute in 8 bits", lambda: coverage(small.build()))
    if small.recipe in NARROW:
        step("weights stay narrow", lambda: narrow(small.build()))
    if small.recipe is None and small.dtype == "float16":
        step("prompts in pieces", lambda: pieces(small))
        step("CUDA graph and none write the same", lambda: graphs(small))
        step("CUDA graph and none, two prompts in turn", lambda: graphs_in_turn(small))


def build_facts(engine: Engine) -> Facts:
    """How it was built and what it is made of."""
    kept = {name: engine.manifest[name] for name in ("seconds", "memory", "attention_decomposed", "engine_layers")}
    return {
        "build_seconds": kept.pop("seconds"), "plan_bytes": engine.plan_path.stat().st_size, **kept,
        "products": str(engine.manifest["engine_layers"]["products"]),
    }  # fmt: skip


def coverage(engine: Engine) -> Facts:
    """Whether every product that the program quantizes on both sides multiplies integers in the engine."""
    layers = engine.manifest["engine_layers"]
    return {
        "passed": not layers["not_integer"], "products": str(layers["products"]), "not_integer": layers["not_integer"],
        "found": f"{len(layers['not_integer'])} products in float after all", "source": layers["source"],
    }  # fmt: skip


def narrow(engine: Engine) -> Facts:
    """Weights of 8 or 4 bits are those of the plan, too: not made float on the way, nor kept once for each profile.

    A small plan is mostly kernels, so its size is told and not judged.
    """
    sizes: dict[str, int] = engine.manifest["program"]["sizes"]
    weights = sum(sizes[name] for name in (MODEL, WEIGHTS) if name in sizes)
    ratio = engine.plan_path.stat().st_size / weights
    products: dict[str, dict[str, int]] = engine.manifest["engine_layers"]["products"]
    without = [name for name, found in products.items() if not any("int" in kind for kind in found)]
    too_large = weights >= JUDGED_FROM and ratio > LARGEST_RATIO
    facts: Facts = {"passed": not without and not too_large, "ratio": ratio, "weights": str(products)}
    if without:
        facts["means"] = f"profile {', '.join(without)}: no product reads narrow weights; they cost what floats do"
    elif too_large:
        facts["means"] = f"the plan is {ratio:.2f} times its weights: they are in it more than once, or wider"
    return facts


def recalls(small: Small) -> Facts:
    """As many lines as the exported folder recalls in ONNX Runtime."""
    with EngineSession(small.build()) as session:
        here = recalled(session, small.model)
    with api.load_session(small.program()) as reference:
        there = recalled(reference, small.model)
    within = abs(here.exact - there.exact) <= RECALL_TOLERANCE * there.total
    return {"passed": within, "written": f"{here}, ONNX Runtime {there}"}


def equal_rows(small: Small) -> Facts:
    """Four equal rows have four equal answers; whether they are the answer of one row alone is told."""
    with EngineSession(small.build()) as session:
        first, *_ = known_prompts(session, small.model)
        answers = greedy(session, [first] * 4)
        (alone,) = greedy(session, [first])
    return {"passed": all(answer == answers[0] for answer in answers), "as_alone": alone == answers[0]}


def pieces(small: Small) -> Facts:
    """A prompt longer than what is read at once has the same answer; a prefix family's context is refused."""
    engine = small.build("pieces", prefill_tokens=FEW_TOKENS)
    if small.model != DEMO:
        return refused(engine, small)
    with EngineSession(engine) as session, EngineSession(small.build()) as whole:
        prompt = long_prompt(session, 2 * FEW_TOKENS)
        here, there = greedy(session, [prompt]), greedy(whole, [prompt])
        text = session.tokenizer.decode(here[0])
    return {"passed": here == there, "prompt_tokens": len(prompt), "written": text}


def refused(engine: Engine, small: Small) -> Facts:
    """A context that sees itself must be read at once, and the message says with which option."""
    with EngineSession(engine) as session:
        longest = max(known_prompts(session, small.model, 64), key=len)
        if len(longest) <= FEW_TOKENS + 1:
            raise NotAvailableError("no poem is long enough")
        try:
            greedy(session, [longest])
        except InputError as error:
            return {"passed": "--prefill-tokens" in str(error), "written": str(error)}
    return {"passed": False, "error": f"{len(longest)} tokens were read by an engine built for {FEW_TOKENS}"}


def graphs(small: Small) -> Facts:
    """Decode steps launched as a CUDA graph, and one by one."""
    if small.dialect != "tensorrt":
        raise NotAvailableError("the cache grows, so nothing is captured")
    return with_and_without(small.build())


def graphs_in_turn(small: Small) -> Facts:
    """The same for two prompts one after the other."""
    if small.dialect != "tensorrt":
        raise NotAvailableError("the cache grows, so nothing is captured")
    return in_turn(lambda graph: EngineSession(small.build(), cuda_graph=graph), small.model)


def with_and_without(engine: Engine, batch: int = 1) -> Facts:
    """Seconds and tokens of both ways."""
    seconds: dict[bool, float] = {}
    ids: dict[bool, list[list[int]]] = {}
    for graph in (False, True):
        with EngineSession(engine, cuda_graph=graph) as session:
            seconds[graph], ids[graph] = timed_decode(session, batch)
    return graph_facts(seconds, ids)
