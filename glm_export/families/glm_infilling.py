"""GLM (2022): autoregressive blank infilling. GLM-10B, GLM-2B, GLM-large, GLM-515M, and their Chinese siblings.

Positions are learned, two for each token: its place in the text (all of a blank's tokens stand at the blank's), and
its place within the blank. The 2022 GLM says ``model_type: "glm"`` as transformers' native class does.

Source: THUDM/glm-10b, ``configuration_glm.py``, ``modeling_glm.py``; GLM, arXiv:2103.10360.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.errors import ConfigError
from glm_export.families._keys import ConfigKeys
from glm_export.families._prefix_layout import body_rules
from glm_export.spec.config import Activation, GlmConfig, Norm
from glm_export.spec.weight_map import WeightMap, as_stored, rule

TOKENIZER = "infilling"
CHAT = "none"
# Written into the official code, not into its configs.
NORM_EPS = 1e-5

INERT = {
    "attention_scale": "divides scores and multiplies them again, for the range of float16",
    "checkpoint_activations": "only for training",
    "checkpoint_num_layers": "only for training",
    "attention_dropout_prob": "only for training",
    "embedding_dropout_prob": "only for training",
    "output_dropout_prob": "only for training",
    "parallel_output": "how devices share the logits",
    "pool_token": "only for a classification head",
    "spell_func": "read only with spell_length, which must be absent",
}


def config(values: Mapping[str, Any]) -> GlmConfig:
    """Read ``config.json``.

    Raises:
        ConfigError: an unknown key, a value this project does not compute, or inconsistent sizes.
    """
    keys = ConfigKeys(values, family="glm_infilling")
    keys.fixed("block_position_encoding", True, why="every released GLM has two position tables")
    keys.fixed("relative_encoding", False, why="no released GLM has relative positions")
    keys.fixed("output_predict", True, why="without it the model has no logits")
    keys.fixed("spell_length", why="no released GLM has a prompt speller")
    keys.fixed("tie_word_embeddings", True, why="logits are taken against the embedding")
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    if heads <= 0:
        raise ConfigError(f"config.json has num_attention_heads = {heads}, expected a positive whole number")
    result = GlmConfig(
        family="glm_infilling",
        vocab_size=keys.count("vocab_size"),
        hidden_size=hidden,
        num_layers=keys.count("num_layers"),
        num_heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn_size=4 * hidden,
        # One row more than the context: the official table counts position 0 and max_sequence_length alike.
        max_positions=keys.count("max_sequence_length") + 1,
        rotary=None,
        norm=Norm.LAYER,
        norm_eps=NORM_EPS,
        qkv_bias=True,
        linear_bias=True,
        tied_head=True,
        activation=Activation.GELU,
        prefix_mask=True,
        label_shift=0,
        stored_dtype=keys.stored_dtype(),
        eos_token_ids=keys.token_ids("eos_token_id"),
        pad_token_id=keys.count("pad_token_id", 0),
    )
    keys.finish(INERT)
    return result


def weight_map(config: GlmConfig) -> WeightMap:
    """Official tensor names; a later ``save_pretrained`` puts ``glm.`` before each."""
    embedding, hidden = "word_embeddings.weight", config.hidden_size
    tables = (("position_embedding", "position_embeddings"), ("block_embedding", "block_position_embeddings"))
    return WeightMap(
        rules=(
            rule("embedding.weight", embedding, config.vocab_size, hidden),
            rule("head.weight", embedding, config.vocab_size, hidden),
            *(
                rule(f"{ours}.weight", f"transformer.{theirs}.weight", config.max_positions, hidden)
                for ours, theirs in tables
            ),
            *body_rules(config, qkv_layout=as_stored),
        ),
        ignored={},
        prefixes=(("glm.", ""),),
    )


TINY: dict[str, Any] = {
    "architectures": ["GLMModel"],
    "model_type": "glm",
    "attention_scale": 1.0,
    "block_position_encoding": True,
    "hidden_size": 64,
    "max_sequence_length": 255,
    "num_attention_heads": 4,
    "num_layers": 2,
    "output_predict": True,
    "relative_encoding": False,
    "torch_dtype": "float32",
    "vocab_size": 320,
}
