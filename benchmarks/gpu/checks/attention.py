"""One attention layer alone against PyTorch in float32: fused kernels were seen to be inaccurate over a long cache.

Shapes: S new tokens, M columns of the cache, N query heads, K heads of keys and values, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from checks.raw_engine import RawEngine, build_plan
from numpy.typing import NDArray
from record import Facts, NotAvailableError, Recorder

from glm_export.errors import GlmExportError
from glm_export.proof.compare import TOLERANCES

N, K, D = 16, 2, 128
"""Heads as a model of 1.4 B has them; the known error was seen with these."""
COLUMNS = (256, 1024, 1665, 2048, 4096, 8192)
FEW_COLUMNS = (256, 1024)
"""Where there is no GPU."""
QUERIES = (1, 64)
"""A decode step, and a piece of a prompt."""
DTYPES = ("float16", "bfloat16")
SHARPNESS = (1.0, 4.0)
"""Factors of the queries: attention spread over all columns, and on few of them."""
FUSED, SEVERAL, WIDE = "as exported", "from several kernels", "in float32"
Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """One layer: its dtype, how it is computed, new tokens, and columns."""

    dtype: str
    form: str
    queries: int
    columns: int

    @property
    def name(self) -> str:
        """Of its step."""
        return f"{self.dtype} {self.form}, {self.queries} new tokens, {self.columns} columns"


@dataclass(frozen=True)
class Case:
    """Which columns hold tokens: ``length`` of them are filled, the first ``padding`` of those by padding."""

    length: int
    padding: int
    sharpness: float

    @property
    def name(self) -> str:
        """For the report."""
        return f"length {self.length}, {self.padding} padded on the left, queries × {self.sharpness:g}"


def attention(recorder: Recorder, runtime: str) -> None:
    """Every dtype, number of new tokens, and number of columns; where one is off, the other ways to compute it."""
    for dtype in DTYPES:
        for queries in QUERIES:
            for columns in FEW_COLUMNS if recorder.kit.rehearse else COLUMNS:
                every_form(recorder, runtime, Layer(dtype, FUSED, queries, columns))


def every_form(recorder: Recorder, runtime: str, layer: Layer) -> None:
    """As exported; and where that is off, what could be done instead."""
    found = recorder.step(layer.name, partial(measured, recorder, runtime, layer))
    if found["passed"] is not False or runtime == "onnxruntime":
        return
    for form in (SEVERAL, WIDE):
        other = Layer(layer.dtype, form, layer.queries, layer.columns)
        recorder.step(other.name, partial(measured, recorder, runtime, other))


def measured(recorder: Recorder, runtime: str, layer: Layer) -> Facts:
    """The largest error of one layer, beside what its dtype is granted."""
    model = write_layer(recorder.folder() / "layer.onnx", layer, outer="float32" if runtime == "onnxruntime" else None)
    run = opened(recorder, runtime, model, layer)
    return judged(layer, run) | {"runtime": runtime}


def judged(layer: Layer, run: Run) -> Facts:
    """Hold a way to compute a layer to PyTorch in float32."""
    needed, worst = -1.0, ""
    for case in cases(layer):
        feeds = feeds_of(layer, case)
        expected, found = reference(feeds), run(feeds)
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        # What is no number is worse than any.
        if not error <= needed:
            needed, worst = error, case.name
    tolerance = TOLERANCES[layer.dtype]
    passed = bool(needed <= tolerance)
    facts = {
        "dtype": layer.dtype, "form": layer.form, "queries": layer.queries, "columns": layer.columns,
        "needed": needed, "tolerance": tolerance, "worst": worst, "passed": passed,
    }  # fmt: skip
    return facts | advice(layer, passed=passed)


def advice(layer: Layer, *, passed: bool) -> Facts:
    """What follows for who exports a model."""
    where = f"{layer.dtype}, {layer.columns} columns, {layer.queries} new tokens"
    if layer.form == FUSED and not passed:
        return {"means": f"fused attention is inaccurate here ({where})"}
    if layer.form != FUSED and passed:
        return {"do": f"compute attention {layer.form} ({where}): that is within what the dtype is granted"}
    return {}


def cases(layer: Layer) -> Iterator[Case]:
    """Lengths from the shortest to the full cache, padded on the left and not."""
    shortest, full = layer.queries, layer.columns
    for length in sorted({shortest, shortest + 1, full // 4, full // 2, full - 1, full}):
        for padding in sorted({0, (length - shortest) // 3}):
            for sharpness in SHARPNESS:
                yield Case(length, padding, sharpness)


def feeds_of(layer: Layer, case: Case) -> Arrays:
    """Values every dtype at hand can hold exactly; columns without a token hold numbers, too, which must not count."""
    import torch

    random = torch.Generator().manual_seed(case.length)
    dtype = getattr(torch, layer.dtype)
    shapes = {"q": (1, N, layer.queries, D), "k": (1, K, layer.columns, D), "v": (1, K, layer.columns, D)}
    values = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    values["q"] *= case.sharpness
    columns = np.arange(layer.columns)
    own = case.length - layer.queries + np.arange(layer.queries)
    seen = (columns[None] <= own[:, None]) & (columns[None] >= case.padding)
    rounded = {name: value.to(dtype).float().numpy() for name, value in values.items()}
    return {**rounded, "mask": seen[None, None]}


def reference(feeds: Arrays) -> NDArray[Any]:
    """``softmax(q k / sqrt(D)) v`` in float32 ``[1, N, S, D]``, by PyTorch on the host."""
    import torch

    q, k, v, mask = (torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in ("q", "k", "v", "mask"))
    k, v = (one.repeat_interleave(N // K, dim=1) for one in (k, v))
    scores = (q @ k.transpose(-1, -2) / D**0.5).masked_fill(~mask, float("-inf"))
    found: NDArray[Any] = (scores.softmax(-1) @ v).numpy()
    return found


def write_layer(path: Path, layer: Layer, outer: str | None) -> Path:
    """The layer as the dialects write it: heads apart, a bool mask, an ``Attention`` of opset 23 or 24.

    Args:
        path: the file.
        layer: what to write.
        outer: dtype of what goes in and comes out; None: the layer's.
    """
    import onnx
    from onnx import TensorProto, helper

    types = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}
    inner, around = types["float32" if layer.form == WIDE else layer.dtype], types[outer or layer.dtype]
    shapes = {"q": [1, N, layer.queries, D], "k": [1, K, layer.columns, D], "v": [1, K, layer.columns, D]}
    nodes = [helper.make_node("Cast", [name], [f"{name}_"], to=inner) for name in shapes] if inner != around else []
    names = [f"{name}_" if nodes else name for name in shapes]
    attended = "y_" if nodes else "y"
    last = [helper.make_node("Cast", [attended], ["y"], to=around)] if nodes else []
    inputs = [helper.make_tensor_value_info(name, around, shape) for name, shape in shapes.items()]
    mask = helper.make_tensor_value_info("mask", TensorProto.BOOL, [1, 1, layer.queries, layer.columns])
    graph = helper.make_graph(
        [*nodes, helper.make_node("Attention", [*names, "mask"], [attended], name="attention"), *last], "layer",
        [*inputs, mask], [helper.make_tensor_value_info("y", around, shapes["q"])],
    )  # fmt: skip
    opset = helper.make_opsetid("", 23 if outer else 24)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=11), path)
    return path


def opened(recorder: Recorder, runtime: str, model: Path, layer: Layer) -> Run:
    """The layer in a runtime.

    Raises:
        NotAvailableError: the runtime cannot run it in this form.
    """
    try:
        if runtime == "onnxruntime":
            return in_onnxruntime(model)
        from engine_parts import available

        tensorrt = available(runtime, recorder.kit)
        engine = build_plan(tensorrt, model, decompose=layer.form != FUSED)
        if recorder.kit.rehearse:
            raise NotAvailableError(f"{runtime} builds it; nothing is loaded without a GPU")
        loaded = RawEngine(tensorrt, engine)
    except GlmExportError as error:
        raise NotAvailableError(str(error)) from error
    return lambda feeds: loaded.run(feeds)["y"]


def in_onnxruntime(model: Path) -> Run:
    """On the best provider there is.

    Raises:
        NotAvailableError: ONNX Runtime has no kernel for it there.
    """
    import onnxruntime

    from glm_export.sessions.onnxruntime.runtime import CUDA, EXACT, providers

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    chosen = [(name, EXACT) if name == CUDA else name for name in providers()]
    if CUDA in providers():
        onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=chosen)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise NotAvailableError(f"ONNX Runtime {onnxruntime.__version__}: {' '.join(str(error).split())}") from error
    return lambda feeds: session.run(["y"], feeds)[0]
