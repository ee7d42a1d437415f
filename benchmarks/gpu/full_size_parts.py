"""ChatGLM2-6B's full shape with random weights: exported, built, measured, and held to PyTorch.

What a part makes stays until it is through, so that one that was cut off goes on; then it is removed to spare disk.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from at_work import checked
from engine_parts import NARROW, available, build_facts, coverage, narrow, with_and_without as engine_graph
from onnxruntime_parts import with_and_without as program_graph
from record import ROOT, TINY, Facts, Kit, NotAvailableError, Recorder, verdict_of
from speeds import ONNXRUNTIME, OURS, speed

from glm_export import api
from glm_export.artifacts.engine import Engine, load_engine
from glm_export.artifacts.open import Kind, kind_of
from glm_export.calibration.corpus.corpus import Corpus, Sample
from glm_export.calibration.options import CalibrationOptions
from glm_export.calibration.ranges import load_ranges
from glm_export.deployment import build as deployment
from glm_export.deployment.build import usual_runtime
from glm_export.engines import vendor
from glm_export.engines.network import dialect_for
from glm_export.exporter.options import ExportOptions
from glm_export.inputs.prompts import Prompt
from glm_export.machine.gpu import gpus
from glm_export.machine.memory import available_memory
from glm_export.performance.bench import bench
from glm_export.performance.measure import FIRST_PLAIN_ID
from glm_export.performance.report import BenchOptions

CHECKPOINT_BYTES = {"chatglm2-6b": 12.6e9, "medium": 2.9e9, TINY: 5e6}
RANDOM = ".random-weights"
"""Marks a checkpoint that was made here, which may go for another."""
NATIVE = "-native"
RECIPES = {
    "float16": None, "int8-weights": "int8-weights", "int4-weights": "int4-weights",
    "int8-smoothquant": "int8-smoothquant",
}  # fmt: skip
MAX_CONTEXT, PREFILL_TOKENS = 1024, 512
BATCHES = (1, 8)
RANGES_ROWS, RANGES_TOKENS = 8, 256
ROOM = 6e9
"""Bytes of device memory left for activations, caches and a reference's working memory."""
BOTH_SIDES = "int8-smoothquant"


def full_checkpoint(kit: Kit, layout: str = "") -> Path:
    """The checkpoint of random weights, made if it is not there: one at a time, the disk need not hold two.

    Args:
        kit: where, and which shape.
        layout: empty for the publisher's, :data:`NATIVE` for transformers' own.
    """
    folder = kit.work / f"{kit.shape}{layout}"
    if (folder / "config.json").is_file():
        return folder
    for other in kit.work.glob(f"*/{RANDOM}"):
        shutil.rmtree(other.parent)
    make_room(kit, CHECKPOINT_BYTES[kit.shape], keep=())
    # Under another name until it is whole.
    partial = kit.work / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    script = ROOT / "benchmarks" / "make_checkpoint.py"
    subprocess.run([sys.executable, str(script), folder.name, str(partial)], check=True)
    (partial / RANDOM).touch()
    partial.rename(folder)
    return folder


def make_room(kit: Kit, needed: float, keep: tuple[str, ...]) -> None:
    """See that the disk has so many bytes; what other full-size parts left there may go for it.

    Raises:
        OSError: it has not.
    """
    kit.work.mkdir(parents=True, exist_ok=True)
    for leftover in sorted((*kit.work.glob("medium-*"), *kit.work.glob("full-*"))):
        if shutil.disk_usage(kit.work).free < needed and leftover.name not in (*keep, "full-calibrate"):
            shutil.rmtree(leftover)
    free = shutil.disk_usage(kit.work).free
    if free < needed:
        raise OSError(f"{needed / 1e9:.1f} GB are needed in {kit.work}, and {free / 1e9:.1f} GB are free; use --work")


def benched(folder: Path, runtime: str, form: str, batch: int) -> Facts:
    """``glm-export bench``, which runs the model in a process of its own."""
    report = bench(folder, BenchOptions(batch=batch)).to_json()
    return {"speed": speed(OURS, runtime, form, batch, report), "bench": report}


def reference_dtype(kit: Kit, engine_bytes: int | None) -> str:
    """float32 where it fits beside the engine, or in host memory; float16, whose bound is wider, elsewhere.

    Args:
        kit: which shape.
        engine_bytes: of an engine on the same GPU as the reference; None: the reference runs on the host.
    """
    wide = 2 * CHECKPOINT_BYTES[kit.shape]
    host = available_memory()
    fits = host is None or host > 1.2 * wide
    if engine_bytes is not None and gpus():
        fits = fits and gpus()[0].memory_bytes > wide + engine_bytes + ROOM
    return "float32" if fits else "float16"


def onnxruntime(recorder: Recorder, form: str) -> None:
    """A program of dialect ``ort`` in ONNX Runtime CUDA."""
    checkpoint = full_checkpoint(recorder.kit)
    folder = recorder.folder() / "program"

    def program() -> Path:
        if kind_of(folder) is not Kind.PROGRAM:
            make_room(recorder.kit, CHECKPOINT_BYTES[recorder.kit.shape], keep=(recorder.part,))
            api.export(checkpoint, folder, ExportOptions(dialect="ort", dtype="float16", recipe=RECIPES[form]))
        return folder

    recorder.step("exported", lambda: {"bytes": sum(path.stat().st_size for path in program().iterdir())})

    def speed_at(batch: int) -> Facts:
        return on_gpu(program(), form, batch, recorder.kit)

    for batch in BATCHES:
        recorder.step(f"speed, batch {batch}", partial(speed_at, batch))
    recorder.step("CUDA graph and none", lambda: program_graph(program(), recorder.kit))
    recorder.step("equals PyTorch", lambda: parity(program(), recorder.kit, None))
    spare(recorder, recorder.folder())


def spare(recorder: Recorder, folder: Path) -> None:
    """Remove what a part made; where something failed it is left for the next try, while the disk has room."""
    if verdict_of(recorder.steps) is not False:
        shutil.rmtree(folder)


def on_gpu(program: Path, form: str, batch: int, kit: Kit) -> Facts:
    """The speed of a program; one taken on the CPU, where ONNX Runtime fell back to it, is none."""
    facts = benched(program, ONNXRUNTIME, form, batch)
    if not kit.rehearse and facts["bench"]["device"] != "cuda":
        raise NotAvailableError("the CUDA provider was not loaded: CUDA 13 and cuDNN 9 are needed")
    return facts


def parity(folder: Path, kit: Kit, engine_bytes: int | None) -> Facts:
    """``glm-export check`` against the checkpoint."""
    dtype = reference_dtype(kit, engine_bytes)
    return checked(folder, str(full_checkpoint(kit)), dtype) | {"reference_dtype": dtype}


# -- engines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FullEngine:
    """The engine of one form, in a folder that building and measuring share."""

    recorder: Recorder
    form: str
    tensorrt: vendor.TensorRT
    checkpoint: Path

    @property
    def kit(self) -> Kit:
        return self.recorder.kit

    @property
    def dialect(self) -> str:
        return dialect_for(self.tensorrt).name

    @property
    def home(self) -> Path:
        return self.recorder.folder(f"full-{self.tensorrt.name}-{self.form}")

    def program(self) -> Path:
        """The exported folder.

        Raises:
            NotAvailableError: this version's dialect has no words for the recipe.
        """
        folder = self.home / "program"
        if kind_of(folder) is Kind.PROGRAM:
            return folder
        static = self.dialect == "tensorrt"
        if not static and self.form == "int4-weights":
            raise NotAvailableError(f"4-bit weights need dialect tensorrt, and {self.tensorrt.version} reads portable")
        ranges = full_ranges(self.recorder) if self.form == BOTH_SIDES else None
        make_room(self.kit, 2 * CHECKPOINT_BYTES[self.kit.shape], keep=(self.home.name,))
        # Q/DQ of dialect portable have float32 scales.
        dtype = "float16" if static or self.form == "float16" else "float32"
        options = ExportOptions(
            dialect=self.dialect,
            dtype=dtype,
            recipe=RECIPES[self.form],
            ranges=ranges,
            logits="last",
            max_length=MAX_CONTEXT if static else None,
        )
        api.export(self.checkpoint, folder, options)
        return folder

    def engine(self) -> Engine:
        """The engine; what it was built of is removed, it has the weights."""
        folder = self.home / "engine"
        if kind_of(folder) is Kind.ENGINE:
            return load_engine(folder)
        built = deployment.build(
            self.program(), folder, runtime=self.tensorrt.name, max_batch=max(BATCHES), max_context=MAX_CONTEXT,
            prefill_tokens=PREFILL_TOKENS, timing_cache=self.kit.work / "timing.cache",
        )  # fmt: skip
        shutil.rmtree(self.home / "program")
        return built


def full_engine(recorder: Recorder, form: str) -> FullEngine:
    """The engine of a form, for the runtime asked for or the usual one; not built yet."""
    tensorrt = available(recorder.kit.runtime or usual_runtime(), recorder.kit)
    recorder.facts |= {"runtime": f"{tensorrt.name} {tensorrt.version}", "dialect": dialect_for(tensorrt).name}
    return FullEngine(recorder, form, tensorrt, full_checkpoint(recorder.kit))


def build(recorder: Recorder, form: str) -> None:
    """Export and build."""
    full = full_engine(recorder, form)
    if recorder.again:
        shutil.rmtree(full.home)
    if kind_of(full.home / "engine") is not Kind.ENGINE:
        recorder.step("exported", lambda: {"bytes": sum(path.stat().st_size for path in full.program().iterdir())})
    recorder.step("built", lambda: build_facts(full.engine()))
    if form in NARROW:
        recorder.step("weights stay narrow", lambda: narrow(full.engine()))
    if form == BOTH_SIDES:
        recorder.step("INT8 products compute in 8 bits", lambda: coverage(full.engine()))


def engine(recorder: Recorder, form: str) -> None:
    """Measure and check."""
    full = full_engine(recorder, form)
    if not recorder.step("there", lambda: {"bytes": full.engine().plan_path.stat().st_size})["passed"]:
        return
    name = f"{full.tensorrt.name} {full.tensorrt.version}"

    def speed_at(batch: int) -> Facts:
        return benched(full.engine().folder, name, form, batch)

    steps: dict[str, Callable[[], Facts]] = {f"speed, batch {batch}": partial(speed_at, batch) for batch in BATCHES}
    steps["CUDA graph and none"] = lambda: graph(full)
    steps["equals PyTorch"] = lambda: parity(full.engine().folder, full.kit, full.engine().plan_path.stat().st_size)
    for step, work in steps.items():
        recorder.step(step, work)
    spare(recorder, full.home)


def graph(full: FullEngine) -> Facts:
    if full.dialect != "tensorrt":
        raise NotAvailableError("the cache grows, so nothing is captured")
    return engine_graph(full.engine())


# -- ranges ------------------------------------------------------------------------------------------------------------


def calibrate(recorder: Recorder) -> None:
    """Ranges of random ids: random weights have no tokenizer and know no text, so these say nothing of a real model."""
    recorder.facts["corpus"] = "random ids: the weights are random, too; what is shown is that it runs, and how fast"
    recorder.step("measured", lambda: {"inputs": len(load_ranges(full_ranges(recorder)).inputs)})


def full_ranges(recorder: Recorder) -> Path:
    """Measured once on the GPU; a run that was cut off goes on layer by layer."""
    kit = recorder.kit
    folder = recorder.folder("full-calibrate") / "ranges"
    if not folder.is_dir():
        checkpoint = api.open_checkpoint(full_checkpoint(kit))
        corpus = random_corpus(checkpoint.config.vocab_size)
        api.calibrate(checkpoint, folder, CalibrationOptions(corpus=corpus, device=kit.device))
    return folder


def random_corpus(vocab_size: int) -> Corpus:
    """Rows of random ids as a corpus, which only code can hand over: a file needs a tokenizer to be read."""
    rows = np.random.default_rng(0).integers(FIRST_PLAIN_ID, vocab_size, (RANGES_ROWS, RANGES_TOKENS)).tolist()
    samples = tuple(Sample(prompt=Prompt(ids=tuple(row)), counted_from=1) for row in rows)
    return Corpus(name="random ids", origin="made here", licence="none needed", sha256="0" * 64, samples=samples)
