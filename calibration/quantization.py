"""A recipe with the numbers calibration found for one model: what export, proof and simulation compute with.

Kept beside an exported program, so that a proof needs neither the ranges nor the corpus again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from glm_export.calibration.methods.smoothing_fold import folds
from glm_export.calibration.recipe import Recipe
from glm_export.errors import CheckpointError, shown
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import WeightFormats, expert_stacks

if TYPE_CHECKING:  # a program is loaded without torch
    from glm_export.calibration.formats import PrequantizedWeight

QUANTIZATION = "quantization.safetensors"
GENAI_KV_SCALES = "kv_cache_scales.json"
"""The scales once more, as onnxruntime-genai's builder takes them (``kv_cache_scale_file``)."""
INPUT_SCALE, SMOOTHING, KV_SCALES = "/input_scale", "/smoothing", "/kv_scales"
Scales = NDArray[np.float32]


class RoundedWeights(Protocol):
    """Somewhere weights lie that were rounded beforehand."""

    def given(self, name: str, formats: WeightFormats, columns: int) -> PrequantizedWeight | None:
        """One weight's integers and scales, ``[N, columns]``; None where it is not among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """A recipe as one program carries it.

    ``recipe``: in the formats of the program's dialect. ``excluded``: linear weights excluded besides the recipe's,
    and why. ``input_scales``: of rounded inputs, by weight, after smoothing. ``smoothing``: float32 ``[K]`` by weight;
    the input is divided by it, the weight's columns are multiplied. ``kv_scales``: of key and value, by layer.
    ``rounded``: weights that were rounded beforehand.
    ``prompt_layers``: the first so many layers keep the recipe's second form, for prompts; None: all of them.
    ``folded_into_parameters``: smoothing divides the parameters before a product where it can, else the input itself.
    """

    recipe: Recipe
    excluded: Mapping[str, str] = field(default_factory=dict)
    input_scales: Mapping[str, float] = field(default_factory=dict)
    smoothing: Mapping[str, Scales] = field(default_factory=dict)
    kv_scales: tuple[tuple[float, float], ...] = ()
    rounded: RoundedWeights | None = None
    folded_into_parameters: bool = True
    prompt_layers: int | None = None

    def formats(self, linear_weights: list[str], config: GlmConfig) -> dict[str, WeightFormats]:
        """The form of each weight that is quantized, by parameter name; routed experts' come of themselves."""
        stacks = expert_stacks(config)
        linear = [name for name in linear_weights if name not in stacks]
        experts = self.recipe.expert_formats(config, self.excluded)
        found = self.recipe.formats(linear, config.hidden_size, self.excluded) | experts
        if self.prompt_layers is None:
            return found
        kept = tuple(f"layers.{layer}." for layer in range(self.prompt_layers))
        return {name: both if name.startswith(kept) else WeightFormats(both.decode) for name, both in found.items()}

    def divisors(self, config: GlmConfig) -> dict[str, Scales]:
        """Smoothing that the program itself does, because no parameter can take it; by weight."""
        folded = self.folded_into_parameters
        return {name: scales for name, scales in self.smoothing.items() if not (folded and folds(name, config))}

    def folded(self, config: GlmConfig) -> dict[str, list[tuple[int, Scales]]]:
        """What each parameter's rows are divided by: the first row, and scales for it and those after it."""
        table: dict[str, list[tuple[int, Scales]]] = {}
        for name, scales in self.smoothing.items() if self.folded_into_parameters else ():
            for fold in folds(name, config):
                table.setdefault(fold.parameter, []).append((fold.first, scales))
        return table

    def save(self, folder: Path) -> None:
        """Write the numbers beside a program, an empty file where a recipe that needs some has none; else nothing."""
        tensors = {f"{name}{INPUT_SCALE}": np.array([scale], np.float32) for name, scale in self.input_scales.items()}
        tensors |= {f"{name}{SMOOTHING}": scales for name, scales in self.smoothing.items()}
        if self.kv_scales:
            tensors[KV_SCALES] = np.array(self.kv_scales, np.float32)
        if tensors or self.recipe.needs != "nothing":
            save_file(tensors, folder / QUANTIZATION)
        if self.kv_scales:
            keys, values = zip(*self.kv_scales, strict=True)
            scales = {"scales": {"k_scales": list(keys), "v_scales": list(values)}}
            (folder / GENAI_KV_SCALES).write_text(json.dumps(scales, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(
        cls, folder: Path, recipe: Recipe, excluded: Mapping[str, str], prompt_layers: int | None = None
    ) -> Quantization:
        """Inverse of :meth:`save`.

        Args:
            folder: of the program.
            recipe: in the formats of the program's dialect.
            excluded: as the manifest has it.
            prompt_layers: as the manifest has it.

        Raises:
            CheckpointError: the recipe needs numbers and the file is missing.
        """
        path = folder / QUANTIZATION
        if recipe.needs != "nothing" and recipe.rounding == "nearest" and not path.is_file():
            raise CheckpointError(f"{path} is missing, and recipe {recipe.name} needs it; export again")
        tensors = _read(path) if path.is_file() else {}

        def ending(suffix: str) -> dict[str, Scales]:
            return {name.removesuffix(suffix): value for name, value in tensors.items() if name.endswith(suffix)}

        kv = ending(KV_SCALES).get("", np.empty((0, 2), np.float32))
        return cls(
            recipe=recipe,
            excluded=excluded,
            prompt_layers=prompt_layers,
            input_scales={name: float(scale[0]) for name, scale in ending(INPUT_SCALE).items()},
            smoothing=ending(SMOOTHING),
            kv_scales=tuple((float(key), float(value)) for key, value in kv),
        )


def kv_scales(folder: Path) -> Scales:
    """Scales of key and value by layer, float32 ``[L, 2]``, of a program that keeps integers.

    Raises:
        CheckpointError: the file that holds them is missing.
    """
    path = folder / QUANTIZATION
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, and the program's integer cache needs it; export again")
    scales = _read(path).get(KV_SCALES)
    if scales is None or scales.shape[1:] != (2,):
        raise CheckpointError(f"{path} should hold {KV_SCALES} [layers, 2]; export again")
    return scales


def _read(path: Path) -> dict[str, Scales]:
    """Scales and smoothing, which are positive."""
    try:
        tensors: dict[str, Scales] = load_file(path)
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; export again") from error
    for name, value in tensors.items():
        if value.dtype != np.float32 or not np.isfinite(value).all() or not (value > 0).all():
            raise CheckpointError(f"{path} should hold positive numbers, found others in {shown(name)}; export again")
    return tensors
