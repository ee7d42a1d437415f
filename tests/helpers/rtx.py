"""TensorRT-RTX's ONNX parser and builder: both work on machines without a GPU; engines then cannot be run or read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

from glm_export.artifacts.program import MODEL, OnnxProgram, load_program
from glm_export.engines import plan, vendor
from glm_export.engines.network import Network
from glm_export.engines.options import BuildOptions
from glm_export.engines.plan import BuildJob, BuildRecord
from glm_export.engines.profiles import profiles_of, resolve_limits
from glm_export.machine import gpu
from glm_export.progress import NullProgress
from tests.helpers.recorded import recorded_again

NAME = vendor.TENSORRT_RTX
ROWS = 2
INTERFACES = {"ROTARY_EMBEDDING": "IRotaryEmbeddingLayer", "ATTENTION_INPUT": "IAttentionInputLayer"}


def require_installed() -> Any:
    """Skip where TensorRT-RTX is not installed; its bindings where it is."""
    return pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install 'glm-export[rtx]' (Linux, x86-64)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """One build: what it said of itself, how often each kind of layer stands in the network, bytes of the plan."""

    record: BuildRecord
    network: dict[str, int]
    size: int
    log: str


def parse(model: Path) -> Network:
    """What the parser makes of a program."""
    return Network(vendor.load(NAME), model)


def layers(network: Network, kind: str) -> list[Any]:
    """Layers of a kind, e.g. ``ROTARY_EMBEDDING``, in their own class."""
    return network.layers(kind, INTERFACES.get(kind, "ILayer"))


def build_program(program: OnnxProgram, *, target: str | None = None, prefill_batch: int = ROWS) -> Built:
    """Build with the package's two profiles.

    Args:
        program: what to build.
        target: a compute capability, e.g. ``8.9``; None takes the builder's default.
        prefill_batch: rows read at once; as many as are decoded unless told otherwise.
    """
    limits = resolve_limits(
        program.signature, program.config.max_positions, max_batch=ROWS, prefill_batch=prefill_batch
    )
    options = BuildOptions(compute_capabilities=(target,) if target is not None else ())
    with tempfile.TemporaryDirectory() as folder:
        job = BuildJob(
            program=program, profiles=profiles_of(program.signature, limits), options=options,
            plan_path=Path(folder) / "engine.plan", log_path=Path(folder) / "build.log",
        )  # fmt: skip
        record, network = plan.build(vendor.load(NAME), job, NullProgress())
        return Built(
            record=record, network=network, size=job.plan_path.stat().st_size,
            log=job.log_path.read_text(encoding="utf-8"),
        )  # fmt: skip


def changed(program: OnnxProgram, folder: Path, change: Callable[[onnx.GraphProto], object]) -> OnnxProgram:
    """A copy of a program with another graph, which its manifest takes for its own."""
    shutil.copytree(program.folder, folder)
    model = onnx.load(str(folder / MODEL), load_external_data=False)
    change(model.graph)
    onnx.save(model, str(folder / MODEL))
    recorded_again(folder)
    return load_program(folder)


def halves_of_channels(graph: onnx.GraphProto) -> None:
    """A program's gates as the canonical ones: a change that makes this builder keep their weights twice."""
    made = {output: node for node in graph.node for output in node.output}
    for split in [node for node in graph.node if node.op_type == "Split" and len(node.output) == 2]:
        apart = made[split.input[0]]
        halves = [node for node in graph.node if node.op_type == "Squeeze" and node.input[0] in split.output]
        for node in (apart, *halves):
            graph.node.remove(node)
        split.input[0] = apart.input[0]
        split.output[:] = [half.output[0] for half in halves]
        (axis,) = (attribute for attribute in split.attribute if attribute.name == "axis")
        axis.i = -1


@contextmanager
def without_leave_to_decompose() -> Iterator[None]:
    """Attention stays in one piece, whether a fused kernel takes it or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "allow_decomposition", lambda _: None)
        yield


@contextmanager
def no_gpu() -> Iterator[None]:
    """A machine without a driver, whatever this one has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "_driver", lambda: None)
        yield
