"""Positions beyond what a model was trained on: ``rope_scaling`` of transformers 4, ``rope_parameters`` of 5.

Source: ``modeling_rope_utils.py`` of transformers; YaRN, arXiv:2309.00071.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from glm_export.errors import SHOWN_CHARACTERS, ConfigError, cut, shown
from glm_export.families._keys import ConfigKeys
from glm_export.spec.config import BASES, SCALES, SIZES, YarnScaling, is_number

DEFAULT_BASE = 10000.0
MOST_OF = {
    "rope_theta": BASES[1],
    "partial_rotary_factor": 1,
    "original_max_position_embeddings": SIZES["max_positions"],
    **dict.fromkeys(("factor", "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"), SCALES[1]),
}
KNOWN = "default, linear, dynamic and yarn"
WITHOUT_MEANING = {
    "mrope_section": "divides channels among positions in an image; a text's three positions are equal",
    "mrope_interleaved": "as mrope_section",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionScaling:
    """What ``config.json`` says of rotary positions. ``context``: in tokens, the scaling counted in.

    ``note``: a line on what is made of it that the file does not say.
    """

    base: float
    partial: float
    context: int
    position_scale: float = 1.0
    yarn: YarnScaling | None = None
    note: str = ""


def read_position_scaling(keys: ConfigKeys, *, partial: float, context: int) -> PositionScaling:
    """Rotary base, partial factor and scaling, from flat keys or grouped ones.

    Args:
        keys: of the config.
        partial: what of a head is rotated where no key says so.
        context: ``max_position_embeddings``.

    Raises:
        ConfigError: a kind of scaling, or a parameter of one, that is not known; or two groups that disagree.
    """
    flat = {"rope_theta": keys.number("rope_theta", DEFAULT_BASE)}
    flat["partial_rotary_factor"] = keys.number("partial_rotary_factor", partial)
    values = flat | _grouped(keys)
    kind = values.pop("rope_type", values.pop("type", "default"))
    values.pop("type", None)
    base, partial = (_number(values, key) for key in flat)
    for key in WITHOUT_MEANING:
        values.pop(key, None)
    scaling = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if scaling is None:
        raise ConfigError(f"config.json has rope_type {shown(kind)}; {KNOWN} are supported")
    result = scaling(values, base, partial, context)
    if values:
        strange = cut(", ".join(sorted(values)), SHOWN_CHARACTERS)
        raise ConfigError(
            f"config.json has rope_parameters or rope_scaling of type {kind!r} with {strange}, which could change "
            "numbers and is not known there; remove it if it is inert, or report it"
        )
    return result


def _grouped(keys: ConfigKeys) -> dict[str, Any]:
    groups = {name: keys.optional(name, {}) for name in ("rope_parameters", "rope_scaling")}
    for name, group in groups.items():
        if not isinstance(group, dict):
            raise ConfigError(
                f"config.json has {name} = {shown(group)}, expected an object with rope_type and its parameters"
            )
    new, old = ({key: value for key, value in group.items() if value is not None} for group in groups.values())
    differing = [key for key in new.keys() & old.keys() if new[key] != old[key]]
    if differing:
        key = min(differing)
        raise ConfigError(
            f"config.json says {key} {shown(new[key])} in rope_parameters and {shown(old[key])} in rope_scaling; "
            "keep the one that is meant"
        )
    return old | new


def _number(values: dict[str, Any], key: str, default: float | None = None) -> float:
    value = values.pop(key, default)
    if not is_number(value) or not 0 <= value <= MOST_OF[key]:
        raise ConfigError(
            f"config.json has {key} = {shown(value)} among its rope_parameters, expected a number up to "
            f"{MOST_OF[key]:g}"
        )
    return float(value)


def _whole(values: dict[str, Any], key: str, default: int) -> int:
    value = values.get(key, default)
    if is_number(value, float) and value != int(value):
        raise ConfigError(f"config.json has {key} = {shown(value)} among its rope_parameters, expected a whole number")
    return int(_number(values, key, default))


def _default(values: dict[str, Any], base: float, partial: float, context: int) -> PositionScaling:
    # transformers reads none of these without a type that scales.
    for key in ("factor", "original_max_position_embeddings"):
        if values.get(key) in (1, 1.0, context):
            values.pop(key)
    return PositionScaling(base=base, partial=partial, context=context)


def _linear(values: dict[str, Any], base: float, partial: float, context: int) -> PositionScaling:
    factor, original = _number(values, "factor"), _whole(values, "original_max_position_embeddings", context)
    if factor < 1:
        raise ConfigError(f"config.json scales positions by a factor of {factor:g}; expected 1 or more")
    return PositionScaling(base=base, partial=partial, context=int(factor * original), position_scale=factor)


def _dynamic(values: dict[str, Any], base: float, partial: float, context: int) -> PositionScaling:
    factor, original = _number(values, "factor"), _whole(values, "original_max_position_embeddings", context)
    note = (
        f"dynamic NTK scaling by {factor:g} begins behind {original} tokens, where frequencies change with the length "
        "of the text; a program has one table of them, and its context ends there"
    )
    return PositionScaling(base=base, partial=partial, context=original, note=note)


def _yarn(values: dict[str, Any], base: float, partial: float, context: int) -> PositionScaling:
    original = _whole(values, "original_max_position_embeddings", context)
    factor = _number(values, "factor")
    mscale, all_dim = _number(values, "mscale", 0), _number(values, "mscale_all_dim", 0)
    temperature = _temperature(factor, 1)
    if mscale and all_dim:
        temperature = _temperature(factor, mscale) / _temperature(factor, all_dim)
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool):
        raise ConfigError(f"config.json has truncate = {shown(truncate)} for YaRN, expected true or false")
    yarn = YarnScaling(
        factor=factor,
        original_positions=original,
        attention_factor=_number(values, "attention_factor", temperature),
        beta_fast=_number(values, "beta_fast", 32),
        beta_slow=_number(values, "beta_slow", 1),
        truncate=truncate,
    )
    return PositionScaling(base=base, partial=partial, context=int(factor * original), yarn=yarn)


def _temperature(factor: float, scale: float) -> float:
    """The square root of the softmax's temperature, arXiv:2309.00071, equation 22."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


_SCALINGS = {"default": _default, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn}
