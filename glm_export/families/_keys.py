"""Reading ``config.json`` so that no key is overlooked: each is read, fixed to a value, or listed as inert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.errors import SHOWN_CHARACTERS, ConfigError, cut, listed, shown
from glm_export.spec.config import is_number

GENERATION = [
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "do_sample",
    "num_beams",
    "num_beam_groups",
    "num_return_sequences",
    "repetition_penalty",
    "length_penalty",
    "diversity_penalty",
    "no_repeat_ngram_size",
    "min_length",
    "max_length",
    "max_new_tokens",
    "early_stopping",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "output_scores",
    "return_dict_in_generate",
    "decoder_start_token_id",
    "bos_token_id",
    "sep_token_id",
    "prefix",
    "task_specific_params",
    "cache_implementation",
]
TRAINING = [
    "attention_dropout",
    "hidden_dropout",
    "initializer_range",
    "classifier_dropout",
    "gradient_checkpointing",
    "router_aux_loss_coef",
    "output_router_logits",
    "neftune_noise_alpha",
    "unsloth_fixed",
    "unsloth_version",
    "finetuning_task",
    "problem_type",
    "num_labels",
    "id2label",
    "label2id",
]
OTHER_ARCHITECTURES = [
    "is_encoder_decoder",
    "is_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "tf_legacy_loss",
    "use_bfloat16",
    "chunk_size_feed_forward",
    "max_window_layers",
]
INERT_EVERYWHERE = {
    **dict.fromkeys(("architectures", "model_type", "_name_or_path", "auto_map"), "say which class, not which numbers"),
    **dict.fromkeys(("model_name", "tokenizer_class"), "names, which no decoder reads"),
    **dict.fromkeys(("transformers_version", "_from_model_config", "_commit_hash"), "bookkeeping of transformers"),
    **dict.fromkeys(("use_cache", "return_dict", "output_attentions", "output_hidden_states"), "what a call returns"),
    **dict.fromkeys(TRAINING, "only for training, or for a classification head"),
    **dict.fromkeys(
        (
            "attn_implementation",
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
        ),
        "which kernel computes the same attention",
    ),
    **dict.fromkeys(GENERATION, "read by generation loops, not by the decoder"),
    **dict.fromkeys(OTHER_ARCHITECTURES, "written by save_pretrained for every model, read by other classes only"),
    **dict.fromkeys(("torchscript", "pretraining_tp"), "how the same products are computed"),
    "quantization_config": "the tensors say how they are quantized (checkpoints/quantized)",
}
"""Keys that cannot change what the decoder computes, and why. Those transformers 4.30 to 5.24 writes, and trainers."""

FIXED_EVERYWHERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "pruned_heads": (({},), "heads taken out of some layers are not supported"),
    "sliding_window": ((), "no GLM attends to a window"),
    "use_sliding_window": ((False,), "no GLM attends to a window"),
    "attn_logit_softcapping": ((), "no GLM caps its scores"),
    "final_logit_softcapping": ((), "no GLM caps its logits"),
}
"""Keys that hold one value in every GLM: which, and why no other."""


STORED_DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "auto", "float8_e4m3fn")
"""What savers write; the tensors themselves say what they are."""


class ConfigKeys:
    """A parsed ``config.json`` that remembers which keys were looked at."""

    def __init__(self, values: Mapping[str, Any], *, family: str) -> None:
        self._values = values
        self.family = family
        self._seen: set[str] = set()

    def required(self, key: str) -> Any:
        """The value of a key the family cannot do without.

        Raises:
            ConfigError: the key is absent.
        """
        self._seen.add(key)
        if self._values.get(key) is None:
            raise ConfigError(f"config.json of family {self.family} needs the key {key!r}, which is missing")
        return self._values[key]

    def optional(self, key: str, default: Any) -> Any:
        """The value of a key, or what the publisher's code assumes without it."""
        self._seen.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def fixed(self, key: str, *allowed: Any, why: str) -> None:
        """Hold a key to the values this project computes; absent and null pass.

        Raises:
            ConfigError: any other value, which would change numbers.
        """
        self._seen.add(key)
        value = self._values.get(key)
        # In Python 1 is True, and 1.0 is 1.
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            expected = " or ".join(repr(a) for a in allowed) or "no value"
            raise ConfigError(f"config.json has {key} = {shown(value)}, but only {expected} is supported: {why}")

    def finish(self, inert: Mapping[str, str]) -> None:
        """Refuse keys nobody accounted for.

        Raises:
            ConfigError: naming every unknown key, or one that holds another value than every GLM's.
        """
        for key, (allowed, why) in FIXED_EVERYWHERE.items():
            self.fixed(key, *allowed, why=why)
        self._require_full_attention()
        unknown = sorted(set(self._values) - self._seen - set(inert) - set(INERT_EVERYWHERE))
        if unknown:
            named = ", ".join(cut(key, SHOWN_CHARACTERS) for key in unknown)
            raise ConfigError(
                f"config.json has keys that family {self.family} does not know and that could change numbers: {named}; "
                "remove them if they are inert, or report them"
            )

    def _require_full_attention(self) -> None:
        self._seen.add("layer_types")
        kinds = self._values.get("layer_types") or []
        others = sorted({str(kind) for kind in kinds} - {"full_attention"}) if isinstance(kinds, list) else [kinds]
        if others:
            raise ConfigError(
                f"config.json has layer_types {listed(others)}, but every layer of a GLM is 'full_attention'"
            )

    def number(self, key: str, default: float | None = None) -> float:
        """The value of a key that is a number, whole or not; required where there is no default.

        Raises:
            ConfigError: it is absent, or something else.
        """
        value = self.required(key) if default is None else self.optional(key, default)
        if not is_number(value):
            raise ConfigError(f"config.json has {key} = {shown(value)}, expected a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """The value of a switch.

        Raises:
            ConfigError: it is neither true nor false.
        """
        value = self.optional(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"config.json has {key} = {shown(value)}, expected true or false")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """The value of a key that is a whole number; required where there is no default.

        Raises:
            ConfigError: it is absent, or something else.
        """
        value = self.required(key) if default is None else self.optional(key, default)
        if not is_number(value, int):
            raise ConfigError(f"config.json has {key} = {shown(value)}, expected a whole number")
        return int(value)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them, as a tuple.

        Raises:
            ConfigError: it is neither.
        """
        value = self.optional(key, [])
        ids = [value] if isinstance(value, int) else value
        if not isinstance(ids, list) or not all(is_number(i, int) for i in ids):
            raise ConfigError(f"config.json has {key} = {shown(value)}, expected a token id or a list of them")
        return tuple(ids)

    def stored_dtype(self) -> str:
        """The dtype the checkpoint was saved in (``torch_dtype``, or ``dtype`` since transformers 4.56).

        Raises:
            ConfigError: it is none of a checkpoint's.
        """
        value = self.optional("dtype", self.optional("torch_dtype", "float16"))
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name not in STORED_DTYPES:
            raise ConfigError(
                f"config.json has torch_dtype or dtype {shown(value)}, expected one of {', '.join(STORED_DTYPES)}"
            )
        return str(name)
