"""What is asked of an export, settled against the checkpoint before work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from glm_export.calibration import recipes
from glm_export.calibration.recipes import RecipeName
from glm_export.errors import InputError
from glm_export.graphs import dialects
from glm_export.graphs.dialects import DialectName
from glm_export.spec.config import GlmConfig
from glm_export.spec.dtypes import DTYPES, DTypeName
from glm_export.spec.option import described, flag, listed, merged, require_known, takes
from glm_export.spec.signature import (
    HIDDEN_STATES_KINDS,
    KV_CACHE_DTYPES,
    LOGITS_KINDS,
    Cache,
    HiddenStatesKind,
    KvCacheDtype,
    LogitsKind,
    Signature,
    decoder_signature,
)
from glm_export.spec.weight_formats import BITS, BLOCKS

if TYPE_CHECKING:  # the command line reads the options without loading torch
    from glm_export.calibration.quantization import Quantization
    from glm_export.calibration.ranges import Ranges
    from glm_export.calibration.recipe import Recipe
    from glm_export.checkpoints.checkpoint import Checkpoint
    from glm_export.graphs.dialect import Dialect

# What a static cache holds unless told otherwise: a 128k context would reserve gigabytes nobody asked for.
MAX_LENGTH = 4096


class ExportKeywords(TypedDict, total=False):
    """The fields of :class:`ExportOptions`, as keywords."""

    dialect: DialectName
    dtype: DTypeName
    recipe: RecipeName | None
    ranges: Path | str | Ranges | None
    logits: LogitsKind | None
    max_length: int | None
    block_size: int | None
    head_bits: int | None
    prefill_memory: float | None
    kv_cache_dtype: KvCacheDtype | None
    hidden_states: HiddenStatesKind | None
    excluded: Mapping[str, str] | None


@listed
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a checkpoint is exported. None leaves a choice to the dialect, the model, or to be as it is."""

    dialect: str = field(default=dialects.CANONICAL, metadata=described("Target.", choices=dialects.names))
    dtype: str = field(default="float32", metadata=described("Of weights and cache.", choices=DTYPES))
    recipe: str | None = field(
        default=None,
        metadata=described(
            "Quantize; `glm-export recipes` lists them. keep: as a quantized source is.",
            choices=lambda: [*recipes.names(), recipes.KEEP],
        ),
    )
    ranges: Path | str | Ranges | None = field(
        default=None, metadata=described("What `calibrate` measured: recipes that need it, and safe float16.")
    )
    logits: str | None = field(
        default=None,
        metadata=described(
            "Of all tokens, the last, or the last 17, which --speculate reads; default: the dialect's.",
            choices=LOGITS_KINDS,
        ),
    )
    max_length: int | None = field(
        default=None,
        metadata=described(
            "Tokens a static cache holds (dialect tensorrt); a decode step reads all of them, filled or not.", least=1
        ),
    )
    block_size: int | None = field(
        default=None,
        metadata=described(
            "Weights that share a scale (recipes in blocks): 16, 32, 64, 128 or 256. More are faster and coarser.",
            least=BLOCKS[0],
            most=BLOCKS[-1],
        ),
    )
    head_bits: int | None = field(
        default=None,
        metadata=described("Of the last product, 4 or 8 (recipes in blocks).", least=BITS[0], most=BITS[-1]),
    )
    prefill_memory: float | None = field(
        default=None,
        metadata=described(
            "Gigabytes of weights kept a second time, in a form for prompts, at most (recipes that have one)."
        ),
    )
    kv_cache_dtype: str | None = field(
        default=None,
        metadata=described(
            "Keep keys and values as int8, besides what the recipe does; needs --ranges.", choices=KV_CACHE_DTYPES
        ),
    )
    hidden_states: str | None = field(
        default=None,
        metadata=described(
            "Also put out what the head reads of every token (last), or what each layer reads, too (all): embeddings.",
            choices=HIDDEN_STATES_KINDS,
        ),
    )
    excluded: Mapping[str, str] | None = field(
        default=None, metadata=described("Linear weights to leave in float besides the recipe's, and why.")
    )


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


def open_ranges(source: Path | str | Ranges | None) -> Ranges | None:
    """A folder that ``calibrate`` wrote, opened; None stays None.

    Raises:
        GlmExportError: see :func:`glm_export.calibration.ranges.load_ranges`.
    """
    if not isinstance(source, str | Path):
        return source
    from glm_export.calibration.ranges import load_ranges

    return load_ranges(Path(source))


@takes(ExportOptions)
def resolve_options(
    source: Checkpoint | GlmConfig, options: ExportOptions | None = None, **keywords: Unpack[ExportKeywords]
) -> ResolvedOptions:
    """Fill in what was left open, and refuse what does not go together.

    A static cache holds the model's context unless told otherwise, at most :data:`MAX_LENGTH`.

    Args:
        source: the checkpoint; where the recipe is not ``keep``, its config says enough.
        options: what is asked for; None is the defaults.
        **keywords: options, in place of those.

    Raises:
        InputError: an option is unknown, or does not fit the others.
    """
    options = merged(ExportOptions, options, keywords)
    config = source if isinstance(source, GlmConfig) else source.config
    dtype, ranges = options.dtype, open_ranges(options.ranges)
    if ranges is not None:
        ranges.require_shapes(config)
    dialect = dialects.load(options.dialect)
    require_known(options, "dtype", "logits", "hidden_states", "kv_cache_dtype")
    logits, cache = options.logits or dialect.logits(config), dialect.cache(config)
    if logits == "recent" and not dialect.can.recent_logits:
        able = " or ".join(each.name for each in dialects.every() if each.can.recent_logits)
        raise InputError(f"--logits recent needs --dialect {able}; found dialect {dialect.name}; give --logits all")
    option = flag(ExportOptions, "max_length")
    if options.max_length is not None and cache is not Cache.STATIC:
        raise InputError(f"dialect {dialect.name} has no cache of fixed size; leave {option} out")
    length, least = options.max_length or min(MAX_LENGTH, config.max_columns), config.prefix_length
    if not least < length <= config.max_columns:
        raise InputError(f"{option} must be {least + 1} to {config.max_columns}, the model's context; found {length}")
    recipe = options.recipe or (recipes.KEYS_AND_VALUES if options.kv_cache_dtype is not None else None)
    quantization = _quantization(source, recipe, options, ranges) if recipe is not None else None
    if recipe is None:
        _require_blocks(None, None, options)
    if options.prefill_memory is not None:
        quantization = _within(quantization, config, options.prefill_memory)
    signature = decoder_signature(
        config, dtype=dtype, logits=logits, cache=cache, max_length=length,
        cache_dtype="int8" if quantization is not None and quantization.kv_scales else None,
        hidden_states=options.hidden_states,
    )  # fmt: skip
    return ResolvedOptions(
        dialect=dialect, dtype=dtype, logits=logits, signature=signature, quantization=quantization,
        maxima=_maxima(config, dtype, ranges, quantization),
    )  # fmt: skip


def dialects_of(recipe: Recipe) -> list[str]:
    """Names of the dialects that can carry a recipe, in order."""
    return [dialect.name for dialect in dialects.every() if recipe.fits(dialect.can)]


def _quantization(
    source: Checkpoint | GlmConfig, name: str, options: ExportOptions, ranges: Ranges | None
) -> Quantization:
    from glm_export.calibration.quantization import Quantization

    kept = None
    if name == recipes.KEEP:
        # Imported when asked for: options are read without numpy.
        from glm_export.calibration.keep import keep

        if isinstance(source, GlmConfig):
            raise InputError(
                f"--recipe {recipes.KEEP} needs the checkpoint whose integers are kept; found its config alone"
            )
        kept = keep(source, options.excluded)
    recipe = kept.recipe if kept is not None else _with_blocks(recipes.load(name), options, ranges)
    can, said = dialects.load(options.dialect).can, name
    if options.kv_cache_dtype is not None:
        option = f"{flag(ExportOptions, 'kv_cache_dtype')} {options.kv_cache_dtype}"
        if kept is not None:
            raise InputError(f"--recipe {name} keeps a source as it is, and {option} rounds more; leave one out")
        recipe, said = recipe.with_int8_cache(), f"{name} with {option}"
    for option, value, known in (
        ("dialect", options.dialect, dialects_of(recipe)),
        ("dtype", options.dtype, sorted(recipe.dtypes_in(can))),
    ):
        if value not in known:
            raise InputError(f"recipe {said} needs --{option} {' or '.join(known)}; found {option} {value}")
    carried = recipe.carried_by(can)
    _require_blocks(name, carried, options)
    if kept is not None:
        return replace(kept, recipe=carried)
    if ranges is not None and carried.smoothing_with_ranges is not None:
        carried = replace(carried, smoothing=carried.smoothing_with_ranges)
    if carried.needs == "nothing":
        return Quantization(recipe=carried, excluded=options.excluded or {})
    if ranges is None:
        own = f" --recipe {name}" if carried.rounding != "nearest" else ""
        raise InputError(f"recipe {said} needs {carried.needs}; run 'glm-export calibrate{own}' and give --ranges")
    return ranges.quantization(carried, options.dtype, options.excluded)


def _with_blocks(recipe: Recipe, options: ExportOptions, ranges: Ranges | None) -> Recipe:
    """In the blocks that are asked for, or that calibration has rounded weights in."""
    block_size = options.block_size
    if ranges is not None and recipe.rounding == "gptq":
        block_size = ranges.rounded_in or (recipe.explicit.block if recipe.explicit is not None else None)
        if options.block_size not in (None, block_size):
            option = flag(ExportOptions, "block_size")
            raise InputError(
                f"{ranges.folder} has weights rounded in blocks of {block_size}, {option} {options.block_size} is "
                "asked for; leave it out, or give it to 'glm-export calibrate'"
            )
    return recipe.with_blocks(block_size, options.head_bits)


def _require_blocks(name: str | None, carried: Recipe | None, options: ExportOptions) -> None:
    """See that there are blocks where something is asked of them."""
    asked = next((name for name in ("block_size", "head_bits") if getattr(options, name) is not None), None)
    layers = carried.layers if carried is not None and name != recipes.KEEP else None
    if asked is None or (layers is not None and layers.scale_block is not None):
        return
    able = ", ".join(recipe.name for recipe in map(recipes.load, recipes.names()) if recipe.in_blocks)
    raise InputError(
        f"{flag(ExportOptions, asked)} is for recipes in blocks ({able}), where the dialect stores them so; "
        f"found {name or 'no recipe'} in dialect {options.dialect}: leave it out, or take one of them"
    )


def _within(quantization: Quantization | None, config: GlmConfig, gigabytes: float) -> Quantization:
    """As many layers with a second form as fit; each reads prompts as much faster as the next."""
    recipe, option = quantization.recipe if quantization is not None else None, flag(ExportOptions, "prefill_memory")
    if quantization is None or recipe is None or recipe.prompt is None:
        able = ", ".join(recipe.name for recipe in map(recipes.load, recipes.names()) if recipe.prompt is not None)
        raise InputError(f"{option} is for recipes with a form for prompts ({able}); leave it out, or take one of them")
    if not gigabytes >= 0:
        raise InputError(f"{option} should be gigabytes, 0 or more; found {gigabytes}")
    # Imported when asked for: options are read without torch.
    from glm_export.exporter.plan import prompt_form_bytes

    left, layers = gigabytes * 1e9, 0
    for needed in prompt_form_bytes(config, quantization):
        left -= needed
        if left < 0:
            break
        layers += 1
    return replace(quantization, prompt_layers=layers)


def _maxima(
    config: GlmConfig, dtype: str, ranges: Ranges | None, quantization: Quantization | None
) -> Mapping[str, float]:
    # In every other dtype whatever calibration measured fits.
    if ranges is None or dtype != "float16":
        return {}
    from glm_export.calibration.float16_range import activations_beyond_float16

    return activations_beyond_float16(ranges, config, quantization)
