"""Whether a runtime works on this machine at all: found out once, within a minute, before any of its parts runs.

A probe that does not pass turns the parts of its runtime into *not available*, with the reason it found.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

import numpy as np
from record import Facts, NotAvailableError, Recorder, one_line

TRT86 = "trt86-python"
IN_ITS_PYTHON = (
    "import tensorrt, numpy, polygraphy\n"
    "logger = tensorrt.Logger(tensorrt.Logger.ERROR)\n"
    "assert tensorrt.Runtime(logger) is not None, 'no runtime: is there a GPU?'\n"
    "assert tensorrt.Builder(logger) is not None, 'no builder: is there a GPU?'\n"
    "print(tensorrt.__version__)\n"
)
ADVICE = "Set TORCHDYNAMO_VERBOSE"
"""Where a message of PyTorch's compiler goes on about debugging itself."""
ROWS, COLUMNS = 4, 32


def probe(recorder: Recorder, runtime: str) -> None:
    """One small piece of work, done by the runtime and right."""
    works = {"onnxruntime": onnxruntime, "tensorrt-8.6": tensorrt86, "transformers-compiled": compiled}
    recorder.step(runtime, partial(works.get(runtime, partial(tensorrt, runtime)), recorder))


def onnxruntime(recorder: Recorder) -> Facts:
    """The embedded model writes a token in ONNX Runtime's CUDA provider.

    Raises:
        NotAvailableError: there is no such provider, or it cannot be loaded.
    """
    import onnxruntime as runtime
    from at_work import greedy, known_prompts
    from onnxruntime_parts import require_cuda, require_listed

    from glm_export import api
    from glm_export.sessions.onnxruntime.session import OrtSession

    require_listed(recorder.kit)
    program = api.export("demo", recorder.folder() / "program", dialect="ort", dtype="float16", force=True)
    with OrtSession(program) as session:
        require_cuda(session.runtime, recorder.kit)
        written = greedy(session, known_prompts(session, "demo", 1), 1)
    return {"found": f"ONNX Runtime {runtime.__version__}", "passed": len(written[0]) == 1}


def tensorrt(runtime: str, recorder: Recorder) -> Facts:
    """A product of two matrices is built, loaded, and right.

    Raises:
        NotAvailableError: the runtime is not installed, or does not build or load here.
    """
    from checks.raw_engine import build_plan, run_plan
    from engine_parts import available

    from glm_export.errors import GlmExportError

    opened = available(runtime, recorder.kit)
    model, a, b = product(recorder)
    try:
        plan = build_plan(opened, model)
        found = None if recorder.kit.rehearse else run_plan(opened, plan, {"a": a})["y"]
    except GlmExportError as error:
        raise NotAvailableError(str(error)) from error
    needed = None if found is None else float(np.abs(found - a @ b).max())
    what = f"{runtime} {opened.version}{'' if found is not None else ' builds; nothing is loaded without a GPU'}"
    return {"found": what, "needed": needed, "passed": needed is None or needed < 0.1}


def product(recorder: Recorder) -> tuple[str, np.ndarray, np.ndarray]:
    """An ONNX file of ``y = a @ b`` in float32, ``a``, and the ``b`` that is in it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    a = random.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    b = random.standard_normal((COLUMNS, COLUMNS), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["y"])], "probe",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, a.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, a.shape)], [numpy_helper.from_array(b, "b")],
    )  # fmt: skip
    path = recorder.folder() / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path), a, b


def tensorrt86(recorder: Recorder) -> Facts:
    """Its Python opens a runtime and a builder.

    Raises:
        NotAvailableError: it is not on PATH, or its library finds no GPU.
    """
    python = shutil.which(TRT86)
    if python is None:
        raise NotAvailableError(f"{TRT86} is not on PATH")
    done = subprocess.run([python, "-c", IN_ITS_PYTHON], capture_output=True, text=True, check=False)
    said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
    if done.returncode:
        raise NotAvailableError(f"{TRT86} ended with {done.returncode}, its last words: {said[-1]}")
    return {"found": f"TensorRT {done.stdout.strip()}", "rehearsal": recorder.kit.rehearse}


def compiled(recorder: Recorder) -> Facts:
    """transformers is there, and PyTorch compiles a small function and runs it as a CUDA graph.

    Raises:
        NotAvailableError: there is no transformers, no C compiler, or PyTorch cannot compile.
    """
    import torch
    from peer_parts import require_compiler, required

    transformers = required(recorder.kit)
    require_compiler()
    a = torch.randn(ROWS, COLUMNS, device=recorder.kit.device)
    function = torch.compile(lambda x: torch.relu(x @ x.T).sum(-1), mode="reduce-overhead")
    try:
        for _ in range(3):
            found = function(a).clone()
    except Exception as error:  # the compiler's errors share no public base
        reason = str(error).partition(ADVICE)[0]
        raise NotAvailableError(f"PyTorch {torch.__version__} cannot compile: {one_line(reason)}") from error
    needed = float((found - torch.relu(a @ a.T).sum(-1)).abs().max())
    return {"found": f"transformers {transformers.__version__}", "needed": needed, "passed": needed < 0.01}
