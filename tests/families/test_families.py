"""Telling GLM generations apart, reading their configs, refusing what is not understood."""

from __future__ import annotations

from typing import Any

import pytest

from glm_export import families
from glm_export.errors import ConfigError
from glm_export.spec.config import GlmConfig, Norm, RotaryConfig
from tests.helpers.golden_data import Golden
from tests.helpers.published_configs import PUBLISHED
from tests.helpers.tiny import tiny_values

FAMILY_OF_GOLDEN = {
    "chatglm2": "chatglm2", "chatglm2_32k": "chatglm2", "chatglm3": "chatglm3",
    "glm4_remote": "glm4_remote", "glm_hf": "glm", "glm4_hf": "glm4", "glm4_moe": "glm4_moe",
    "glm": "glm_infilling", "chatglm": "chatglm",
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILY_OF_GOLDEN)
def test_golden_checkpoints_are_told_apart(name: str) -> None:
    import json

    values = json.loads((Golden(name).folder / "config.json").read_text())
    assert families.identify(values) == (FAMILY_OF_GOLDEN[name], "")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_configs(name: str) -> None:
    """Real configs: family, and the sizes and rotary that other builders get wrong."""
    values, family, expected = PUBLISHED[name]
    config = families.read_config(values)
    assert config.family == family
    found = {key: getattr(config, key) for key in expected if not key.startswith("rotary")}
    assert found == {key: value for key, value in expected.items() if not key.startswith("rotary")}
    assert config.rotary == RotaryConfig(**expected["rotary"])


@pytest.mark.parametrize("family", families.names())
def test_every_family_has_a_tiny_config_of_its_own(family: str) -> None:
    values = families.load(family).TINY
    assert families.identify(values) == (family, "")
    assert families.read_config(values).family == family


@pytest.mark.parametrize("family", families.names())
def test_unknown_key_is_named(family: str) -> None:
    with pytest.raises(ConfigError, match="rope_twist"):
        families.read_config(tiny_values(family, rope_twist=2))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("chatglm2", {"vocab_size": 321}, "padded_vocab_size"),
        ("chatglm2", {"interleaved_qkv": True}, "interleaved_qkv"),
        ("chatglm2", {"num_layers": "2"}, "num_layers = '2'"),
        ("chatglm2", {"rope_ratio": "16"}, "rope_ratio = '16'"),
        ("chatglm2", {"eos_token_id": "</s>"}, "eos_token_id = '</s>'"),
        ("chatglm", {"layernorm_epsilon": None}, "layernorm_epsilon"),
        ("glm_infilling", {"num_attention_heads": 0}, "num_attention_heads = 0"),
        ("chatglm3", {"original_rope": False}, "original_rope"),
        ("chatglm3", {"num_hidden_layers": 3}, "num_hidden_layers"),
        ("glm", {"hidden_act": "gelu"}, "hidden_act"),
        ("glm", {"rope_scaling": {"type": "linear"}}, "factor"),
        ("glm", {"rope_scaling": {"type": "twisted"}}, "'twisted'"),
        ("glm", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "1 or more"),
        ("glm4", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.5}}, "faster beta"),
        ("glm4", {"rope_parameters": {"rope_type": "yarn", "factor": "4"}}, "expected a number"),
        ("glm4", {"rope_parameters": [4]}, "expected an object"),
        ("glm4", {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "yarn"}}, "keep the"),
        ("glm4", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("glm4", {"sliding_window": 4096}, "window"),
        ("glm4", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("glm4", {"rope_parameters": {"rope_type": "default", "twist": 1}}, "twist"),
        ("glm4", {"architectures": ["GlmForCausalLM"]}, "two things"),
        ("glm4", {"attention_bias": 1}, "true or false"),
        ("glm4_moe", {"scoring_func": "softmax"}, "sigmoid"),
        ("chatglm2", {"num_attention_heads": 3}, "cannot share"),
        ("chatglm2", {"hidden_size": -1}, "hidden_size"),
        ("chatglm2", {"eos_token_id": 10**6}, "outside the vocabulary"),
        ("chatglm2", {"layernorm_epsilon": None}, "layernorm_epsilon"),
    ],
)
def test_values_that_would_change_numbers_are_refused(family: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        families.read_config(tiny_values(family, **changes), None if "architectures" in changes else family)


def test_rope_ratio_without_a_published_name_is_ambiguous() -> None:
    values = tiny_values("chatglm2", rope_ratio=16, _name_or_path="/data/my-model")
    with pytest.raises(ConfigError, match="--family"):
        families.identify(values)
    assert families.read_config(values, "chatglm2").rotary.position_scale == 16
    assert families.read_config(values, "chatglm3").rotary.base == 160000


def test_folder_like_names_decide_nothing() -> None:
    values = tiny_values("chatglm3", _name_or_path="/models/chatglm3-6b")
    family, warning = families.identify(values)
    assert family == "chatglm2"  # same graph; only the published id says 3
    assert "--family" in warning


def test_unknown_model_lists_what_is_known() -> None:
    with pytest.raises(ConfigError, match="glm4_remote"):
        families.identify({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


def test_native_rope_in_the_keys_of_transformers_5() -> None:
    values = tiny_values("glm4")
    del values["rope_theta"], values["partial_rotary_factor"]
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.25}
    config = families.read_config(values)
    assert config.rotary == RotaryConfig(dim=4, base=5e6)


@pytest.mark.parametrize("family", families.names())
def test_inert_keys_are_inert(family: str) -> None:
    """Each may stand in config.json, whatever it says, and changes nothing; one nobody accounted for is named."""
    from glm_export.families import _chatglm_layout, _keys

    module = families.load(family)
    shared = _chatglm_layout.INERT if module.TINY.get("multi_query_attention") is not None else {}
    inert = _keys.INERT_EVERYWHERE | getattr(module, "INERT", {}) | shared
    values = tiny_values(family)
    expected = families.read_config(values, family)
    added = {key: "anything" for key in inert if key not in values}
    assert len(added) > 3
    assert families.read_config(values | added, family) == expected
    with pytest.raises(ConfigError, match="of_no_known_use"):
        families.read_config(values | {"of_no_known_use": 1}, family)


def test_config_survives_json() -> None:
    config = families.read_config(tiny_values("chatglm2", rmsnorm=False, rope_ratio=4))
    assert config.norm is Norm.LAYER
    assert GlmConfig.from_json(config.to_json()) == config
