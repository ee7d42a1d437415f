"""Which tensors are too large for float16, judged by what calibration measured."""

from __future__ import annotations

from collections.abc import Mapping

from glm_export.calibration.quantization import Quantization
from glm_export.calibration.ranges import CHANNEL_MAXIMA, KEY, LEVELLED, VALUE, Ranges, kv_name
from glm_export.errors import InputError
from glm_export.spec.config import GlmConfig
from glm_export.spec.weight_formats import HEAD

FLOAT16_MAX = 65504.0
HEADROOM = 2.0
SHOWN_PLACES = 4
LOGITS_PLACE = HEAD.removesuffix(".weight")
# What the last norm and the head are given and return together, measured as the places it is anyway.
ENDS = ("input", "model")


def beyond_float16(ranges_maxima: Mapping[str, float], headroom: float = HEADROOM) -> dict[str, float]:
    """The places whose values float16 may not hold, and the largest magnitude seen there.

    A corpus shows a lower bound of what other text can reach: so a place counts as soon as its maximum times
    ``headroom`` exceeds 65504, the largest float16.

    Args:
        ranges_maxima: the largest magnitude of each tensor by place, as :meth:`Ranges.maxima` gives it.
        headroom: how much larger than the corpus other text may be.

    Raises:
        InputError: the headroom is below 1.
    """
    if not headroom >= 1:
        raise InputError(f"headroom is a factor of at least 1; found {headroom}")
    return {place: largest for place, largest in ranges_maxima.items() if largest * headroom > FLOAT16_MAX}


def summary(overflowing: Mapping[str, float]) -> str:
    """One line for people, the largest first: ``3 tensors exceed float16's 65504: layers.1.mlp.down.input 81,234 …``.

    Tensors that only their headroom takes beyond 65504 are said to come close.
    """
    if not overflowing:
        return "every tensor fits float16"
    ordered = sorted(overflowing.items(), key=lambda item: -item[1])
    beyond = sum(largest > FLOAT16_MAX for largest in overflowing.values())
    verb = "exceed" if beyond == len(ordered) else "come close to" if not beyond else "exceed or come close to"
    tensors = f"{len(ordered)} tensors" if len(ordered) != 1 else "1 tensor"
    if len(ordered) == 1:
        verb = verb.replace("exceed", "exceeds").replace("come ", "comes ")
    shown = ", ".join(f"{place} {largest:,.0f}" for place, largest in ordered[:SHOWN_PLACES])
    more = f" and {len(ordered) - SHOWN_PLACES} more" if len(ordered) > SHOWN_PLACES else ""
    return f"{tensors} {verb} float16's {FLOAT16_MAX:.0f}: {shown}{more}"


def activations_beyond_float16(
    ranges: Ranges, config: GlmConfig, quantization: Quantization | None = None
) -> dict[str, float]:
    """The places a float16 program must keep in float32.

    Smoothing that is folded into parameters changes what they make: inputs of smoothed products count with the maximum
    after it. All else, the rows of ``gate_up`` that were divided among it, keeps the maximum from before.

    Args:
        ranges: what was measured.
        config: the sizes.
        quantization: what the program is quantized with.

    Raises:
        InputError: logits, keys or values exceed float16 themselves; what leaves the program has no other dtype.
    """
    maxima = ranges.maxima() | _folded(ranges, config, quantization)
    for same_again in ENDS:
        maxima.pop(same_again, None)
    leaving = {LOGITS_PLACE: maxima.pop(LOGITS_PLACE, 0.0)}
    for name in (kv_name(layer, kind) for layer in range(ranges.layers) for kind in (KEY, VALUE)):
        leaving[name] = float(ranges.tensors[name + CHANNEL_MAXIMA].max())
    for place, largest in leaving.items():
        if largest > FLOAT16_MAX:
            raise InputError(
                f"{place}: float16 logits, keys and values go up to {FLOAT16_MAX:.0f}, calibration found "
                f"{largest:,.0f}; export with --dtype bfloat16"
            )
    return beyond_float16(maxima)


def _folded(ranges: Ranges, config: GlmConfig, quantization: Quantization | None) -> dict[str, float]:
    """The largest inputs of products after smoothing, where parameters took it."""
    if quantization is None:
        return {}
    divided = quantization.divisors(config)
    ending = f"/{quantization.recipe.smoothing}{LEVELLED}"
    return {
        f"{name.removesuffix('.weight')}.input": float(ranges.tensors[name + ending][0])
        for name in quantization.smoothing
        if name not in divided
    }
