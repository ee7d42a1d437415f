"""Released configs with keys added, dropped and retyped: equal numbers, or one line that says why not."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from transformers import Glm4Config, Glm4MoeConfig, GlmConfig, PretrainedConfig

from glm_export import families
from glm_export.errors import ConfigError
from glm_export.spec.config import GlmConfig as GlmExportConfig
from tests.helpers.published_configs import PUBLISHED

SEED, EACH = 13, 20
ADDED = {
    "temperature": 0.8,
    "top_p": 0.9,
    "do_sample": True,
    "is_decoder": False,
    "unsloth_version": "2025.3",
    "model_name": "x",
    "sliding_window": None,
    "use_sliding_window": False,
    "torchscript": False,
    "rope_scaling": None,
    "pruned_heads": {},
    "_attn_implementation_autoset": True,
    "tokenizer_class": "ChatGLMTokenizer",
    "problem_type": None,
}
STRANGE = ({"rope_twist": 1}, {"num_experts": 8}, {"attention_sink": True}, {"layer_types": ["linear_attention"]})
RETYPED = ("4096", 3.5, None, [1], {"a": 1}, True, -1, 0)


def mutated(values: dict[str, Any], chooser: random.Random) -> tuple[dict[str, Any], str]:
    """One change, and its kind."""
    kind = chooser.choice(("added", "strange", "dropped", "retyped"))
    if kind == "added":
        return values | dict(chooser.sample(sorted(ADDED.items(), key=str), 4)), kind
    if kind == "strange":
        return values | chooser.choice(STRANGE), kind
    key = chooser.choice(sorted(values))
    if kind == "dropped":
        return {name: value for name, value in values.items() if name != key}, f"{kind} {key}"
    return values | {key: chooser.choice(RETYPED)}, f"{kind} {key}"


def read(values: dict[str, Any], family: str) -> tuple[GlmExportConfig | None, str]:
    """What it is read as, or why it is refused."""
    try:
        return families.read_config(values, family), ""
    except ConfigError as error:
        return None, str(error)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_accepted_with_equal_numbers_or_refused_in_one_line(name: str) -> None:
    values, family, _ = PUBLISHED[name]
    expected = families.read_config(values)
    chooser = random.Random(f"{SEED} {name}")
    outcomes: Counter[str] = Counter()
    for _ in range(EACH):
        changed, kind = mutated(values, chooser)
        config, refusal = read(changed, family)
        outcomes["accepted" if config else "refused"] += 1
        if kind == "added":
            assert config == expected, refusal
        elif kind == "strange":
            assert "could change numbers" in refusal or "full_attention" in refusal
        elif refusal:
            assert "\n" not in refusal
            assert kind.split()[1] in refusal or "config.json" in refusal, kind
    assert outcomes["refused"]
    assert outcomes["accepted"]


NATIVE = {"glm": GlmConfig, "glm4": Glm4Config, "glm4_moe": Glm4MoeConfig}


@pytest.mark.parametrize("family", NATIVE)
def test_what_save_pretrained_writes(family: str) -> None:
    """Every key transformers 4.57 writes, defaults too, changes nothing."""
    values = families.load(family).TINY
    config = NATIVE[family](**{key: value for key, value in values.items() if key != "architectures"})
    written = config.to_dict() | {"architectures": values["architectures"]}
    assert len(written) > 50
    assert families.read_config(written) == families.read_config(values)


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4_remote"])
def test_what_save_pretrained_writes_for_remote_code(family: str) -> None:
    """The base class's keys come on top of the publisher's; ``vocab_size`` repeats ``padded_vocab_size``."""
    values = families.load(family).TINY
    # The base class ties by default, and the publisher's config unties.
    base = {
        key: value for key, value in PretrainedConfig().to_dict().items() if key not in values and value is not None
    }
    vocab = {"vocab_size": values.get("padded_vocab_size", values.get("vocab_size"))}
    written = base | {"tie_word_embeddings": family == "chatglm"} | vocab | values
    assert families.read_config(written, family) == families.read_config(values, family)
