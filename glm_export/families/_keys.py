"""Reading ``config.json`` so that no key is overlooked: each is read, fixed to a value, or listed as inert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glm_export.errors import ConfigError

INERT_EVERYWHERE = {
    **dict.fromkeys(("architectures", "model_type", "_name_or_path", "auto_map"), "say which class, not which numbers"),
    **dict.fromkeys(("transformers_version", "_from_model_config", "_commit_hash"), "bookkeeping of transformers"),
    **dict.fromkeys(("use_cache", "return_dict", "output_attentions", "output_hidden_states"), "what a call returns"),
    **dict.fromkeys(
        ("attention_dropout", "hidden_dropout", "initializer_range", "classifier_dropout"), "only for training"
    ),
    **dict.fromkeys(("id2label", "label2id", "problem_type", "num_labels"), "only for a classification head"),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), "which kernel computes the same attention"),
    **dict.fromkeys(
        ("bos_token_id", "max_length", "is_encoder_decoder"), "read by generation loops, not by the decoder"
    ),
}
"""Keys that cannot change what the decoder computes, and why."""


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
        if value is not None and value not in allowed:
            expected = " or ".join(repr(a) for a in allowed) or "no value"
            raise ConfigError(f"config.json has {key} = {value!r}, but only {expected} is supported: {why}")

    def finish(self, inert: Mapping[str, str]) -> None:
        """Refuse keys nobody accounted for.

        Raises:
            ConfigError: naming every unknown key.
        """
        unknown = sorted(set(self._values) - self._seen - set(inert) - set(INERT_EVERYWHERE))
        if unknown:
            raise ConfigError(
                f"config.json has keys that family {self.family} does not know and that could change numbers: "
                f"{', '.join(unknown)}; remove them if they are inert, or report them"
            )

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them, as a tuple."""
        value = self.optional(key, ())
        return (value,) if isinstance(value, int) else tuple(value)

    def stored_dtype(self) -> str:
        """The dtype the checkpoint was saved in (``torch_dtype``, or ``dtype`` since transformers 4.56)."""
        return str(self.optional("dtype", self.optional("torch_dtype", "float16")))
