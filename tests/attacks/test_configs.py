"""Every key of every family's config.json with every odd value: read as a sound config, or refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest

from glm_export import families
from glm_export.errors import ConfigError
from glm_export.families._keys import INERT_EVERYWHERE
from glm_export.spec.config import SIZES, GlmConfig

ODD: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, 1e999, 1e-300, -1, 0, 0.5, -0.0, 3e6, 10**9, 10**40, 10**400, True, False, "",
    "false", "0", "x" * 10_000, "a\nb", [], [1], [[]], [None], [True], ["a"], {}, {"a": 1}, {"rope_type": []}, None,
)  # fmt: skip
GROUPED = (
    "rope_theta", "partial_rotary_factor", "rope_type", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "mrope_section",
)  # fmt: skip
FAMILIES = families.names()


def sound(config: GlmConfig) -> bool:
    """What a config that was accepted may hold."""
    flat = asdict(config) | (asdict(config.rotary) if config.rotary else {})
    numbers = [value for value in flat.values() if isinstance(value, int | float)]
    return all(map(math.isfinite, numbers)) and all(0 < getattr(config, name) <= most for name, most in SIZES.items())


def refusal(read: Callable[[], GlmConfig]) -> str:
    """Nothing where a sound config is read; else the line."""
    try:
        config = read()
    except ConfigError as error:
        return str(error)
    assert sound(config)
    return ""


def outcome(values: dict[str, Any], family: str | None) -> str:
    """See :func:`refusal`; ``family`` None: told by the values."""
    found = refusal(lambda: families.read_config(values, family))
    assert found.isprintable()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_with_every_odd_value(family: str) -> None:
    values = families.load(family).TINY
    refused = 0
    for key in values:
        for odd in ODD:
            refused += bool(outcome(values | {key: odd}, family))
            outcome(values | {key: odd}, None)
    assert refused > len(values)


@pytest.mark.parametrize("family", ["glm4", "glm4_moe"])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "yarn"])
def test_every_parameter_of_position_scaling(family: str, kind: str) -> None:
    values = families.load(family).TINY
    group = {"rope_type": kind} | ({} if kind == "default" else {"factor": 2.0})
    assert not outcome(values | {"rope_parameters": group}, family)
    for key in GROUPED:
        for odd in ODD:
            outcome(values | {"rope_parameters": group | {key: odd}}, family)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("glm4", "rms_norm_eps", math.nan),
        ("glm4", "rms_norm_eps", 1e-300),
        ("glm4", "rms_norm_eps", True),
        ("glm4", "rope_theta", math.inf),
        ("glm4", "eos_token_id", ""),
        ("glm4", "eos_token_id", [0.5]),
        ("glm4", "pad_token_id", 0.5),
        ("glm4", "pad_token_id", -1),
        ("glm4", "pad_token_id", 10**9),
        ("glm4", "tie_word_embeddings", "false"),
        ("glm4", "tie_word_embeddings", 0),
        ("glm4", "torch_dtype", "int8"),
        ("glm4", "torch_dtype", ["float32"]),
        ("glm4", "num_hidden_layers", 3_000_000),
        ("glm4", "max_position_embeddings", 10**9),
        ("glm4", "vocab_size", 10**12),
        ("chatglm2", "rmsnorm", "false"),
        ("chatglm2", "rmsnorm", 0),
        ("chatglm2", "original_rope", 1),
        ("chatglm2", "rope_ratio", math.nan),
        ("chatglm2", "rope_ratio", 0),
        ("chatglm2", "pre_seq_len", -4),
        ("chatglm2", "num_layers", 3_000_000),
        ("glm4_moe", "n_routed_experts", 10**7),
        ("glm4_moe", "routed_scaling_factor", math.inf),
        ("glm_infilling", "relative_encoding", 0),
        ("chatglm", "layernorm_epsilon", math.inf),
    ],
)
def test_each_nonsense_is_refused_and_named(family: str, key: str, value: Any) -> None:
    assert outcome(families.load(family).TINY | {key: value}, family)


def test_what_no_decoder_reads_may_be_anything() -> None:
    values = families.load("glm4").TINY
    inert = [key for key in INERT_EVERYWHERE if key not in ("architectures", "model_type")]
    for odd in ODD:
        assert not outcome(values | dict.fromkeys(inert, odd), "glm4")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_a_written_config(family: str) -> None:
    """``manifest.json`` is a file like others."""
    written = families.read_config(families.load(family).TINY, family).to_json()
    assert GlmConfig.from_json(written)
    for key in written:
        for odd in ODD:
            assert refusal(partial(GlmConfig.from_json, written | {key: odd})).isprintable()
