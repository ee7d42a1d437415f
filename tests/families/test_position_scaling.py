"""Rotary tables under every kind of scaling, against transformers' own parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Glm4Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from glm_export import families
from glm_export.graphs.patterns.rotary import rotary_tables
from tests.helpers.tiny import tiny_values

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 8.0},
    "yarn": YARN,
    "yarn by its old name": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "the card of GLM-4-0414": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn with betas": YARN | {"beta_fast": 16, "beta_slow": 2},
    "yarn with an attention factor": YARN | {"attention_factor": 1.5},
    "yarn with mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4},
    "yarn, not truncated": YARN | {"truncate": False},
    "yarn by a little": YARN | {"factor": 1.0},
}


def theirs(scaling: dict[str, Any], positions: int, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines by transformers 4.57."""
    values = tiny_values("glm4", head_dim=128) | changes
    config = Glm4Config(**values | {"rope_scaling": dict(scaling)})
    config.rope_scaling.setdefault("rope_type", scaling.get("type"))
    frequency, factor = ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](config, torch.device("cpu"))
    angles = torch.outer(torch.arange(positions).float(), frequency)
    return angles.cos() * factor, angles.sin() * factor


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("grouped", [False, True])
def test_tables(name: str, grouped: bool) -> None:
    scaling = SCALINGS[name]
    values = tiny_values("glm4", head_dim=128)
    if grouped:
        base, partial = values.pop("rope_theta"), values.pop("partial_rotary_factor")
        values["rope_parameters"] = scaling | {"rope_theta": base, "partial_rotary_factor": partial}
    else:
        values["rope_scaling"] = scaling
    config = families.read_config(values)
    original = scaling.get("original_max_position_embeddings", 256)
    assert config.max_positions == int(scaling["factor"] * original)  # the context follows
    found = rotary_tables(config.rotary, 256)
    for ours, expected in zip(found, theirs(scaling, 256), strict=True):
        assert (ours - expected).abs().max() < 3e-5
    if scaling["factor"] > 1:
        plain = rotary_tables(families.read_config(tiny_values("glm4", head_dim=128)).rotary, 256)
        assert (found[0] - plain[0]).abs().max() > 0.1  # without the scaling they are others


def test_dynamic_scaling_ends_at_the_original_context() -> None:
    config = families.read_config(tiny_values("glm4", rope_scaling={"rope_type": "dynamic", "factor": 4.0}))
    assert config.max_positions == 256
    assert config.rotary == families.read_config(tiny_values("glm4")).rotary
    assert "dynamic NTK" in " ".join(config.notes)


def test_scaling_survives_the_manifest() -> None:
    config = families.read_config(tiny_values("glm4", rope_scaling=YARN))
    assert type(config).from_json(config.to_json()) == config
    assert config.rotary.yarn is not None
