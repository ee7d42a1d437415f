"""Which weights of a folder are quantized, and how: by the tensors that lie there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glm_export.checkpoints.quantized import awq, bitsandbytes, block_fp8, compressed_tensors, gptq, official
from glm_export.checkpoints.quantized.module import QuantizationConfig, QuantizedModule
from glm_export.checkpoints.sources import StoredTensor, TensorSource
from glm_export.errors import CheckpointError
from glm_export.model_folder import inside, read_json
from glm_export.spec.weight_map import WeightMap

# official before compressed-tensors, whose scales per row have two axes.
SCHEMES = tuple(scheme.SCHEME for scheme in (gptq, awq, bitsandbytes, block_fp8, official, compressed_tensors))
PARTS = (
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight",
    "weight_scale",
    "weight_scale_inv",
    "weight_packed",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    *bitsandbytes.STATES,
    "SCB",
    "weight_format",
)
"""What follows a layer's name in the files."""
OF_ACTIVATIONS = (
    "input_scale",
    "input_zero_point",
    "input_scale_inv",
    "input_scale_ub",
    "activation_scale",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
    "q_scale",
    "prob_scale",
)
"""Scales of what flows between weights, which no weight needs."""
OLDER_CONFIGS = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside ``config.json`` that AutoGPTQ and AutoAWQ wrote first."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundQuantization:
    """The sources, quantized weights among them as what they stand for, and a line for each thing worth knowing."""

    sources: dict[str, TensorSource]
    notes: tuple[str, ...] = ()


def find_quantized(
    tensors: Mapping[str, StoredTensor], weight_map: WeightMap, folder: Path, values: Mapping[str, Any]
) -> FoundQuantization:
    """Put one source in place of the tensors that stand for a quantized weight.

    Args:
        tensors: by official name.
        weight_map: which weights are expected, in which shape.
        folder: of the model; may hold an older kind of config.
        values: ``config.json``.

    Raises:
        CheckpointError: what a scheme needs is missing or does not fit, or the scheme is none that is read.
    """
    config = _config(folder, values)
    sources: dict[str, TensorSource] = dict(tensors)
    notes, counts = [], Counter[str]()
    methods: set[str] = set()
    for module in _modules(tensors, weight_map, config):
        module.require_axes()
        scheme = next((scheme for scheme in SCHEMES if scheme.recognises(module)), None)
        if scheme is None:
            continue
        for suffix in module.tensors:
            del sources[f"{module.name}.{suffix}"]
        weight = scheme.dequantized(module)
        sources[f"{module.name}.weight"] = weight
        counts[weight.kind] += 1
        methods |= set(scheme.methods)
        notes += _without_unexpected_bias(sources, module, weight_map)
    if not counts:
        return FoundQuantization(sources=sources, notes=_of_floats(sources, weight_map, folder, config))
    told = " and ".join(f"{count} weights are {kind}" for kind, count in counts.items())
    notes.insert(0, f"{told} in the files: worked out in float32 where they are read, and rounded once")
    if config.told_by and config.method not in methods:
        notes.append(f"{config.told_by} says {config.method or 'no method'}: the tensors decide")
    notes += _of_activations(sources, config, counts)
    return FoundQuantization(sources=sources, notes=tuple(dict.fromkeys(notes)))


def _config(folder: Path, values: Mapping[str, Any]) -> QuantizationConfig:
    found = values.get("quantization_config")
    if not isinstance(found, Mapping) and isinstance(values.get("text_config"), Mapping):
        found = values["text_config"].get("quantization_config")
    if isinstance(found, Mapping) and found:
        method = str(found.get("quant_method", "")).lower()
        return QuantizationConfig(told_by="quantization_config of config.json", method=method, values=found)
    if values.get("quantization_bit"):
        return QuantizationConfig(told_by="quantization_bit of config.json", method="quantization_bit", values=values)
    for name, method in OLDER_CONFIGS.items():
        if inside(folder, name).is_file():
            older = read_json(folder, name)
            return QuantizationConfig(told_by=name, method=str(older.get("quant_method", method)).lower(), values=older)
    return QuantizationConfig()


def _modules(
    tensors: Mapping[str, StoredTensor], weight_map: WeightMap, config: QuantizationConfig
) -> Iterator[QuantizedModule]:
    """Every expected matrix that lies there as something else than floats."""
    parts: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    expected = weight_map.expected
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in PARTS if name.endswith("." + suffix)), None)
        if suffix is not None:
            parts[name.removesuffix("." + suffix)][suffix] = tensor
    for module, held in parts.items():
        shape = expected.get(f"{module}.weight", ())
        plain = held.keys() == {"weight"} and held["weight"].dtype in FLOATS
        if len(shape) == 2 and not plain:
            yield QuantizedModule(name=module, shape=shape, tensors=held, config=config)


def _without_unexpected_bias(
    sources: dict[str, TensorSource], module: QuantizedModule, weight_map: WeightMap
) -> list[str]:
    """GPTQ's tools give every layer a bias, of zeros where the model has none."""
    name = f"{module.name}.bias"
    bias = sources.get(name)
    if bias is None or name in weight_map.expected or bias.rows(0, bias.shape[0]).any():
        return []
    del sources[name]
    return ["biases of zeros left aside where the model has none"]


def _of_activations(
    sources: dict[str, TensorSource], config: QuantizationConfig, counts: Counter[str]
) -> Iterator[str]:
    """Leave aside what serves activations; LLM.int8 rounds them by itself."""
    left = [name for name in sources if name.rpartition(".")[2] in OF_ACTIVATIONS]
    for name in left:
        del sources[name]
    rounded = compressed_tensors.rounded_activations(config) or "activation_scheme" in config.values
    if rounded or left or f"int8 ({bitsandbytes.LABEL})" in counts:
        yield "the source rounds activations too: they stay in float here, only weights are as the source has them"


def _of_floats(
    sources: Mapping[str, TensorSource], weight_map: WeightMap, folder: Path, config: QuantizationConfig
) -> tuple[str, ...]:
    """Nothing is quantized, or in a way that nobody here knows."""
    if not config.told_by:
        return ()
    method = f" ({config.method})" if config.method and config.method != "quantization_bit" else ""
    strange = next(_strange(sources, weight_map), None)
    if strange is not None:
        known = ", ".join(scheme.label for scheme in SCHEMES)
        raise CheckpointError(
            f"{folder} is quantized as {config.told_by}{method} says, in tensors of no scheme that is read ({known}): "
            f"{strange}; convert it to one of these, or take the float model"
        )
    return (f"{config.told_by}{method} ignored: every weight in the files is float",)


def _strange(sources: Mapping[str, TensorSource], weight_map: WeightMap) -> Iterator[str]:
    """Weights of another kind than float, and what lies in place of one."""
    expected = weight_map.expected
    for name, source in sources.items():
        in_place = f"{name.rpartition('.')[0]}.weight"
        if name in expected and len(source.shape) > 1 and source.dtype not in FLOATS:
            yield f"{name} is {source.kind}"
        elif name not in expected and in_place in expected and in_place not in sources:
            yield f"{name} lies in place of {in_place}"
