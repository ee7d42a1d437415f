"""What is asked of an export, settled against the checkpoint before work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from glm_export.calibration import recipes
from glm_export.calibration.float16_range import activations_beyond_float16
from glm_export.calibration.quantization import Quantization
from glm_export.calibration.ranges import Ranges
from glm_export.calibration.recipe import Recipe
from glm_export.errors import InputError
from glm_export.graphs import dialects
from glm_export.graphs.dialect import Dialect
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import DTYPES
from glm_export.spec.signature import LOGITS_KINDS, Cache, Signature, decoder_signature

# What a static cache holds unless told otherwise: a 128k context would reserve gigabytes nobody asked for.
MAX_LENGTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedOptions:
    """What is asked for, settled against a checkpoint's config: see :func:`resolve_options`.

    ``maxima``: the largest magnitudes, by place, of what float16 may not hold; empty where nothing is known of that.
    """

    dialect: Dialect
    dtype: str
    logits: str
    signature: Signature
    quantization: Quantization | None = None
    maxima: Mapping[str, float] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe | None:
        """In the formats of the dialect; None leaves weights as they are."""
        return self.quantization.recipe if self.quantization else None


def resolve_options(
    config: GlmConfig,
    *,
    dialect: str = "onnx",
    dtype: str = "float32",
    logits: str | None = None,
    recipe: str | None = None,
    max_length: int | None = None,
    ranges: Ranges | None = None,
    excluded: Mapping[str, str] | None = None,
) -> ResolvedOptions:
    """Fill in what was left open, and refuse what does not go together.

    Args:
        config: the checkpoint's.
        dialect: a name from ``graphs/dialects``.
        dtype: one of ``DTYPES``.
        logits: one of ``LOGITS_KINDS``; None takes the dialect's own.
        recipe: a name from ``calibration/recipes``; None leaves weights as they are.
        max_length: tokens a static cache holds; None takes the context, at most :data:`MAX_LENGTH`.
        ranges: what calibration measured: where the recipe needs it, and for what float16 cannot hold.
        excluded: linear weights to leave in float besides the recipe's, and why.

    Raises:
        InputError: an option is unknown, or does not fit the others.
    """
    record = dialects.load(dialect)
    logits = logits or record.logits(config)
    for option, value, known in (("dtype", dtype, DTYPES), ("logits", logits, LOGITS_KINDS)):
        if value not in known:
            raise InputError(f"{option} {value!r} is unknown; known: {', '.join(known)}")
    cache = record.cache(config)
    if max_length is not None and cache is not Cache.STATIC:
        raise InputError(f"dialect {dialect} has no cache of fixed size; leave --max-length out")
    length = max_length or min(MAX_LENGTH, config.max_positions)
    if not 0 < length <= config.max_positions:
        raise InputError(f"--max-length must be 1 to {config.max_positions}, the model's context; found {length}")
    quantization = _quantization(recipe, dialect, dtype, ranges, excluded) if recipe is not None else None
    signature = decoder_signature(
        config, dtype=dtype, logits=logits, cache=cache, max_length=length,
        cache_dtype="int8" if quantization is not None and quantization.kv_scales else None,
    )  # fmt: skip
    # In every other dtype whatever calibration measured fits.
    maxima = (
        activations_beyond_float16(ranges, config, quantization) if ranges is not None and dtype == "float16" else {}
    )
    return ResolvedOptions(
        dialect=record, dtype=dtype, logits=logits, signature=signature, quantization=quantization, maxima=maxima
    )


def _quantization(
    name: str, dialect: str, dtype: str, ranges: Ranges | None, excluded: Mapping[str, str] | None
) -> Quantization:
    recipe = recipes.load(name)
    recipe.require_fit_for(dialect, dtype)
    carried = recipe.carried_by(dialect)
    if carried.needs == "nothing":
        return Quantization(recipe=carried, excluded=excluded or {})
    if ranges is None:
        own = f" --recipe {name}" if carried.rounding != "nearest" else ""
        raise InputError(f"recipe {name} needs {carried.needs}; run 'glm-export calibrate{own}' and give --ranges")
    return ranges.quantization(carried, dtype, excluded)
