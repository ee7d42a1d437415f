"""Checkpoint folder -> ONNX program folder, streaming.

The reference model is traced without weights (fake tensors) while another thread streams the weights from the
checkpoint into ``model.onnx.data``; a third hashes the source files. Memory does not grow with the model.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import onnx_ir as ir
import torch

from glm_export.artifacts.initial_cache import InitialCache, write_initial_cache
from glm_export.artifacts.manifest import (
    CARD,
    MANIFEST,
    MANIFEST_FORMAT,
    RANGES_MANIFEST,
    package_versions,
    recorded_files,
    write_json,
)
from glm_export.artifacts.output_folder import require_writable, whole_folder
from glm_export.artifacts.program import (
    BLOCK_OPTIONS,
    KV_CACHE_DTYPE,
    MODEL,
    NEEDS,
    PROMPT_LAYERS,
    RAGGED,
    SUMS_IN_16_BITS,
    WEIGHTS,
    OnnxProgram,
    load_program,
)
from glm_export.calibration import recipes
from glm_export.calibration.keep import KEPT, kept_sizes
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.ranges import Ranges
from glm_export.calibration.recipe import program_invariance
from glm_export.calibration.smoothed_weights import SmoothedWeights
from glm_export.checkpoints.checkpoint import Checkpoint
from glm_export.exporter.calibration_cache import write_calibration_cache
from glm_export.exporter.card.loaders import Subject, explicit_blocks
from glm_export.exporter.card.model_card import Described, base_model, model_card, source_license
from glm_export.exporter.loader_files import write_loader_files
from glm_export.exporter.options import ExportKeywords, ExportOptions, ResolvedOptions, open_ranges, resolve_options
from glm_export.exporter.plan import ExportPlan, plan_export
from glm_export.exporter.trace import attach_weights, trace
from glm_export.exporter.weight_layout import StoredTensor
from glm_export.exporter.weight_stream import CancelledError, write_weights
from glm_export.graphs import dialects
from glm_export.graphs.canonicalize import canonicalize, put_out_hidden_states
from glm_export.graphs.invariants import check_invariants
from glm_export.graphs.lower import lower, lower_to_ragged
from glm_export.graphs.precision.activation_names import annotate
from glm_export.graphs.precision.float32_regions import dialect_with_float32_regions, make_float32_regions
from glm_export.graphs.quantized import quantized_cache_rules, quantized_dialect, quantizing_rules
from glm_export.graphs.rewriter import CountedRule
from glm_export.graphs.rules.qdq.matmul import InputNumbers
from glm_export.model_folder import file_sha256
from glm_export.progress import NullProgress, Progress
from glm_export.spec.config import GlmConfig
from glm_export.spec.option import merged, takes
from glm_export.spec.session_entries import LEAST_WITH
from glm_export.spec.signature import decoder_signature
from glm_export.spec.weight_formats import EMBEDDING, WeightFormats, expert_stacks

logger = logging.getLogger(__name__)
TRACE_STEPS = 3


WRAPPER = "decoder."
FLOAT32_REGIONS = "float32_islands"
"""Places of a float16 program that are computed in float32: a key of the manifest, and of the graph's ``meta``."""


def program_graph(config: GlmConfig, target: ResolvedOptions, stored: tuple[StoredTensor, ...]) -> ir.Model:
    """Trace, canonicalize, lower and check; weights are left to :func:`attach_weights`.

    Returns:
        The program; its ``meta`` lists the places kept in float32 under :data:`FLOAT32_REGIONS`.

    Raises:
        InputError: what leaves a float16 program does not fit float16.
        InvariantError: the graph is not what the canonical dialect, or the one asked for, promises.
    """
    canonical = dialects.load(dialects.CANONICAL)
    dtype, logits = target.dtype, target.logits
    # Where the last few tokens' logits are wanted, a rule of the dialect puts them in the last one's place.
    traced = "last" if logits == "recent" else logits
    signature = decoder_signature(config, dtype=dtype, logits=traced)
    model = trace(config, signature, dtype=dtype, logits=traced, opset=canonical.opset)
    quantized = {entry.source for entry in stored if entry.form is not None}
    quantization = target.quantization
    formats = quantization.formats(sorted(quantized - {EMBEDDING}), config) if quantization else {}
    # As the canonical program has them: all that products read. Rules turn those back that are stored otherwise.
    transposed = frozenset(entry.source for entry in stored if entry.transposed) | quantized - {EMBEDDING}
    transposed |= frozenset(expert_stacks(config))
    canonicalize(model, signature, wrapper=WRAPPER, transposed=transposed)
    check_invariants(model, canonical, config, signature)
    put_out_hidden_states(model, target.signature)
    annotate(model, target.maxima)
    promised = target.dialect
    if target.dialect is not canonical or quantization:
        lower(model, target.dialect, config, target.signature, _rules_of(quantization, formats, target, config))
        promised = quantized_dialect(target.dialect, formats, kv=bool(quantization and quantization.kv_scales))
    model.meta[FLOAT32_REGIONS] = make_float32_regions(model, target.signature) if target.maxima else []
    if model.meta[FLOAT32_REGIONS]:
        promised = dialect_with_float32_regions(promised)
    check_invariants(model, promised, config, target.signature)
    return model


def _rules_of(
    quantization: Quantization | None, formats: Mapping[str, WeightFormats], target: ResolvedOptions, config: GlmConfig
) -> list[CountedRule]:
    """What a recipe adds to the dialect's own rules."""
    if quantization is None:
        return []
    numbers = InputNumbers(scales=quantization.input_scales, divisors=quantization.divisors(config))
    return [
        *quantizing_rules(formats, target.dtype, numbers, opset=target.dialect.opset),
        *quantized_cache_rules(quantization.kv_scales, target.dtype, config, target.dialect.can),
    ]


@takes(ExportOptions)
def export(
    checkpoint: Checkpoint,
    out: Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
    **keywords: Unpack[ExportKeywords],
) -> OnnxProgram:
    """Write an ONNX program for a checkpoint, whole or not at all.

    Args:
        checkpoint: from :func:`glm_export.checkpoints.checkpoint.open_checkpoint`.
        out: the folder to write.
        options: how; None is the defaults.
        force: replace an exported folder.
        progress: shows the long steps.
        **keywords: options, in place of those.

    Returns:
        The program, loaded from ``out``.

    Raises:
        InputError: an option is unknown, or ``out`` exists.
        CheckpointError: tensors are missing, mis-shaped, damaged, or not finite; or files changed meanwhile.
        EnvironmentMissingError: the disk cannot hold the output.
    """
    options = merged(ExportOptions, options, keywords)
    ranges = open_ranges(options.ranges)
    if ranges is not None:
        ranges.require_checkpoint(checkpoint.identity)
    target = resolve_options(checkpoint, options, ranges=ranges)
    given, out = out, require_writable(out, force=force, sources=checkpoint.folders)
    checkpoint.audit()
    initial = checkpoint.initial_cache
    plan = plan_export(checkpoint, out, target.dtype, target.quantization, target.dialect.can)
    _log_plan(out, plan, target)
    with whole_folder(out, force=force) as folder:
        # First: converting a tokenizer takes memory that tracing takes again.
        recipe = target.recipe.name if target.recipe is not None else None
        write_loader_files(checkpoint, folder, target.dtype, target.signature, recipe)
        if target.quantization is not None:
            target.quantization.save(folder)
        if initial is not None:
            scales = target.quantization.kv_scales if target.quantization is not None else ()
            write_initial_cache(InitialCache.of(initial), folder, target.signature, np.array(scales, np.float32))
        written = _write_model(checkpoint, folder, plan, target, progress or NullProgress())
        checkpoint.require_unchanged()
        if ranges is not None and target.quantization is None and target.dialect.can.implicit_int8:
            write_calibration_cache(folder, ranges)
        text = _card(checkpoint, folder, plan, target, written)
        (folder / CARD).write_text(text, encoding="utf-8")
        write_json(folder / MANIFEST, _manifest(checkpoint, folder, plan, target, written, ranges))
    return load_program(given)


def _log_plan(out: Path, plan: ExportPlan, target: ResolvedOptions) -> None:
    logger.info(
        "%s: %d parameters to %s in %s, %d bytes to write, about %d of memory; recipe %s",
        out,
        plan.parameters,
        target.dialect.name,
        target.dtype,
        plan.output_bytes,
        plan.memory_bytes,
        target.recipe.name if target.recipe is not None else "none",
    )


def _card(checkpoint: Checkpoint, folder: Path, plan: ExportPlan, target: ResolvedOptions, written: _Written) -> str:
    recipe = target.recipe
    described = Described(
        name=checkpoint.identity.name,
        base=base_model(checkpoint.folder),
        license=source_license(checkpoint.folder),
        adapters=tuple(str(one["name"]) for one in checkpoint.added),
        hashes=written.hashes,
        dialect=target.dialect.name,
        opset=target.dialect.opset,
        logits=target.logits,
        parameters=plan.parameters,
        sizes={name: (folder / name).stat().st_size for name in (MODEL, WEIGHTS)},
        needs=written.needs,
    )
    block, head_block = explicit_blocks(recipe)
    subject = Subject(
        config=checkpoint.config,
        signature=target.signature,
        dtype=target.dtype,
        recipe=recipe.name if recipe else None,
        block=block,
        head_block=head_block,
    )
    return model_card(described, subject, folder)


def _manifest(
    checkpoint: Checkpoint,
    folder: Path,
    plan: ExportPlan,
    target: ResolvedOptions,
    written: _Written,
    ranges: Ranges | None,
) -> dict[str, Any]:
    recipe = target.recipe
    prompt_layers = target.quantization.prompt_layers if target.quantization is not None else None
    # The ranges' own manifest, which has the hashes of their files.
    measured = {RANGES_MANIFEST: file_sha256(ranges.folder / RANGES_MANIFEST)} if ranges is not None else None
    return {
        "format": MANIFEST_FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": checkpoint.identity.name,
        "adapters": checkpoint.added,
        "source_sha256": written.hashes,
        **({"ranges_sha256": measured} if measured else {}),
        "seconds": written.seconds,
        "config": checkpoint.config.to_json(),
        "dialect": target.dialect.name,
        "opset": target.dialect.opset,
        "dtype": target.dtype,
        "logits": target.logits,
        "recipe": recipe.name if recipe else None,
        **({KEPT: kept_sizes(recipe)} if recipe and recipe.rounding == KEPT else {}),
        **_block_options(target),
        **({KV_CACHE_DTYPE: "int8"} if target.signature.cache_is_integer else {}),
        **({SUMS_IN_16_BITS: True} if recipe and recipe.sums_in_16_bits else {}),
        **({PROMPT_LAYERS: prompt_layers} if prompt_layers is not None else {}),
        "left_in_float": dict(target.quantization.excluded) if target.quantization else {},
        "batch_invariance": program_invariance(checkpoint.config, target.signature, target.recipe).value,
        FLOAT32_REGIONS: written.float32_regions,
        NEEDS: written.needs,
        "parameters": plan.parameters,
        "signature": target.signature.to_json(),
        "packages": package_versions(),
        **recorded_files(folder, written.sha256),
    }


def _block_options(target: ResolvedOptions) -> dict[str, dict[str, int]]:
    """Where blocks or head are not the recipe's own; what is kept of a source has its sizes elsewhere."""
    recipe = target.recipe
    if recipe is None or recipe.rounding == KEPT:
        return {}
    usual = recipes.load(recipe.name).carried_by(target.dialect.can).block_options
    return {} if recipe.block_options == usual else {BLOCK_OPTIONS: recipe.block_options}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What was found out while writing: hashes of the source files, seconds each part took, what stays float32.

    ``needs``: the oldest runtimes that have the graph's operators. ``sha256``: of the weights that were written.
    """

    hashes: dict[str, str]
    seconds: dict[str, float]
    float32_regions: list[str]
    needs: dict[str, str]
    sha256: dict[str, str]


def _write_model(
    checkpoint: Checkpoint, folder: Path, plan: ExportPlan, target: ResolvedOptions, progress: Progress
) -> _Written:
    """Trace, stream weights and hash sources side by side, then write the graph."""
    cancelled = threading.Event()
    seconds: dict[str, float] = {}
    written: dict[str, str] = {}
    writing = progress.task("weights", sum(entry.length for entry in plan.stored))
    hashing = progress.task("source hashes", plan.source_bytes)
    tracing = progress.task("graph", TRACE_STEPS)

    def write() -> None:
        with _timed(seconds, "weights"):
            waited, written[WEIGHTS] = write_weights(
                folder / WEIGHTS,
                list(plan.stored),
                SmoothedWeights(checkpoint, target.quantization),
                cancelled=cancelled,
                advance=writing,
            )
        seconds["weights, waiting for the disk"] = round(waited, 2)

    def advance_hashing(count: int) -> None:
        if cancelled.is_set():
            raise CancelledError
        hashing(count)

    def hash_sources() -> dict[str, str]:
        with _timed(seconds, "source hashes"):
            return checkpoint.hashes(advance_hashing)

    with _sharing_cores(), ThreadPoolExecutor(2) as pool:
        weights, hashes = pool.submit(write), pool.submit(hash_sources)
        try:
            with _timed(seconds, "graph"):
                tracing(1)
                model = program_graph(checkpoint.config, target, plan.stored)
                tracing(1)
            jobs: tuple[Future[Any], ...] = (weights, hashes)
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
        except BaseException:
            cancelled.set()
            raise
    attach_weights(model, plan.stored, folder)
    ir.save(model, folder / MODEL)
    if lower_to_ragged(model, target.dialect, checkpoint.config, target.signature) is not None:
        ir.save(model, folder / RAGGED)
    tracing(1)
    for name, taken in seconds.items():
        logger.info("%s: %.2f s", name, taken)
    return _Written(
        hashes=hashes.result(),
        seconds=seconds,
        float32_regions=model.meta[FLOAT32_REGIONS],
        needs=runtime_needs(model),
        sha256=written,
    )


def runtime_needs(model: ir.Model) -> dict[str, str]:
    """The oldest version of each runtime that has the operators of a graph, where not every one has them."""
    found = {f"{node.domain}.{node.op_type}" for node in model.graph.all_nodes()}
    found |= {f"{node.domain}.{node.op_type}.{name}" for node in model.graph.all_nodes() for name in node.attributes}
    least = max((version for operator, version in LEAST_WITH.items() if operator in found), default=None)
    return {"onnxruntime": ".".join(map(str, least))} if least is not None else {}


@contextmanager
def _sharing_cores() -> Iterator[None]:
    """Let three threads run side by side.

    Tracing is pure Python and gives way only every 5 ms by default; and copies gain nothing from PyTorch's own
    threads, which would spin on the cores the others need.
    """
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(2e-4)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        torch.set_num_threads(threads)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 2)
