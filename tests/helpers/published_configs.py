"""Sizes and flags of released models in the keys of their ``config.json``, and what they must be read as.

Keys of bookkeeping are left out; chatglm3-6b-32k's ``rope_ratio`` is from memory, its meaning from engines that
support it.
"""

from __future__ import annotations

from typing import Any

from glm_export.families._chatglm_layout import tiny
from glm_export.families._native_layout import tiny as native

SIX_B = {
    "hidden_size": 4096, "kv_channels": 128, "num_attention_heads": 32, "num_layers": 28, "ffn_hidden_size": 13696,
    "padded_vocab_size": 65024, "multi_query_group_num": 2, "torch_dtype": "float16", "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
NINE_B = SIX_B | {
    "num_layers": 40, "num_hidden_layers": 40, "padded_vocab_size": 151552, "layernorm_epsilon": 1.5625e-07,
    "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329, "torch_dtype": "bfloat16",
    "attn_implementation": "sdpa", "classifier_dropout": None,
}  # fmt: skip
NATIVE_9B = {
    "hidden_size": 4096, "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 2,
    "num_hidden_layers": 40, "intermediate_size": 13696, "vocab_size": 151552,
    "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329, "torch_dtype": "bfloat16",
}  # fmt: skip
HALF = {"dim": 64}

PUBLISHED: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "chatglm2-6b": (
        tiny("THUDM/chatglm2-6b", **SIX_B, seq_length=32768), "chatglm2",
        {"num_layers": 28, "kv_heads": 2, "head_dim": 128, "max_positions": 32768, "vocab_size": 65024, "rotary": HALF},
    ),
    "chatglm2-6b-32k": (
        tiny("THUDM/chatglm2-6b-32k", **SIX_B, seq_length=32768, rope_ratio=16), "chatglm2",
        {"max_positions": 32768, "rotary": HALF | {"position_scale": 16}},
    ),
    "codegeex2-6b": (
        tiny("THUDM/codegeex2-6b", **SIX_B, seq_length=8192), "chatglm2", {"max_positions": 8192, "rotary": HALF},
    ),
    "chatglm3-6b": (
        tiny("THUDM/chatglm3-6b", **SIX_B, seq_length=8192), "chatglm3", {"max_positions": 8192, "rotary": HALF},
    ),
    "chatglm3-6b-32k": (
        tiny("THUDM/chatglm3-6b-32k", **SIX_B, seq_length=32768, rope_ratio=50), "chatglm3",
        {"max_positions": 32768, "rotary": HALF | {"base": 500000}},
    ),
    "glm-4-9b-chat": (
        tiny("THUDM/glm-4-9b-chat", **NINE_B, seq_length=131072, rope_ratio=500), "glm4_remote",
        {
            "num_layers": 40, "norm_eps": 1.5625e-07, "eos_token_ids": (151329, 151336, 151338),
            "stored_dtype": "bfloat16", "rotary": HALF | {"base": 5e6},
        },
    ),
    "glm-4-9b-chat fine-tuned and saved elsewhere": (
        tiny("/home/someone/run-7", **NINE_B, seq_length=131072, rope_ratio=500), "glm4_remote",
        {"rotary": HALF | {"base": 5e6}},
    ),
    "glm-4-9b-chat-1m": (
        tiny("THUDM/glm-4-9b-chat-1m", **NINE_B | {"multi_query_group_num": 4}, seq_length=1048576, rope_ratio=10000),
        "glm4_remote", {"kv_heads": 4, "max_positions": 1048576, "rotary": HALF | {"base": 1e8}},
    ),
    "glm-4-9b-chat-hf": (
        native(
            "glm", "GlmForCausalLM", **NATIVE_9B, max_position_embeddings=131072, rms_norm_eps=1.5625e-07,
            rope_theta=5e6,
        ),
        "glm", {"qkv_bias": True, "tied_head": False, "sandwich_norms": False, "rotary": HALF | {"base": 5e6}},
    ),
    "glm-edge-1.5b-chat": (
        native(
            "glm", "GlmForCausalLM", hidden_size=2048, head_dim=128, num_attention_heads=16, num_key_value_heads=4,
            num_hidden_layers=28, intermediate_size=6144, vocab_size=59264, max_position_embeddings=8192,
            attention_bias=False, partial_rotary_factor=1.0, tie_word_embeddings=True,
            eos_token_id=[59246, 59253, 59255], pad_token_id=59246,
        ),
        "glm", {"tied_head": True, "qkv_bias": False, "kv_heads": 4, "rotary": {"dim": 128}},
    ),
    "GLM-4-9B-0414": (
        native("glm4", "Glm4ForCausalLM", **NATIVE_9B, max_position_embeddings=32768), "glm4",
        {"sandwich_norms": True, "norm_eps": 1e-5, "max_positions": 32768, "rotary": HALF},
    ),
}  # fmt: skip
