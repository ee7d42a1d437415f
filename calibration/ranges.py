"""What calibration measured, kept in a folder: numbers in safetensors, provenance in a manifest.

The numbers belong to one checkpoint, and say so: used with another they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from glm_export import families
from glm_export.artifacts.manifest import RANGES_MANIFEST, require_recorded
from glm_export.calibration.observers.statistics import OBSERVERS
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.recipe import Recipe
from glm_export.calibration.rounded_folder import RoundedFolder
from glm_export.checkpoints.identity import CheckpointIdentity
from glm_export.errors import CheckpointError, InputError, shown
from glm_export.model_folder import load_json
from glm_export.spec.config import GlmConfig
from glm_export.spec.summary import Summarized
from glm_export.spec.weight_formats import HEAD, QMAX

RANGES = "ranges.safetensors"
RANGES_FORMAT = 1
THRESHOLDS, CHANNEL_MAXIMA, CHANNEL_MEANS, TOKEN_MAXIMA = (
    "/thresholds", "/channel_maxima", "/channel_means", "/token_maxima",
)  # fmt: skip
MAXIMA, LEVELLED = "/maximum", "/levelled"
"""Of a tensor's magnitudes; and the largest magnitude of an input after smoothing, behind the smoothing's name."""
KEY, VALUE = "key", "value"
INT8_QMAX = QMAX["int8"]
KV_OBSERVER = "min_max"
"""Which threshold scales keys and values, whatever a recipe's own is."""
CHOSEN = ("_alpha", "_ratio")
"""What a search chose, NaN where nothing was worth it, and the error that left."""
SHAPES: dict[str, tuple[int, ...] | None] = {
    THRESHOLDS: (len(OBSERVERS),),
    CHANNEL_MAXIMA: None,
    CHANNEL_MEANS: None,
    TOKEN_MAXIMA: (2,),
    MAXIMA: (1,),
    LEVELLED: (1,),
    **dict.fromkeys(CHOSEN, (2,)),
}
"""Of a tensor by the end of its name, None where it has one number a channel; scales of a smoothing have none."""
SMOOTHINGS = ("smoothquant", "awq")
POSITIVE = (THRESHOLDS, LEVELLED)
"""What is divided by; a magnitude may be zero."""
MANIFEST_KINDS: dict[str, type | tuple[type, ...]] = {
    "checkpoint": dict,
    "corpus": dict,
    "family": str,
    "device": str,
    "layers": int,
    "rounded_for": (str, type(None)),
}
LATER_KINDS: dict[str, type | tuple[type, ...]] = {"rounded_in": (int, type(None))}
"""Of keys that earlier versions did not write."""


def kv_name(layer: int, kind: str) -> str:
    """The name of a layer's keys or values in a ranges file."""
    return f"layers.{layer}.{kind}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ranges(Summarized):
    """A folder that ``glm-export calibrate`` wrote."""

    folder: Path
    manifest: dict[str, Any]
    tensors: Mapping[str, NDArray[Any]]

    def summary(self) -> dict[str, str]:
        """Of which model, on which text."""
        corpus = self.manifest["corpus"]
        told = {
            "folder": str(self.folder),
            "checkpoint": str(self.manifest["checkpoint"].get("name")),
            "family": self.manifest["family"],
            "layers": str(self.layers),
            "linear inputs": f"{len(self.inputs):,}",
            "corpus": f"{corpus.get('name')}, {corpus.get('tokens', 0):,} tokens",
        }
        if self.manifest["rounded_for"] is not None:
            told["rounded for"] = self.manifest["rounded_for"]
        return told

    @property
    def inputs(self) -> list[str]:
        """Linear weights whose inputs were measured."""
        return [name.removesuffix(CHANNEL_MAXIMA) for name in self.tensors if name.endswith(f".weight{CHANNEL_MAXIMA}")]

    @property
    def rounded_in(self) -> int | None:
        """Weights that share a scale, where calibration rounded them; None where it did not, or did not say."""
        block: int | None = self.manifest.get("rounded_in")
        return block

    @property
    def layers(self) -> int:
        """Layers whose keys and values were measured."""
        return sum(name.endswith(f".{KEY}{THRESHOLDS}") for name in self.tensors)

    def threshold(self, name: str, observer: str) -> float:
        """The magnitude that maps to the last integer.

        Args:
            name: a linear weight (its input), or :func:`kv_name`.
            observer: one of :data:`OBSERVERS`.
        """
        return float(self.tensors[name + THRESHOLDS][OBSERVERS.index(observer)])

    def maxima(self) -> dict[str, float]:
        """The largest magnitude of every tensor a layer makes, by its place."""
        return {
            name.removesuffix(MAXIMA): float(value[0]) for name, value in self.tensors.items() if name.endswith(MAXIMA)
        }

    def smoothing(self, recipe: Recipe) -> dict[str, NDArray[np.float32]]:
        """The scales a recipe's smoothing found for each input, float32 ``[K]``; inputs not worth it are missing."""
        ending = f"/{recipe.smoothing}"
        found = {name.removesuffix(ending): value for name, value in self.tensors.items() if name.endswith(ending)}
        return {
            name: value for name, value in found.items() if recipe.excludes(name) is None and not np.all(value == 1)
        }

    def quantization(self, recipe: Recipe, dtype: str, excluded: Mapping[str, str] | None = None) -> Quantization:
        """A recipe with these numbers.

        Args:
            recipe: in the forms of a dialect.
            dtype: of the program, to which scales are rounded.
            excluded: linear weights to leave in float, and why.

        Raises:
            InputError: the recipe needs ranges that were made for it.
        """
        if recipe.rounding == "gptq" and self.manifest.get("rounded_for") != recipe.name:
            raise InputError(
                f"{self.folder} holds no weights rounded for {recipe.name}; calibrate with --recipe {recipe.name}"
            )
        if recipe.rounding != "gptq" and self.manifest.get("rounded_for"):
            raise InputError(
                f"{self.folder} was measured behind weights rounded for {self.manifest['rounded_for']}, and recipe "
                f"{recipe.name} has others; calibrate without --recipe"
            )
        excluded = dict(excluded or {})
        smoothing = {name: value for name, value in self.smoothing(recipe).items() if name not in excluded}
        return Quantization(
            recipe=recipe,
            excluded=excluded,
            smoothing=smoothing,
            input_scales=self._input_scales(recipe, smoothing, excluded, dtype),
            kv_scales=self._kv_scales(dtype) if recipe.kv else (),
            rounded=RoundedFolder(self.folder) if recipe.rounding == "gptq" else None,
        )

    def _input_scales(
        self, recipe: Recipe, smoothing: Mapping[str, Any], excluded: Mapping[str, str], dtype: str
    ) -> dict[str, float]:
        dtype_8bit = recipe.layers.activation_dtype if recipe.layers is not None else None
        if dtype_8bit is None:
            return {}
        scales = {}
        for name in self.inputs:
            if name in excluded or recipe.excludes(name) is not None or (name == HEAD and recipe.head is None):
                continue
            threshold = (
                float(self.tensors[f"{name}/{recipe.smoothing}{LEVELLED}"][0])
                if name in smoothing
                else self.threshold(name, recipe.observer)
            )
            scales[name] = _rounded(threshold / QMAX[dtype_8bit], dtype)
        return scales

    def _kv_scales(self, dtype: str) -> tuple[tuple[float, float], ...]:
        def scale(layer: int, kind: str) -> float:
            return _rounded(self.threshold(kv_name(layer, kind), KV_OBSERVER) / INT8_QMAX, dtype)

        return tuple((scale(layer, KEY), scale(layer, VALUE)) for layer in range(self.layers))

    def require_shapes(self, config: GlmConfig) -> None:
        """See that there is a number for every channel of a model's inputs, and for every layer.

        Raises:
            InputError: another model was measured, or the file is not whole.
        """
        rules = families.load(config.family).weight_map(config).rules
        columns = {rule.target: rule.shapes[0][-1] for rule in rules if rule.target.endswith(".weight")}
        vectors = [CHANNEL_MAXIMA, CHANNEL_MEANS, *(f"/{name}" for name in SMOOTHINGS)]
        for name, value in self.tensors.items():
            weight, ending = next(((name.removesuffix(e), e) for e in vectors if name.endswith(e)), (name, ""))
            if ending and weight.endswith(".weight") and value.shape != (columns.get(weight),):
                expected = f"{columns[weight]} channels" if weight in columns else "no such weight"
                raise InputError(
                    f"{self.folder} has {shown(name)} {list(value.shape)}, expected {expected}; calibrate this "
                    "checkpoint"
                )
        parts = [f"{layer}.attention.{part}.weight" for layer in range(config.num_layers) for part in ("qkv", "dense")]
        missing = {f"layers.{part}" for part in parts} - set(self.inputs)
        if missing or self.layers != config.num_layers:
            raise InputError(
                f"{self.folder} has numbers of {self.layers} layers, expected {config.num_layers}"
                f"{f' and {min(missing)}' if missing else ''}; calibrate this checkpoint"
            )

    def require_checkpoint(self, identity: CheckpointIdentity) -> None:
        """See that the numbers were measured on this checkpoint.

        Raises:
            InputError: they were not.
        """
        if not identity.fits_fingerprint(self.manifest["checkpoint"]):
            raise InputError(
                f"{self.folder} was measured on {self.manifest['checkpoint']['name']!r}, and {identity.folder} is "
                "another checkpoint (config.json or weights differ); calibrate this one"
            )


def _rounded(scale: float, dtype: str) -> float:
    """A scale as the program holds it."""
    if dtype == "float16":
        return float(np.maximum(np.float16(scale), np.finfo(np.float16).smallest_subnormal))
    if dtype == "bfloat16":
        bits = np.float32(scale).view(np.uint32)
        return float(((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32))
    return float(np.float32(scale))


def load_ranges(folder: Path) -> Ranges:
    """Open a folder of ranges.

    Raises:
        InputError: it is none, or was written by another version.
        CheckpointError: its files are damaged.
    """
    if not (folder / RANGES_MANIFEST).is_file():
        raise InputError(f"{folder} holds no {RANGES_MANIFEST}; give a folder that 'glm-export calibrate' wrote")
    try:
        manifest = dict(load_json(folder / RANGES_MANIFEST))
        tensors = load_file(folder / RANGES)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}; calibrate again") from error
    if manifest.get("format") != RANGES_FORMAT:
        raise InputError(
            f"{folder / RANGES_MANIFEST} has format {manifest.get('format')!r}, this version reads {RANGES_FORMAT}; "
            "calibrate again"
        )
    if isinstance(manifest.get("sizes"), dict):  # earlier versions recorded none
        require_recorded(folder / RANGES_MANIFEST, manifest, "calibrate")
    found = _problem(manifest, tensors)
    if found:
        raise CheckpointError(f"{folder} is damaged: {found}; calibrate again")
    return Ranges(folder=folder, manifest=manifest, tensors=tensors)


def _problem(manifest: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """What no calibration writes: nothing, or the first."""
    for key, kind in {**MANIFEST_KINDS, **LATER_KINDS}.items():
        if not isinstance(manifest.get(key), kind):
            return f"{RANGES_MANIFEST} has {key} = {shown(manifest.get(key))}"
    if not all(isinstance(manifest["checkpoint"].get(key), str) for key in ("name", "fingerprint")):
        return f"{RANGES_MANIFEST} does not name the checkpoint"
    for name, value in tensors.items():
        ending = next((ending for ending in SHAPES if name.endswith(ending)), None)
        wanted = SHAPES[ending] if ending is not None else (value.size,)
        if value.dtype not in (np.float32, np.float64) or value.shape != (wanted or (value.size,)):
            return f"{shown(name)} is {value.dtype} {list(value.shape)}"
        if not np.isfinite(value[1:] if ending in CHOSEN else value).all():
            return f"{shown(name)} holds NaN or infinity"
        if (value <= 0 if ending in POSITIVE or ending is None else value < 0).any():
            return f"{shown(name)} holds {value.min():g}"
    ranges = Ranges(folder=Path(), manifest=dict(manifest), tensors=tensors)
    # Before anything is listed for each of them.
    if ranges.layers != manifest["layers"]:
        return f"it has {ranges.layers} of {shown(manifest['layers'])} layers"
    clipped = [*ranges.inputs, *(kv_name(layer, kind) for layer in range(manifest["layers"]) for kind in (KEY, VALUE))]
    missing = next((name for name in clipped if name + THRESHOLDS not in tensors), None)
    return f"{shown(missing + THRESHOLDS)} is missing" if missing is not None else ""
