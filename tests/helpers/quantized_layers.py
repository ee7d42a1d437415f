"""Layers packed by the schemes' own libraries, in a tiny GLM-4; see ``tests/golden/README.md``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.golden_data import GOLDEN
from tests.helpers.tiny import random_tensors, tiny_values, write_checkpoint

QUANTIZED = GOLDEN / "quantized"
CONFIGS: dict[str, dict[str, Any]] = json.loads((QUANTIZED / "configs.json").read_text())
LAYER = "model.layers.0.mlp.gate_up_proj"


def layer(case: str) -> tuple[dict[str, Tensor], Tensor]:
    """One layer's tensors by what follows its name, and what the library makes of them, ``[224, 64]``."""
    found = {
        name.removeprefix(f"{case}/"): tensor
        for name, tensor in load_file(QUANTIZED / "layers.safetensors").items()
        if name.startswith(f"{case}/")
    }
    return found, found.pop("expected")


def written(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None) -> Path:
    """A tiny GLM-4 with one layer's weight replaced."""
    values = tiny_values("glm4", **({"quantization_config": config} if config is not None else {}))
    held = random_tensors(values)
    assert held.pop(f"{LAYER}.weight").shape == (224, 64)
    return write_checkpoint(path, values, held | {f"{LAYER}.{name}": tensor for name, tensor in tensors.items()})
