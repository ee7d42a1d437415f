"""Where the scales of a smoothed input go: into the parameters that make it, or into the program.

Smoothing divides a product's input by ``s[K]`` and multiplies the weight's columns by it. The division costs nothing
where what makes the input can take it: a norm's weight and bias, or the rows of a gated MLP's ``up`` projection.
Elsewhere (a norm that feeds the residual as well, a GELU, experts beside) the program divides.
"""

from __future__ import annotations

from typing import NamedTuple

from glm_export.spec.config import Activation, GlmConfig, Norm

READS_NORM = {"attention.qkv": "attention_norm", "mlp.gate_up": "mlp_norm", "mlp.up": "mlp_norm"}


class Fold(NamedTuple):
    """Rows of a parameter that are divided by the scales: ``first`` to the end."""

    parameter: str
    first: int = 0


def folds(weight: str, config: GlmConfig) -> tuple[Fold, ...]:
    """The parameters that take the division for this linear weight; empty where the program must divide.

    Args:
        weight: e.g. ``layers.0.attention.qkv.weight``.
        config: the sizes.
    """
    module, kind = weight.removesuffix(".weight").rsplit(".", 1)
    layer = ".".join(weight.split(".")[:2])
    made_by = READS_NORM.get(f"{module}.{kind}".removeprefix(f"{layer}."))
    if made_by is not None and not config.residual_from_norm:
        parts = ("weight",) if config.norm is Norm.RMS else ("weight", "bias")
        return tuple(Fold(f"{layer}.{made_by}.{part}") for part in parts)
    if kind == "down" and config.activation is Activation.SWIGLU:
        width = config.ffn_size
        if module.endswith(".shared") and config.experts is not None:
            width = config.experts.ffn_size * config.experts.shared
        parts = ("weight", "bias") if config.linear_bias else ("weight",)
        return tuple(Fold(f"{module}.gate_up.{part}", width) for part in parts)
    return ()
