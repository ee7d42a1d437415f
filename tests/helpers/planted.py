"""Programs with a defect planted, as a builder that misunderstands GLM would emit them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glm_export.artifacts.program import OnnxProgram
from tests.helpers import faults
from tests.helpers.faults import Planting, angles, see_padding

EVERY = {"prefill", "chunk on a past", "decode", "padded batch", "batch decode", "end of context"}
PLANTED = {
    "half-split rotary": EVERY,
    "keys and values exchanged": EVERY,
    "padding is seen": {"padded batch", "batch decode"},
    "rotary base ignored": EVERY,
    "float16 rounding of the tables": EVERY,
}
"""Defect -> the cases of ``check`` that must fail; the others must not."""


def plant(program: OnnxProgram, defect: str, folder: Path) -> OnnxProgram:
    """A copy of the program with one defect, in every layer."""
    return faults.plant(program, _CHANGE[defect], folder)


def _half_split(given: Planting) -> None:
    for node in given.graph.node:
        for attribute in node.attribute:
            if node.op_type == "RotaryEmbedding" and attribute.name == "interleaved":
                attribute.i = 0


def _exchange(given: Planting) -> None:
    for node in given.graph.node:
        if node.op_type == "Attention":
            node.input[1], node.input[2] = node.input[2], node.input[1]


def _ignore_base(given: Planting) -> None:
    for name in ("cos", "sin"):
        given.set_weight(name, angles(given.weight(name), name, 500.0, 1).astype(np.float32))


def _round_tables(given: Planting) -> None:
    for name in ("cos", "sin"):
        given.change(name, lambda table: table.astype(np.float16).astype(np.float32))


_CHANGE = {
    "half-split rotary": _half_split,
    "keys and values exchanged": _exchange,
    "padding is seen": see_padding,
    "rotary base ignored": _ignore_base,
    "float16 rounding of the tables": _round_tables,
}
