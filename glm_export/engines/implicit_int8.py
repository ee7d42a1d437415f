"""Implicit INT8 of TensorRT up to 10: TensorRT measures a float program on text, or reads what was measured before.

The cache is TensorRT's own format: one that ``export --ranges`` wrote from our ranges serves as well as one that
TensorRT measured. Its first line must name the version and algorithm that read it, or TensorRT refuses it and measures
anew without data; so the line is written for the version at hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.trt_cache import ALGORITHMS, cache_text, read_cache
from glm_export.engines.network import Network
from glm_export.engines.options import ENTROPY, MIN_MAX
from glm_export.engines.plan import quiet
from glm_export.engines.vendor import TensorRT
from glm_export.errors import InputError
from glm_export.inputs.prompts import Prompt, prefill_feeds
from glm_export.spec.signature import BATCH, PAST, Cache

CALIBRATORS = {ENTROPY: "IInt8EntropyCalibrator2", MIN_MAX: "IInt8MinMaxCalibrator"}
CACHE_ALGORITHM = dict(zip(CALIBRATORS, ALGORITHMS, strict=True))
CalibratorFactory = Callable[[Network], Any]


def require_implicit(tensorrt: TensorRT) -> None:
    """See that a version has implicit INT8.

    Raises:
        InputError: it has not.
    """
    if tensorrt.rtx or tensorrt.find(CALIBRATORS[ENTROPY]) is None:
        raise InputError(
            f"{tensorrt.name} {tensorrt.version} has no implicit INT8 (TensorRT 11 dropped it); "
            "export with --recipe int8-smoothquant and build that"
        )


def require_float_program(program: OnnxProgram, tensorrt: TensorRT) -> None:
    """See that a program can be quantized implicitly.

    Raises:
        InputError: this version has no implicit INT8, the program is quantized already, its cache is static, or it
            starts from a prefix.
    """
    require_implicit(tensorrt)
    if program.recipe is not None:
        raise InputError(f"{program.folder} is quantized by {program.recipe} already; leave --implicit-int8 out")
    if program.signature.cache is not Cache.GROWING:
        raise InputError(f"implicit INT8 needs a program of dialect portable, {program.folder} is {program.dialect}")
    if program.config.prefix_length:
        raise InputError(
            f"{program.folder} starts from a prefix, and implicit INT8 measures on an empty cache; take a recipe"
        )


def cache_version(version: str) -> str:
    """A version as caches write it: ``8601`` for 8.6.1, ``101303`` for 10.13.3 (NV_TENSORRT_VERSION)."""
    major, minor, patch = (int(part) for part in (*re.findall(r"\d+", version), "0", "0")[:3])
    return str(major * 10_000 + minor * 100 + patch if major >= 10 else major * 1000 + minor * 100 + patch)


def write_cache_for(tensorrt: TensorRT, source: Path, algorithm: str, path: Path) -> None:
    """Write a copy of a calibration cache that this version reads.

    Raises:
        InputError: it is no calibration cache, or is missing.
    """
    if not source.is_file():
        written_by = "'glm-export export --dialect portable --ranges' writes one"
        raise InputError(f"{source} is missing; {written_by}")
    try:
        text = source.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is no calibration cache: {error}") from error
    read_cache(text)
    header = cache_text({}, version=cache_version(tensorrt.version), algorithm=CACHE_ALGORITHM[algorithm])
    path.write_text(header + text.partition("\n")[2], encoding="ascii")


def calibrator(
    tensorrt: TensorRT,
    program: OnnxProgram,
    cache: Path,
    *,
    algorithm: str = ENTROPY,
    rows: Sequence[Sequence[int]] = (),
) -> CalibratorFactory:
    """Polygraphy's calibrator over our text.

    Args:
        tensorrt: up to version 10.
        program: of dialect ``portable``, in float.
        cache: read where it exists, written otherwise.
        algorithm: ``entropy`` or ``min-max``.
        rows: token ids, each as many as the prefill profile's usual prompt: TensorRT calibrates at those shapes only.

    Returns:
        What makes it for a parsed network, whose input dtypes its feeds take (8.6 has no 64-bit integers).
    """

    def make(network: Network) -> Any:
        dtypes = input_dtypes(network)
        base = tensorrt.find(CALIBRATORS[algorithm])
        with quiet():
            return tensorrt.polygraphy().Calibrator(
                data_loader=list(calibration_feeds(program, rows, dtypes)), cache=str(cache), BaseClass=base
            )

    return make


def input_dtypes(network: Network) -> dict[str, np.dtype[Any]]:
    """Of every input as the engine will take it."""
    trt = network.tensorrt.module
    inputs = [network.network.get_input(index) for index in range(network.network.num_inputs)]
    return {tensor.name: np.dtype(trt.nptype(tensor.dtype)) for tensor in inputs}


def calibration_feeds(
    program: OnnxProgram, rows: Sequence[Sequence[int]], dtypes: dict[str, np.dtype[Any]]
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Each row as a prompt read from nothing."""
    for row in rows:
        # All of a prefix family's text is context, but for the token it would go on from.
        context = len(row) - 1 if program.config.prefix_mask else 0
        named = dict(prefill_feeds([Prompt(ids=tuple(row), context_length=context)], program.config).named())
        for spec in program.signature.inputs:
            if spec.is_cache:
                named[spec.name] = np.zeros(spec.shape(**{BATCH: 1, PAST: 0}), np.float32)
        # TensorRT calibrates in float32 whatever a float input's dtype is.
        yield {
            name: array if array.dtype.kind == "f" else np.ascontiguousarray(array, dtypes[name])
            for name, array in named.items()
        }


def packed_rows(ids: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, ...]]:
    """Texts one after another, cut into rows of ``tokens``; what is left over is dropped.

    Raises:
        InputError: there are fewer tokens than one row.
    """
    stream = [token for row in ids for token in row]
    rows = [tuple(stream[start : start + tokens]) for start in range(0, len(stream) - tokens + 1, tokens)]
    if not rows:
        raise InputError(f"the corpus has {len(stream)} tokens, calibration needs at least {tokens}; give more text")
    return rows
