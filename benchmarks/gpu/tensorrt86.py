"""Run by a Python that has TensorRT 8.6, numpy and polygraphy, and nothing else of ours.

    trt86-python benchmarks/gpu/tensorrt86.py FOLDER CASES.npz --precision fp16

FOLDER is an exported program of dialect ``portable``; CASES.npz comes from ``tensorrt86_part.py``: calls with their
reference outputs, text, prompts with the tokens expected, and rows to calibrate on. Builds an engine of two profiles,
runs it by Polygraphy's runner, and prints one line of JSON. Exits with 3 where there is no GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PRECISIONS = ("fp32", "fp16", "int8-cache", "int8-entropy", "int8-min-max")
CACHE = "calibration.cache"
FLOOR = 1e-6
"""Least scale of an output, as the main package compares."""
Arrays = dict[str, Any]
Runners = tuple[Any, Any]
Case = tuple[str, Arrays, Arrays]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("cases", type=Path)
    options.add_argument("--precision", choices=PRECISIONS, required=True)
    arguments = options.parse_args()
    # Without a driver TensorRT 8.6 ends the process instead of raising.
    if not gpu_is_there():
        print("no NVIDIA GPU or driver was found")
        return 3
    import tensorrt
    from polygraphy.backend.trt import TrtRunner

    cases = np.load(arguments.cases)
    profiles = json.loads(str(cases["profiles"]))
    started = time.perf_counter()
    engine = build(arguments.folder, profiles, arguments.precision, cases)
    facts = {"tensorrt": tensorrt.__version__, "precision": arguments.precision}
    facts.update(build_seconds=round(time.perf_counter() - started, 2), **layers(engine))
    with TrtRunner(engine, optimization_profile=0) as prefill, TrtRunner(engine, optimization_profile=1) as decode:
        runners = (prefill, decode)
        facts.update(parity(runners, grouped(cases, "parity")))
        facts.update(on_text(runners, grouped(cases, "text")))
        facts.update(greedy(runners, grouped(cases, "greedy")))
    print(json.dumps(facts))
    return 0


def gpu_is_there() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def grouped(cases: Any, kind: str) -> list[Case]:
    """Cases of a kind: ``(name, inputs, outputs)``."""
    found: dict[str, dict[str, Arrays]] = {}
    for key in cases.files:
        if key.startswith(f"{kind}|"):
            _, name, side, tensor = key.split("|")
            found.setdefault(name, {"in": {}, "out": {}})[side][tensor] = cases[key]
    return [(name, sides["in"], sides["out"]) for name, sides in found.items()]


def build(folder: Path, profiles: list[Any], precision: str, cases: Any) -> Any:
    """An engine with the profiles, prompts first."""
    import tensorrt as trt
    from polygraphy.backend.trt import (
        CreateConfig,
        Profile,
        engine_from_network,
        network_from_onnx_path,
        util as trt_util,
    )

    shapes = []
    for profile in profiles:
        corners = Profile()
        for name, (least, usual, most) in profile["shapes"].items():
            corners.add(name, tuple(least), tuple(usual), tuple(most))
        shapes.append(corners)
    int8 = precision.startswith("int8")

    def config(builder: Any, network: Any) -> Any:
        calibrator = calibrating(folder, precision, cases) if int8 else None
        # cuDNN and cuBLAS need not be there: they are off by default, and named here to be sure.
        sources = [trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS]
        made = CreateConfig(
            fp16=precision == "fp16", int8=int8, calibrator=calibrator, profiles=shapes, tactic_sources=sources,
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        )(builder, network)  # fmt: skip
        if calibrator is not None:
            # Polygraphy calibrates at the last profile's shapes; text has those of a prompt.
            first = shapes[0].to_trt(builder, network)
            made.set_calibration_profile(first)
            trt_util.try_setup_polygraphy_calibrator(made, network, calib_profile=first)
        return made

    return engine_from_network(network_from_onnx_path(str(folder / "model.onnx")), config)


def calibrating(folder: Path, precision: str, cases: Any) -> Any:
    """Reads our cache, under the first line that this version expects; or measures on the rows."""
    import tensorrt as trt
    from polygraphy.backend.trt import Calibrator

    min_max = precision == "int8-min-max"
    base = trt.IInt8MinMaxCalibrator if min_max else trt.IInt8EntropyCalibrator2
    rows = [inputs for _, inputs, _ in grouped(cases, "calibrate")]
    cache = Path(tempfile.mkdtemp()) / CACHE
    if precision == "int8-cache":
        major, minor, patch = (int(part) for part in trt.__version__.split(".")[:3])
        _, *lines = (folder / CACHE).read_text(encoding="ascii").splitlines()
        first = f"TRT-{major * 1000 + minor * 100 + patch}-EntropyCalibration2"
        cache.write_text("\n".join([first, *lines]) + "\n", encoding="ascii")
    return Calibrator(data_loader=rows, cache=str(cache), BaseClass=base)


def layers(engine: Any) -> dict[str, int]:
    """How many layers read INT8, of how many; nothing where the inspector does not say."""
    import tensorrt as trt

    try:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        found = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    except (AttributeError, KeyError, ValueError):
        return {}
    kinds = [[str(tensor.get("Format/Datatype", "")) for tensor in layer.get("Inputs", [])] for layer in found]
    return {"layers": len(found), "int8_layers": sum(any("Int8" in one for one in kind) for kind in kinds)}


def run(runners: Runners, inputs: Arrays) -> Arrays:
    """One call, by the profile it belongs to; integers in the size TensorRT 8.6 made of them."""
    runner = runners[1] if inputs["input_ids"].shape[1] == 1 else runners[0]
    metadata = runner.get_input_metadata()
    feeds = {
        name: np.ascontiguousarray(array, dtype=numpy_dtype(metadata[name].dtype)) for name, array in inputs.items()
    }
    # Outputs are memory of the runner's: the next call writes over it.
    return {name: np.array(array) for name, array in runner.infer(feeds).items()}


def numpy_dtype(dtype: Any) -> Any:
    from polygraphy.datatype import DataType

    return DataType.to_dtype(DataType.from_dtype(dtype), "numpy")


def parity(runners: Runners, cases: list[Case]) -> dict[str, Any]:
    """The largest difference over the largest reference value of its output, as the main package compares."""
    worst, where, finite = 0.0, "", True
    for name, inputs, expected in cases:
        found = run(runners, inputs)
        for output, reference in expected.items():
            wanted, array = reference.astype(np.float64), found[output].astype(np.float64)
            if array.shape != wanted.shape:
                raise SystemExit(f"{name} {output}: shape {array.shape}, {wanted.shape} expected")
            finite = finite and bool(np.isfinite(array).all())
            needed = float(np.abs(array - wanted).max() / max(float(np.abs(wanted).max()), FLOOR))
            # A difference that is no number is the worst there is, and no comparison would say so.
            if not needed <= worst:
                worst, where = needed if needed == needed else 1e30, f"{name}, {output}"
    return {"needed": worst, "worst": where, "finite": finite, "cases": len(cases)}


def on_text(runners: Runners, cases: list[Case]) -> dict[str, Any]:
    """Divergence from the reference's predictions on text, in nats a token, and how often both favour one token."""
    divergence, alike = [], []
    for _, inputs, expected in cases:
        found = log_softmax(run(runners, inputs)["logits"])
        wanted = log_softmax(expected["logits"])
        divergence.append((np.exp(wanted) * (wanted - found)).sum(axis=-1))
        alike.append(wanted.argmax(axis=-1) == found.argmax(axis=-1))
    return {"kl": float(np.mean(divergence)), "top1": float(np.mean(alike)), "tokens": int(np.size(alike))}


def log_softmax(logits: Any) -> Any:
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def greedy(runners: Runners, cases: list[Case]) -> dict[str, int]:
    """Tokens written alike: a prompt read, then decoded with the cache handed back in."""
    equal = total = 0
    for _, inputs, expected in cases:
        wanted = expected["ids"].tolist()
        feeds, written = dict(inputs), []
        for _ in wanted:
            outputs = run(runners, feeds)
            written.append(int(outputs["logits"][0, -1].argmax()))
            feeds = followed(feeds, outputs, written[-1])
        equal += sum(one == other for one, other in zip(written, wanted, strict=True))
        total += len(wanted)
    return {"greedy_equal": equal, "greedy_total": total}


def followed(feeds: Arrays, outputs: Arrays, token: int) -> Arrays:
    """The next step: one token, one position on, and what was present is past."""
    following = {name: outputs[name.replace("past_key_values", "present")] for name in feeds if "past" in name}
    mask = feeds["attention_mask"]
    following["input_ids"] = np.array([[token]], np.int64)
    following["attention_mask"] = np.concatenate([mask, np.ones((1, 1), mask.dtype)], axis=1)
    following["position_ids"] = feeds["position_ids"][:, -1:] + 1
    return following


if __name__ == "__main__":
    sys.exit(main())
