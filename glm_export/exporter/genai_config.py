"""``genai_config.json``: what onnxruntime-genai has to know of a program to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glm_export.errors import ConfigError
from glm_export.spec.config import GlmConfig
from glm_export.spec.session_entries import session_entries
from glm_export.spec.signature import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
    Cache,
    Signature,
    past_names,
    present_names,
)

GENAI_CONFIG = "genai_config.json"
MODEL_TYPE = "decoder"
"""Any decoder-only model; genai's own ``chatglm`` runs the same code."""


def genai_config(
    config: GlmConfig, signature: Signature, *, filename: str, stops: Sequence[int], recipe: str | None = None
) -> dict[str, Any]:
    """The values of ``genai_config.json``: greedy search up to the end of the context.

    Args:
        config: the sizes.
        signature: the program's; inputs it does not have are not named.
        filename: the program's, in the folder.
        stops: every id that ends a reply.
        recipe: what the program was quantized by: the session is told the same as ours.

    Raises:
        ConfigError: the family's prompt sees itself, which genai has no mask for.
    """
    if config.prefix_mask:
        raise ConfigError(
            f"family {config.family} reads its prompt at once, and onnxruntime-genai knows causal masks only; "
            "run the program with glm-export"
        )
    present = {spec.name for spec in signature.inputs}
    key, value = (_of_every_layer(name) for name in past_names(0))
    present_key, present_value = (_of_every_layer(name) for name in present_names(0))
    logits = next(spec for spec in signature.outputs if spec.name == LOGITS)
    return {
        "model": {
            "type": MODEL_TYPE,
            "context_length": config.max_positions,
            "vocab_size": logits.dims[-1],
            "eos_token_id": list(stops),
            "pad_token_id": config.pad_token_id,
            "decoder": {
                "filename": filename,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []} | session_entries(recipe),
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_heads,
                "num_hidden_layers": config.num_layers,
                "num_key_value_heads": config.kv_heads,
                "inputs": {name: name for name in (INPUT_IDS, ATTENTION_MASK, POSITION_IDS) if name in present}
                | {"past_key_names": key, "past_value_names": value},
                "outputs": {
                    LOGITS: LOGITS,
                    "present_key_names": present_key,
                    "present_value_names": present_value,
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": config.max_positions,
            "past_present_share_buffer": signature.cache is Cache.SHARED,
        },
    }


def _of_every_layer(name_of_first: str) -> str:
    """``past_key_values.0.key`` -> ``past_key_values.%d.key``."""
    return name_of_first.replace(".0.", ".%d.")
