"""The reference model made to compute as a quantized program does: rounded inputs, rounded keys and values.

Weights are rounded where the model is loaded; here are the parts that happen while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from glm_export.calibration.quantization import Quantization
from glm_export.calibration.quantize import fake_quantize, round_each_token, round_float8
from glm_export.graphs.patterns.rotary import Rotation
from glm_export.modeling import Attention, Decoder
from glm_export.spec.weight_formats import WeightFormats, expert_stacks

Rounding = Callable[[Tensor], Tensor]


def simulate(model: Decoder, quantization: Quantization, formats: Mapping[str, WeightFormats]) -> None:
    """Round what a model's products read, and what its layers keep, in place.

    Args:
        model: with the weights the quantized program has.
        quantization: the numbers.
        formats: of the weights that are quantized.
    """
    divisors = quantization.divisors(model.config)
    for name in quantization.smoothing.keys() | formats.keys() - set(expert_stacks(model.config)):
        module = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(module, nn.Linear):
            steps = _steps(name, quantization, formats, divisors.get(name) is not None)
            if steps:
                module.register_forward_pre_hook(partial(_enter, steps))
    for attention, scales in zip(_attentions(model), quantization.kv_scales, strict=False):
        _keep_rounded(attention, *scales)


def _steps(
    name: str, quantization: Quantization, formats: Mapping[str, WeightFormats], divided: bool
) -> list[Rounding]:
    """What happens to a product's input, in order."""
    steps: list[Rounding] = []
    if divided:
        inverse_K = 1 / torch.from_numpy(quantization.smoothing[name])
        steps.append(partial(torch.mul, inverse_K))
    dtype = formats[name].decode.activation_dtype if name in formats else None
    if dtype is not None:
        rounding = round_float8 if dtype.startswith("float8") else fake_quantize
        steps.append(partial(rounding, scale=quantization.input_scales[name]))
    if name in formats and formats[name].decode.rounds_each_token:
        steps.append(round_each_token)
    return steps


def _enter(steps: list[Rounding], _: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    (x,) = given
    dtype = x.dtype
    for step in steps:
        x = step(x)
    return (x.to(dtype),)


def _keep_rounded(attention: Attention, key_scale: float, value_scale: float) -> None:
    """Round keys and values once they are rotated, which is how a cache of integers keeps them."""
    rotated_qkv = attention.rotated_qkv

    def rounded_qkv(qkv_BSC: Tensor, rotary: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        q_BSC, k_BSC, v_BSC = rotated_qkv(qkv_BSC, rotary)
        return q_BSC, fake_quantize(k_BSC, key_scale), fake_quantize(v_BSC, value_scale)

    # On this module alone: the reference model itself knows nothing of rounding.
    attention.rotated_qkv = rounded_qkv  # type: ignore[method-assign]


def _attentions(model: Decoder) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]
