"""Results as the GPU kit writes them, made up; a Python that never answers, and whether what was started has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = ROOT / "benchmarks" / "gpu"
sys.path.append(str(HOME))
record, speeds = map(import_module, ("record", "speeds"))
Facts = dict[str, Any]
H100 = "NVIDIA H100 (compute capability 9.0)"


def result(part: str, steps: list[Facts], **others: Any) -> Facts:
    facts: Facts = {
        "part": part, "passed": record.verdict_of(steps), "seconds": 12.3, "made": "2026-01-01T00:00:00+00:00",
        "device": H100, "driver": "580.1", "rehearsal": False, "shape": "chatglm2-6b", "code": "0123456789ab",
        "versions": {"torch": "2.11.0"}, "facts": {}, "steps": steps,
    }  # fmt: skip
    return facts | others


def step(name: str, passed: bool | None = True, **facts: Any) -> Facts:
    return {"step": name, "code": "0123456789ab", "seconds": 1.0, "passed": passed, **facts}


def spoken(side: str, runtime: str, form: str, rate: float, share: float | None = None, batch: int = 1) -> Facts:
    figures = {
        "decode_tokens_s": rate, "first_token_s": 0.05, "prefill_tokens_s": 10240.0, "share_of_floor": share,
        "bandwidth_bytes_s": 3.1e12, "machine": "left out",
    }  # fmt: skip
    return step(f"speed, batch {batch}", speed=speeds.speed(side, runtime, form, batch, figures))


def everything(engine_rate: float = 260.0, share: float = 0.9, without_graph: float = 2.0) -> list[Facts]:
    graph = step("CUDA graph and none", seconds_with_graph=1.0, seconds_without_graph=without_graph)
    return [
        result("machine", [step("memory bandwidth", found="3100 GB/s")]),
        result("peer-eager", [spoken("peer", speeds.EAGER, "float16", 50.0)]),
        result("peer-compiled", [spoken("peer", speeds.COMPILED, "float16", 200.0)]),
        result("full-ort-float16", [spoken("ours", speeds.ONNXRUNTIME, "float16", 210.0, share), graph]),
        result("full-ort-int8", [spoken("ours", speeds.ONNXRUNTIME, "int8-weights", 390.0, share)]),
        result("full-engine-float16", [spoken("ours", "tensorrt 11.4", "float16", engine_rate, share), graph]),
        result("full-engine-int8-weights", [spoken("ours", "tensorrt 11.4", "int8-weights", 400.0, share)]),
    ]


def alive(process: int) -> bool:
    """A process that has ended may still stand in the table until its parent looks."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ProcessLookupError):
        return False
    return state != "Z"


def silent_python(folder: Path) -> tuple[Path, Path]:
    """A ``trt86-python`` that waits for ever, and the file in which it says its process when it has begun."""
    python, started = folder / "bin" / "trt86-python", folder / "started"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\necho $$ > {started}.partial && mv {started}.partial {started}\nexec sleep 600\n")
    python.chmod(0o755)
    return python, started


def ended_by_sigterm(command: list[str], started: Path, environment: dict[str, str]) -> str:
    """What a command says that is ended once a file is there; it must end by that."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    while not started.is_file():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    return said
