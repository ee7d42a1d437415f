"""What the host does for one decode step of an engine, beside launching it: microseconds, at ChatGLM2-6B's shape.

    python benchmarks/sessions/host_time.py [--rows 1 8] [--steps 1500]

The engine is a stand-in that computes nothing and whose launches cost nothing, so all that is left is ours: inputs,
addresses, logits, choosing, stopping. Printed for tokens chosen by the host from each step's logits, and for the loop
on the device, each as the median of five runs. What CUDA's own calls take comes on top, on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from make_checkpoint import SHAPES
from planless_engine import planless_engine

from glm_export import families
from glm_export.engines.profiles import resolve_limits
from glm_export.generation.generate import generate_ids
from glm_export.generation.stopping import Stopping
from glm_export.inputs.prompts import Prompt
from glm_export.sessions.tensorrt.session import EngineSession
from glm_export.sessions.tensorrt.step import LoadedEngine
from glm_export.spec.dtypes import TABLE
from glm_export.spec.signature import Cache, decoder_signature

RUNS, WARM_UP, COLUMNS, PROMPT = 5, 40, 2048, 16


class SilentDevice:
    """A device whose work takes no time."""

    def __init__(self) -> None:
        self.stream, self.target = 7, torch.device("cpu")

    def zeros(self, count: int, dtype: str) -> torch.Tensor:
        return torch.zeros(count, dtype=getattr(torch, dtype))

    pinned = zeros

    def put(self, tensor: torch.Tensor, array: Any) -> None:
        tensor.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])).view(tensor.shape))

    def get(self, tensor: torch.Tensor) -> Any:
        return tensor.float().numpy()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def clear(self, tensor: torch.Tensor) -> None:
        """Of a batch, not of a step."""

    def fetch(self, tensor: torch.Tensor, slot: int) -> Any:  # noqa: ARG002
        return SimpleNamespace(wait=lambda: tensor)

    def on_stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002
        return lambda: None

    record = capture

    def memory_in_use(self) -> int:
        return 0

    free_memory = memory_in_use

    def release(self) -> None:
        """Nothing is kept."""


class SilentContext:
    """Says yes, and computes nothing."""

    def __getattr__(self, name: str) -> Callable[..., bool]:
        return lambda *_: True


def session_of(rows: int) -> EngineSession:
    """A session over an engine of the shape that is not there."""
    config = families.read_config(SHAPES["chatglm2-6b"])
    signature = decoder_signature(config, dtype="float16", logits="last", cache=Cache.STATIC, max_length=COLUMNS)
    limits = resolve_limits(signature, config.max_positions, max_batch=rows, prefill_tokens=PROMPT, prefill_batch=rows)
    engine = planless_engine(config, signature, limits)
    dtypes = {spec.name: TABLE[spec.dtype].tensorrt for spec in (*signature.inputs, *signature.outputs)}
    made: Any = SimpleNamespace(
        get_tensor_dtype=lambda name: SimpleNamespace(name=dtypes[name]), num_optimization_profiles=2,
        device_memory_size=1, create_execution_context_without_device_memory=SilentContext,
    )  # fmt: skip
    log = SimpleNamespace(clear=lambda: None, reason="", errors=[])
    tensorrt: Any = SimpleNamespace(find=lambda _: None, log=log, rtx=False, name="tensorrt", version="0")
    device: Any = SilentDevice()
    return EngineSession(engine, LoadedEngine(tensorrt=tensorrt, runtime=None, engine=made, device=device))


def microseconds(rows: int, steps: int) -> float:
    """Of one step: the difference of a long run and a short one."""
    prompts = [Prompt(ids=tuple(range(3, 3 + PROMPT)))] * rows
    found = []
    with session_of(rows) as session:
        for _ in range(RUNS):
            took = []
            for count in (WARM_UP, WARM_UP + steps):
                began = time.perf_counter()
                generate_ids(session, prompts, stopping=Stopping(max_new_tokens=count))
                took.append(time.perf_counter() - began)
            found.append((took[1] - took[0]) / steps * 1e6)
    return statistics.median(found)


def main() -> None:
    """Measure, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    options.add_argument("--steps", type=int, default=1500)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    loops = getattr(EngineSession, "chooses_tokens", None)
    for rows in arguments.rows:
        if loops is not None:
            print(f"{rows} rows, loop on the device: {microseconds(rows, arguments.steps):7.1f} us a step", flush=True)
            EngineSession.chooses_tokens = False  # type: ignore[method-assign, assignment]
        print(f"{rows} rows, chosen by the host: {microseconds(rows, arguments.steps):7.1f} us a step", flush=True)
        if loops is not None:
            EngineSession.chooses_tokens = loops  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
