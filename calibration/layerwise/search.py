"""What one layer's inputs ask of its weights: smoothing scales, and rounding that mends its own errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from glm_export.calibration.layerwise.observe import LayerObserver, Numbers, Seen, named
from glm_export.calibration.layerwise.resume import take_file_name
from glm_export.calibration.methods.awq import awq_scales, search_ratio
from glm_export.calibration.methods.gptq import gptq_round
from glm_export.calibration.methods.smoothquant import search_alpha, smoothing_scales
from glm_export.calibration.quantize import dequantize_symmetric
from glm_export.calibration.ranges import LEVELLED
from glm_export.calibration.recipe import Recipe
from glm_export.calibration.rounded_folder import INTEGERS, SCALES
from glm_export.spec.weight_formats import QMAX

SMOOTHED = ("qkv", "gate_up", "up", "down")
"""Products whose inputs are smoothed: what norms and gates make. Attention's output has no outliers to speak of."""
SEARCHED_ELEMENTS = 1 << 24
"""Of larger weights, evenly spaced rows stand for the others: errors are means over rows."""
AWQ_BITS, AWQ_BLOCK = 4, 64
SMOOTHQUANT, AWQ, ALPHA, RATIO = "/smoothquant", "/awq", "/smoothquant_alpha", "/awq_ratio"


def search_smoothing(weight_name: str, weight_NK: Tensor, seen: Seen) -> Numbers:
    """The scales SmoothQuant and AWQ choose for one product, each by the error of its own rounding on the samples.

    Args:
        weight_name: which product.
        weight_NK: its weight, any float dtype.
        seen: of its layer.

    Returns:
        Scales float32 ``[K]``, what was chosen, and the largest input after smoothing, under a ranges file's names.
        Nothing for products that are not smoothed.
    """
    if weight_name.split(".")[-2] not in SMOOTHED:
        return {}
    device = weight_NK.device
    samples_RK = seen.samples(weight_name).to(device)
    channels = seen.inputs[weight_name].channels
    maxima_K = channels.maxima_K.float().to(device)
    some_nK = weight_NK[:: -(-weight_NK.numel() // SEARCHED_ELEMENTS)]
    # First: it refuses products that are all zero.
    choice = named(weight_name, partial(search_alpha, samples_RK, maxima_K, some_nK))
    weight_maxima_K = weight_NK.abs().amax(dim=0).float()
    smooth_K = smoothing_scales(maxima_K, weight_maxima_K, choice.alpha)
    means_K = (channels.sums_K / max(1, channels.count)).float().to(device)
    ratio = search_ratio(samples_RK, means_K, some_nK, bits=AWQ_BITS, block=AWQ_BLOCK)
    awq_K = awq_scales(means_K, ratio.ratio)
    numbers: Numbers = {
        weight_name + ALPHA: np.array([np.nan if choice.alpha is None else choice.alpha, choice.error], np.float32),
        weight_name + RATIO: np.array([ratio.ratio, ratio.error], np.float32),
    }
    for kind, scales_K in ((SMOOTHQUANT, smooth_K), (AWQ, awq_K)):
        numbers[weight_name + kind] = scales_K.cpu().numpy()
        numbers[weight_name + kind + LEVELLED] = (maxima_K / scales_K).amax().reshape(1).cpu().numpy()
    return numbers


def round_layer(module: nn.Module, observer: LayerObserver, recipe: Recipe, path: Path) -> None:
    """Round a layer's products by GPTQ, write the integers, and leave the layer with the rounded weights.

    Args:
        module: the layer; its weights are replaced.
        observer: with Gram matrices.
        recipe: says bits and blocks.
        path: the file to write.
    """
    form = recipe.explicit
    assert form is not None
    kept: dict[str, Tensor] = {}
    for name in list(observer.grams):
        linear = module.get_submodule(name.removeprefix(f"{observer.prefix}.").removesuffix(".weight"))
        if recipe.excludes(name) is not None:
            continue
        assert isinstance(linear, nn.Linear)
        gram = observer.grams.pop(name)
        rounding = partial(gptq_round, linear.weight, gram.gram_KK, qmax=QMAX[form.dtype], block=form.block)
        integers, scales = named(name, rounding)
        kept[name + INTEGERS], kept[name + SCALES] = integers.cpu(), scales.cpu()
        rounded_NK = dequantize_symmetric(integers, scales, block=form.block)
        linear.weight = nn.Parameter(rounded_NK.to(linear.weight.dtype), requires_grad=False)
    unfinished = path.with_suffix(".partial")
    save_file(kept, unfinished)
    take_file_name(unfinished, path)
