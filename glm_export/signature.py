"""Names, dtypes and symbolic dims of every graph input and output: written here, read everywhere.

The names are those of the ecosystem (Optimum, onnxruntime-genai).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from glm_export.config import GlmConfig
from glm_export.errors import ConfigError

BATCH = "batch_size"
SEQUENCE = "sequence_length"
PAST = "past_sequence_length"
TOTAL = "total_sequence_length"
"""PAST + SEQUENCE."""

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
LOGITS = "logits"

DTYPES = ("float32", "float16", "bfloat16")
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
LOGITS_KINDS = ("all", "last")
"""Logits of every token ``[B, S, V]``, or of the last one ``[B, 1, V]``."""


def past_names(layer: int) -> tuple[str, str]:
    """Cache inputs of a layer: key, value."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Cache outputs of a layer: key, value."""
    return f"present.{layer}.key", f"present.{layer}.value"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One graph input or output; a dim is a size or a symbol."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    def shape(self, **sizes: int) -> tuple[int, ...]:
        """Concrete sizes, e.g. ``spec.shape(batch_size=1, past_sequence_length=0)``.

        Raises:
            ConfigError: a symbol was given no size.
        """
        missing = [dim for dim in self.dims if isinstance(dim, str) and dim not in sizes]
        if missing:
            raise ConfigError(f"{self.name} has symbolic dims {missing} that were given no size")
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """All inputs and outputs of a program, in graph order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input of that name.

        Raises:
            ConfigError: there is none.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        raise ConfigError(f"the program has no input {name!r}; it has {', '.join(s.name for s in self.inputs)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``manifest.json``."""
        return {
            "inputs": [asdict(s) | {"dims": list(s.dims)} for s in self.inputs],
            "outputs": [asdict(s) | {"dims": list(s.dims)} for s in self.outputs],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Signature:
        """Inverse of :meth:`to_json`.

        Raises:
            ConfigError: the values are not a signature.
        """
        try:
            inputs, outputs = (
                tuple(TensorSpec(name=s["name"], dtype=s["dtype"], dims=tuple(s["dims"])) for s in values[side])
                for side in ("inputs", "outputs")
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"the signature in manifest.json does not fit this version of glm-export: {error!r}"
            ) from error
        return cls(inputs=inputs, outputs=outputs)


def decoder_signature(config: GlmConfig, *, dtype: str, logits: str) -> Signature:
    """What a decoder takes and returns.

    Args:
        config: the sizes.
        dtype: of cache and logits, one of :data:`DTYPES`.
        logits: one of :data:`LOGITS_KINDS`.
    """

    def cache(names: tuple[str, str], length: str) -> list[TensorSpec]:
        dims = (BATCH, config.kv_heads, length, config.head_dim)
        return [TensorSpec(name=name, dtype=dtype, dims=dims) for name in names]

    # Prefix families are told which token sees which; causal ones only which tokens are real.
    mask = TensorSpec(name=ATTENTION_MASK, dtype="int64", dims=(BATCH, TOTAL))
    if config.prefix_mask:
        mask = TensorSpec(name=ATTENTION_MASK, dtype="bool", dims=(BATCH, 1, SEQUENCE, TOTAL))
    axes = () if config.position_axes == 1 else (config.position_axes,)
    layers = range(config.num_layers)
    rows = SEQUENCE if logits == "all" else 1
    return Signature(
        inputs=(
            TensorSpec(name=INPUT_IDS, dtype="int64", dims=(BATCH, SEQUENCE)),
            mask,
            TensorSpec(name=POSITION_IDS, dtype="int64", dims=(BATCH, *axes, SEQUENCE)),
            *(spec for i in layers for spec in cache(past_names(i), PAST)),
        ),
        outputs=(
            TensorSpec(name=LOGITS, dtype=dtype, dims=(BATCH, rows, config.vocab_size)),
            *(spec for i in layers for spec in cache(present_names(i), TOTAL)),
        ),
    )
