"""A program in ``polygraphy run``, as one command line: shapes that fit together, and numbers that mean something.

By itself Polygraphy gives every symbol of a shape the size 1 and every integer a value from 1 to 25.
"""

from __future__ import annotations

import shlex

from glm_export.artifacts.program import OnnxProgram
from glm_export.errors import InputError
from glm_export.spec.session_entries import OF_RECIPE
from glm_export.spec.signature import (
    ATTENTION_MASK,
    BATCH,
    INPUT_IDS,
    LAST_TOKEN_IDS,
    PAST,
    POSITION_IDS,
    SEQUENCE,
    TOTAL,
    WRITE_INDICES,
    Cache,
    TensorSpec,
)

NEW, HELD = 8, 4
"""Tokens of the call, and those the cache holds before it."""


def run_line(program: OnnxProgram) -> str:
    """``polygraphy run MODEL --onnxrt --input-shapes … --val-range …``: a call of one row with a past.

    Args:
        program: of any dialect; keys and values are made up, as in any run of Polygraphy's own.

    Raises:
        InputError: Polygraphy cannot run it.
    """
    if program.dtype == "bfloat16":
        raise InputError(
            f"{program.folder} is in bfloat16, which Polygraphy's arrays (numpy) have not; export with --dtype float32"
        )
    entries = OF_RECIPE.get(program.recipe or "", {})
    if entries:
        told = ", ".join(f"{key} = {value}" for key, value in entries.items())
        raise InputError(
            f"ONNX Runtime loads {program.folder} when it is told {told}, and Polygraphy tells it nothing; run "
            "'glm-export check' instead, which compares through Polygraphy"
        )
    sizes = {BATCH: 1, SEQUENCE: NEW, PAST: HELD, TOTAL: HELD + NEW}
    shapes = [(spec.name, spec.shape(**_known(spec, sizes))) for spec in program.signature.inputs]
    ranges = {name: between for name, between in _ranges(program).items() if name in dict(shapes)}
    given = (f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes)
    within = (f"{name}:[{least},{most}]" for name, (least, most) in ranges.items())
    words = ["polygraphy", "run", str(program.model_path.resolve()), "--onnxrt"]
    words += ["--input-shapes", *given, "--val-range", *within]
    return shlex.join(words)


def _known(spec: TensorSpec, sizes: dict[str, int]) -> dict[str, int]:
    return {dim: sizes[dim] for dim in spec.dims if isinstance(dim, str)}


def _ranges(program: OnnxProgram) -> dict[str, tuple[int, int]]:
    """Least and most of every integer a call is told; a mask of pairs is of bools, which need none."""
    config, signature = program.config, program.signature
    held = HELD if signature.cache is Cache.GROWING else 0
    ranges = {
        INPUT_IDS: (0, config.vocab_size - 1),
        POSITION_IDS: (held, held + NEW - 1),
        WRITE_INDICES: (held, held),
        LAST_TOKEN_IDS: (NEW - 1, NEW - 1),
    }
    return ranges if signature.prefix_mask else ranges | {ATTENTION_MASK: (1, 1)}
