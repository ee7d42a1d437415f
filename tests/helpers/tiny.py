"""Small random checkpoints of every family, in the publishers' layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from glm_export import families


def random_tensors(
    values: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random weights under the official names."""
    config = families.read_config(values)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for rule in families.load(config.family).weight_map(config).rules:
        for name, shape in zip(rule.sources, rule.shapes, strict=True):
            scale, shift = (0.1, 1.0) if "norm" in name and name.endswith("weight") else (0.2, 0.0)
            tensors[name] = (torch.randn(shape, generator=generator) * scale + shift).to(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    values: dict[str, Any],
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    layout: str = "model.safetensors",
    shards: int = 1,
) -> Path:
    """Write ``config.json`` and weights; ``layout`` is the name of the one-file form."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    tensors = tensors if tensors is not None else random_tensors(values)
    stem, ending = layout.split(".")
    save = save_file if ending == "safetensors" else torch.save
    if shards == 1:
        save(tensors, folder / layout)
        return folder
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        part = {name: tensors[name] for name in names[index::shards]}
        file = f"{stem}-{index + 1:05d}-of-{shards:05d}.{ending}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{layout}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tiny_values(family: str, **changes: Any) -> dict[str, Any]:
    """The family's small ``config.json``, changed."""
    return families.load(family).TINY | changes
